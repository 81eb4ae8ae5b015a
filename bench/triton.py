"""Triton, Python backend: the tritonserver binary inside PyPI's nvidia-pytriton, started directly."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.bundles import Case
from bench.launch import ContenderError, Endpoint, clean_environment, python, wait_until
from bench.places import HOME, LOGS, SERVERS
from bench.processes import free_port, started

CONFIGURATION = """name: "personal"
backend: "python"
max_batch_size: 64
input [
  {{ name: "{input}" data_type: TYPE_{datatype} dims: [{dims}] }},
  {{ name: "user" data_type: TYPE_INT64 dims: [1] }}
]
output [{{ name: "probabilities" data_type: TYPE_FP32 dims: [{classes}] }}]
instance_group [{{ kind: KIND_CPU count: {workers} }}]
dynamic_batching {{ }}
"""


@contextmanager
def triton(model: Case, count: int, workers: int) -> Iterator[Endpoint]:
    """Start tritonserver with one instance a worker and dynamic batching without a delay."""
    folder = _repository(model, workers)
    packages = Path(_said([python("triton"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))
    server = packages / "pytriton" / "tritonserver"
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    if not stub.exists():
        version = _said([python("triton"), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
        shutil.copy2(server / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    port, log = free_port(), LOGS / "triton.log"
    settings = clean_environment(model, count)
    # The backend embeds an interpreter, which finds its packages by the first python3 of the path.
    settings["PATH"] = f"{Path(python('triton')).parent}:{settings['PATH']}"
    settings["LD_LIBRARY_PATH"] = str(packages / "nvidia_pytriton.libs")
    command = [str(server / "bin" / "tritonserver"), "--model-repository", str(folder), "--http-port", str(port)]
    command += ["--backend-directory", str(server / "backends"), "--http-address", "127.0.0.1"]
    command += ["--allow-grpc", "false", "--allow-metrics", "false", "--http-thread-count", "4"]
    with started(command, log, settings, folder) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(f"{url}/v2/models/personal/ready", process, log)
        yield Endpoint(url, process.pid)


def _repository(model: Case, workers: int) -> Path:
    folder = HOME / "triton" / model.name
    version = folder / "personal" / "1"
    version.mkdir(parents=True, exist_ok=True)
    for file in (SERVERS / "triton" / "model.py", SERVERS / "personal_model.py"):
        shutil.copyfile(file, version / file.name)
    text = CONFIGURATION.format(
        input="input",
        datatype=model.datatype,
        dims=", ".join(map(str, model.shape)),
        classes=model.classes,
        workers=workers,
    )
    (folder / "personal" / "config.pbtxt").write_text(text)
    return folder


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ContenderError(f"{command[0]} said: {done.stderr[-300:]}")
    return done.stdout.strip()
