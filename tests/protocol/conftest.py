"""A Python with KServe's client: it pins protobuf < 7 and pandas < 3, which the tools here are past."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KSERVE = "kserve==0.21.0"
PYTHONS = (3, 14)  # the first that this KServe does not install on
CACHE = Path(__file__).resolve().parent.parent.parent / ".cache"
UNREACHED = ("connection broken by", "from versions: none")
"""What pip says where no registry answers, or none has the package at all."""


@pytest.fixture(scope="session")
def kserve_python():
    """`KSERVE_PYTHON`, or the Python of a virtual environment that is made once and kept under `.cache`."""
    given = os.environ.get("KSERVE_PYTHON")
    if given:
        assert Path(given).is_file(), f"KSERVE_PYTHON={given} is no file; leave it unset to have one made"
        return given
    if sys.version_info >= PYTHONS:
        pytest.skip(f"{KSERVE} does not install on Python {sys.version_info.major}.{sys.version_info.minor}")
    CACHE.mkdir(exist_ok=True)
    home = CACHE / f"{KSERVE.replace('==', '-')}-py{sys.version_info.major}.{sys.version_info.minor}"
    with (CACHE / "kserve.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests share it
        python = home / "bin" / "python"
        if not (home / ".installed").exists() or not python.exists():  # the Python it links to may be gone
            install(home)
    return str(python)


def install(home):
    """Make the environment; without the mark at the end it is made anew the next time."""
    shutil.rmtree(home, ignore_errors=True)
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    made = subprocess.run(
        [sys.executable, "-m", "venv", home], capture_output=True, text=True, timeout=120, env=variables
    )
    assert made.returncode == 0, made.stdout + made.stderr
    command = [home / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--no-compile", "--prefer-binary", "--retries", "2", KSERVE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=variables)
    if done.returncode and any(sign in done.stderr for sign in UNREACHED):
        pytest.skip(f"pip reaches no registry that has {KSERVE}: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-3000:]
    (home / ".installed").touch()
