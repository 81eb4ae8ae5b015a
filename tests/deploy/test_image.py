"""What the image is built from, read from the files that build it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def dockerfile() -> str:
    return (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    """Normalised names of requirements, without extras, versions and markers."""
    return {re.split(r"[\s\[<>=!~;]", each, maxsplit=1)[0].lower().replace("_", "-") for each in requirements}


def test_package_image_and_chart_are_of_one_release(dockerfile: str, project: dict[str, Any]) -> None:
    chart = (REPOSITORY / "helm" / "headway" / "Chart.yaml").read_text(encoding="utf-8")
    assert re.findall(r'^appVersion: "(.+)"$', chart, re.MULTILINE) == [project["version"]]
    assert re.findall(r"^ARG VERSION=(.+)$", dockerfile, re.MULTILINE) == [project["version"]]


def test_what_is_copied_is_let_through_and_nothing_else(dockerfile: str) -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    }
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied


def test_every_package_of_the_image_is_pinned(project: dict[str, Any]) -> None:
    lock = REPOSITORY / "requirements.lock"
    pins = [line for line in lock.read_text(encoding="utf-8").splitlines() if re.match(r"[A-Za-z0-9]", line)]
    assert all("==" in pin for pin in pins)
    extras = project["optional-dependencies"]
    assert names([*project["dependencies"], *extras["cpu"], *extras["cuda"]]) <= names(pins)


def test_both_images_serve_as_a_user_who_is_not_root(dockerfile: str) -> None:
    targets = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)
    images = {stage.splitlines()[0].split(" AS ")[-1]: stage for stage in targets}
    for target in ("cpu", "cuda"):
        assert images[target].rstrip().endswith("USER 10001:10001")
    assert list(images)[-1] == "cpu", "the last stage is what a build without --target makes"
    assert 'ENTRYPOINT ["headway"]' in images["runtime"]
    assert "STOPSIGNAL SIGTERM" in images["runtime"]
