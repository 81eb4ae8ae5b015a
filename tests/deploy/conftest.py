"""The chart as the real helm renders it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
CHART = REPOSITORY / "helm" / "headway"
Objects = dict[str, dict[str, Any]]

sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def helm() -> str:
    """The newest helm at hand: `$HELM`, what `make check-deploy` fetched, or the one on the PATH."""
    fetched = sorted((REPOSITORY / ".cache" / "helm").glob("v*/helm"))
    found = os.environ.get("HELM") or (str(fetched[-1]) if fetched else shutil.which("helm"))
    if not found:
        pytest.skip("no helm here: `make check-deploy` fetches one into .cache/helm, or name one in $HELM")
    return found


@pytest.fixture(scope="session")
def run_helm(helm: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `helm template` on the chart with more arguments; it may fail."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [helm, "template", "rel", str(CHART), "--namespace", "apps", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    return run


@pytest.fixture(scope="session")
def render(run_helm: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., Objects]:
    """Render the chart and return its objects by kind; of the two pods' kinds, `Pod` is the test hook."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; it comes with the extra `dev`")

    def objects(*arguments: str) -> Objects:
        done = run_helm(*arguments)
        assert done.returncode == 0, done.stderr
        found = [document for document in yaml.safe_load_all(done.stdout) if document]
        by_kind = {document["kind"]: document for document in found}
        assert len(by_kind) == len(found), "two objects of one kind"
        return by_kind

    return objects


@pytest.fixture
def refusal(run_helm: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., str]:
    """Render with values that must be refused and return what helm said."""

    def said(*arguments: str) -> str:
        done = run_helm(*arguments)
        assert done.returncode != 0, "the chart was rendered, but should have been refused"
        return done.stderr

    return said


def ci_values(name: str) -> tuple[str, str]:
    """Arguments that take one of the chart's value files for checks."""
    return "--values", str(CHART / "ci" / f"{name}-values.yaml")


@pytest.fixture
def postgresql() -> tuple[str, ...]:
    """Arguments of the value file with PostgreSQL, an autoscaler and everything optional."""
    return ci_values("postgres-hpa")


@pytest.fixture
def gpu() -> tuple[str, ...]:
    """Arguments of the value file with a GPU."""
    return ci_values("gpu")
