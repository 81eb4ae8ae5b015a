"""The command line: every option has help, and every failure is a sentence."""

import os
import re
import subprocess
import sys

import click
import pytest
import typer.main

from service.cli import app

COMMAND = typer.main.get_command(app)


def commands(command, path=()):
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        for name, sub in command.commands.items():
            yield from commands(sub, (*path, name))
    else:
        yield " ".join(path), command


EVERY = dict(commands(COMMAND))


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200", **environment},
    )  # fmt: skip


def test_the_commands_are_there():
    top = {name.split()[0] for name in EVERY}
    assert {"data", "train", "export", "evaluate", "report", "serve", "calibrate", "predict", "demo", "bundle"} <= top
    assert {"bundle list", "bundle verify", "bundle show", "data download", "data synth"} <= set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_every_option_has_help(name):
    command = EVERY[name]
    assert command.help
    for parameter in command.params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


def test_help_and_version():
    shown = run("--help")
    assert shown.returncode == 0
    assert "evaluate" in shown.stdout
    assert re.match(r"headway \d+\.\d+", run("--version").stdout)


def test_help_imports_nothing_that_a_command_needs():
    heavy = "numpy", "torch", "onnxruntime", "sqlalchemy", "fastapi", "pydantic"
    code = (
        "import sys\nfrom service.cli import main\nsys.argv = ['headway', '--help']\n"
        f"try:\n    main()\nfinally:\n    assert not set({heavy!r}) & set(sys.modules), sys.modules.keys()\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--data", "{tmp}/none", "--out", "{tmp}/run"], "none"),
        (["export", "{tmp}", "--models", "{tmp}/models"], "no finished training run"),
        (["evaluate", "--model", "{tmp}", "--data", "{tmp}"], "neither a bundle"),
        (["report", "{tmp}"], "no finished training run"),
        (["bundle", "list", "--models", "{tmp}/none"], "does not exist"),
        (["bundle", "verify", "{tmp}"], "neither a bundle"),
        (["bundle", "show", "{tmp}"], "neither a bundle"),
        (["data", "check", "{tmp}/none"], "none"),
        (["data", "download", "other"], "unknown data set"),
        (["predict", "--model", "m", "--file", "{tmp}/no.npz"], "no.npz"),
        (["calibrate", "--model", "m", "--user", "u", "--file", "{tmp}/no.npz"], "no.npz"),
        (["demo", "--data", "{tmp}/none", "--out", "{tmp}/out"], "none"),
        (["serve", "--port", "99999"], "port"),
        (["db", "check", "--store", "sqlite+aiosqlite:///{tmp}/mistyped.db"], "there is no store"),
        (["db", "audit", "--store", "sqlite+aiosqlite:///{tmp}/mistyped.db"], "there is no store"),
        (["serve", "--config", "{tmp}/none.toml"], "cannot be read"),
    ],
)
def test_failures_are_sentences(tmp_path, arguments, sentence):
    done = run(*(a.format(tmp=tmp_path) for a in arguments))
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stdout + done.stderr
    assert sentence in (done.stdout + done.stderr).replace("\n", "")
    assert not (tmp_path / "mistyped.db").exists()


def test_synth_check_and_settings_from_environment_and_file(tmp_path):
    folder = tmp_path / "users"
    made = run("data", "synth", "--out", str(folder), "--users", "2", "--repetitions", "2", "--sessions", "1")
    assert made.returncode == 0, made.stderr
    listed = run("data", "check", str(folder))
    assert listed.returncode == 0
    assert "200" in listed.stdout

    from service.config import ConfigError, load

    file = tmp_path / "h.toml"
    file.write_text("port = 1\nmax_batch = 3\nqueue_rows = 4\n")
    os.environ["HEADWAY_MAX_BATCH"] = "5"
    try:
        found = load({"port": 7, "host": None}, file)
    finally:
        del os.environ["HEADWAY_MAX_BATCH"]
    assert (found.port, found.max_batch, found.queue_rows, found.host) == (7, 5, 4, "127.0.0.1")
    file.write_text("prt = 1\n")
    with pytest.raises(ConfigError, match="prt"):
        load({}, file)


def test_a_bundle_of_targets_is_verified_and_refused_where_labels_are_meant(tmp_path):
    from tests.tiny_regression import write_tiny_regression

    path = str(write_tiny_regression(tmp_path))
    assert "features 4" in run("bundle", "verify", path).stdout
    assert "yes" in run("bundle", "list", "--models", str(tmp_path)).stdout
    listed = run("bundle", "list", str(tmp_path)).stdout.splitlines()
    assert listed[0].split() == ["model", "ver", "task", "input", "labels", "feat.", "kind", "MiB", "created", "ok"]
    assert listed[1].split()[2:3] == ["regression"]
    assert max(map(len, listed)) <= 80
    twice = run("bundle", "list", str(tmp_path), "--models", str(tmp_path))
    assert (twice.returncode, "given twice" in twice.stderr) == (2, True)
    shown = run("evaluate", "--model", path, "--data", str(tmp_path))
    assert (shown.returncode, "Traceback" in shown.stderr) == (1, False)
    assert "regression" in shown.stderr or "recordings" in shown.stderr
    done = run("bundle", "convert", path, "--models", str(tmp_path / "other"))
    assert (done.returncode, "values change by" in done.stdout) == (0, True), done.stderr
