"""Logs of training for tools that draw them: CSV files, TensorBoard, MLflow."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.utilities.rank_zero import rank_zero_only

from models.training.config import TrainingError

__all__ = ["LOGGERS", "MLflowLogger", "check_loggers", "log_figures", "loggers_of", "store_in"]

LOGGERS = ("csv", "tensorboard", "mlflow")


class MLflowLogger(Logger):
    """Metrics of one network as a run of MLflow, where `MLFLOW_TRACKING_URI` says, or else in SQLite in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        import mlflow

        self._name, self._folder = name, folder
        folder.mkdir(parents=True, exist_ok=True)
        kept = mlflow.environment_variables.MLFLOW_TRACKING_URI.get()
        self._client = mlflow.MlflowClient(kept or store_in(folder))
        found = self._client.get_experiment_by_name("headway")
        experiment = found.experiment_id if found else self._client.create_experiment("headway")
        self._run = self._client.create_run(experiment, run_name=name).info.run_id

    @property
    def name(self) -> str:
        """The network's name."""
        return self._name

    @property
    def version(self) -> str:
        """MLflow's id of the run."""
        return str(self._run)

    @property
    def root_dir(self) -> str:
        """Where a local store is."""
        return str(self._folder)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers of a step."""
        for key, value in metrics.items():
            self._client.log_metric(self._run, key.replace(" ", "_"), float(value), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log settings."""
        for key, value in params.items():
            self._client.log_param(self._run, key, value)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run."""
        self._client.set_terminated(self._run, "FINISHED" if status == "success" else "FAILED")


def store_in(folder: Path) -> str:
    """URI of MLflow's own store in a folder; `mlflow ui --backend-store-uri` takes it."""
    return f"sqlite:///{folder.resolve()}/mlflow.db"


def check_loggers(kinds: Sequence[str]) -> None:
    """Raise `TrainingError` for a logger that there is not, or whose package is missing."""
    for kind in kinds:
        if kind not in LOGGERS:
            raise TrainingError(f"There is no logger '{kind}'; there are: {', '.join(LOGGERS)}.")
        if kind != "csv" and find_spec(kind) is None:
            raise TrainingError(f"The logger {kind} needs: pip install {kind}")


def loggers_of(kinds: Sequence[str], folder: Path, name: str) -> list[Logger]:
    """Loggers by name, each writing under `folder/<kind>`.

    Raises:
        TrainingError: there is no logger of that name, or its package is missing.
    """
    check_loggers(kinds)
    plain = name.replace(" ", "-")
    made: dict[str, Callable[[], Logger]] = {
        "csv": lambda: CSVLogger(folder / "csv", name=plain, version="", flush_logs_every_n_steps=1),
        "tensorboard": lambda: TensorBoardLogger(folder / "tensorboard", name=plain, version=""),
        "mlflow": lambda: MLflowLogger(folder / "mlflow", plain),
    }
    return [made[kind]() for kind in kinds]


def log_figures(kinds: Sequence[str], folder: Path, name: str, evaluation: Mapping[str, Any]) -> None:
    """Log the figures of a run that has no curves, at step 0: of the shared head, and of personal heads by shots."""
    zero = evaluation["zero_shot"]
    if "rmse" in zero:
        figures = {f"{name}/{key}_{target}": v for key in ("rmse", "worst_rmse") for target, v in zero[key].items()}
    else:
        figures = {f"{name}/shared": zero["mean"], f"{name}/shared_worst": zero["worst"]}
    for row in evaluation.get("personal", ()):
        shots = f"{row['windows']}_windows_{row['repetitions']}_repetitions"
        figures |= {f"{name}/personal_{shots}": row["personal"], f"{name}/gain_{shots}": row["gain"]}
    for logger in loggers_of(kinds, folder, name):
        logger.log_metrics(figures, 0)
        logger.finalize("success")
