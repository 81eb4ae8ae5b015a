"""Who may import whom: arrows point down only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GROUND = {"numpy", "pydantic", "safetensors", "models", "exporters", "__future__"}
STANDARD = __import__("sys").stdlib_module_names


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def sources(*packages: str) -> list[Path]:
    return [f for package in packages for f in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize(
    "file",
    [
        *sources("models/heads"),
        *(
            ROOT / "exporters" / f
            for f in ("bundle.py", "bundle_outputs.py", "input_spec.py", "media_spec.py", "personal.py")
        ),
    ],
    ids=lambda f: f.name,
)
def test_the_ground_floor_is_numpy_pydantic_and_safetensors(file):
    used = {name.split(".")[0] for name in imports(file)}
    assert used - set(STANDARD) <= GROUND
    assert not any(
        name.startswith(("models.training", "models.backbones", "exporters.export")) for name in imports(file)
    )


@pytest.mark.parametrize("file", sources("models", "exporters"), ids=lambda f: f"{f.parent.name}/{f.name}")
def test_nobody_imports_the_service(file):
    assert not any(name.split(".")[0] in {"service", "fastapi", "starlette", "uvicorn"} for name in imports(file))


@pytest.mark.parametrize(
    "file",
    [f for f in sources("service") if "commands" not in f.parts],
    ids=lambda f: f"{f.parent.name}/{f.name}",
)
def test_serving_reaches_for_no_training_code(file):
    allowed = (
        "models.heads",
        "models.data.windows",
        "models.data",
        "exporters.bundle",
        "exporters.export",
        "exporters.personal",
    )
    for name in imports(file):
        assert name.split(".")[0] not in {"torch", "onnx", "lightning"}
        if name.startswith(("models", "exporters")) and file.name != "cli.py":
            assert name.startswith(allowed) or name == "exporters"
