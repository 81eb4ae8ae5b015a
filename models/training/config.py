"""What a training run is asked for."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["TrainConfig", "TrainingError"]


class TrainingError(ValueError):
    """The recordings or the settings do not allow training; the message says why."""


class TrainConfig(BaseModel):
    """Settings of `train`; recorded in the run, and a resumed run must have the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = Field("episodic", description="'episodic', or 'handmade' for no learned branch (seconds)")
    seed: int = 0
    steps: int = Field(2500, ge=0, description="gradient steps of one network, at most")
    folds: int = Field(4, ge=2, description="networks trained on parts of the people, to score the others")
    personal: int = Field(64, ge=2, le=200, description="features that personal heads are fitted in")
    channel_layout: Literal["auto", "ring", "none"] = Field("auto", description="auto: emg is a ring, imu is not")
    unit: str = Field("counts", description="of the samples, for the manifest")
    users_per_step: int = Field(10, ge=2)
    support: int = Field(2, ge=1, description="windows a class of a personal prototype in training")
    queries: int = Field(2, ge=1, description="windows a class that are classified, from other repetitions")
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    evaluate_every: int = Field(250, ge=1, description="steps between validations and checkpoints")
    patience: int = Field(4, ge=1, description="validations without gain before a network's training stops")
    windows_per_user: int = Field(6000, ge=100, description="more are thinned out evenly")
    threads: int = Field(1, ge=1)

    QUICK: ClassVar[dict[str, int]] = {"steps": 500, "folds": 5, "evaluate_every": 125, "windows_per_user": 1500}
    """Settings for a first look: under about a minute and a half on two cores."""
