"""Sweeps: what is tried, that trials are runs like any, that each is trained once, and that a failed one is a row."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from models.data.recordings import load, load_folder, save
from models.data.synthetic import synthesise
from models.data.windows import WindowSpec, windows
from models.training import TrainConfig, TrainingError, load_run, sweep, train
from models.training.held_out import by_users
from models.training.linear_probe import LinearProbeConfig
from models.training.runners import OnRay, Where
from models.training.sweep_space import Choices, Range, parsed, settings_of, space_of
from models.training.tuned import TuneConfig
from service.cli import app


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("learning_rate=1e-3,1e-4", Choices((1e-3, 1e-4))),
        ("augment=true,false", Choices((True, False))),
        ("balance=class,both", Choices(("class", "both"))),
        ('settings={"size":64},{"size":128}', Choices(({"size": 64}, {"size": 128}))),
        ("dropout=0:0.5", Range(0.0, 0.5)),
        ("learning-rate=1e-5:1e-2:log", Range(1e-5, 1e-2, log=True)),
        ("steps=100:400", Range(100.0, 400.0, whole=True)),
    ],
)
def test_what_varies_is_read(told, wanted):
    assert parsed(TuneConfig, told)[1] == wanted


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("dropout", "NAME=VALUE,VALUE or NAME=LOW:HIGH or NAME=LOW:HIGH:log was expected"),
        ("dropuot=0,1", "no setting 'dropuot'; there are: augment, "),
        ("dropout=0.5:0.1", "from a smaller number to a larger one"),
        ("learning_rate=0:1:log", "of logarithms from more than 0"),
        ("steps=100,50,1e2", "100.0 is there twice"),
    ],
)
def test_what_cannot_vary_is_a_sentence(told, said):
    with pytest.raises(TrainingError, match=said):
        parsed(TuneConfig, told)


def test_a_setting_that_is_said_twice_is_refused():
    assert list(space_of(TuneConfig, ["steps=1,2", "dropout=0:1"], ["seed=3"])) == ["steps", "dropout"]
    with pytest.raises(TrainingError, match="--vary learning_rate is there twice"):
        space_of(TuneConfig, ["learning_rate=1e-3", "learning-rate=1e-4"])
    with pytest.raises(TrainingError, match="learning_rate is in --vary and in --set"):
        space_of(TuneConfig, ["learning_rate=1e-3,1e-4"], ["learning-rate=1e-2"])


def test_without_a_number_of_trials_the_grid_is_tried_and_ranges_are_refused():
    grid = {"a": Choices((1, 2)), "b": Choices(("x", "y", "z"))}
    found = settings_of(grid, None, 0)
    assert found[:2] == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}]
    assert len(found) == 6
    assert settings_of(grid, 9, 0) == found
    with pytest.raises(TrainingError, match="say how many with --trials"):
        settings_of({"a": Range(0, 1)}, None, 0)
    with pytest.raises(TrainingError, match="Nothing varies"):
        settings_of({}, 3, 0)


@given(st.integers(1, 30), st.integers(0, 2**31), st.booleans())
def test_more_trials_begin_with_the_same_ones_and_stay_within(count, seed, grid):
    space = {"a": Choices(tuple(range(10))), "b": Choices((0, 1, 2, 3))}
    if not grid:
        space |= {"c": Range(1e-5, 1e-2, log=True), "d": Range(3, 5, whole=True), "e": Range(-1, 1)}
    found = settings_of(space, count, seed)
    assert settings_of(space, count + 3, seed)[:count] == found
    assert len(found) == count
    if grid:
        assert len({(f["a"], f["b"]) for f in found}) == count
    else:
        assert all(1e-5 <= f["c"] <= 1e-2 and f["d"] in (3, 4, 5) and -1 <= f["e"] <= 1 for f in found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of five people, on disk."""
    made = tmp_path_factory.mktemp("recordings")
    for rec in synthesise(5, channels=4, fs=200.0, labels=3, repetitions=3, sessions=1, seconds=1.0, seed=5):
        save(made / f"{rec.subject}.npz", rec)
    return made


FEW = TrainConfig(recipe="handmade", folds=2, personal=24)
TRIED = [{"personal": 24}, {"personal": 8}]


def study(folder, **where):
    return sweep.Study(folder, FEW, where=Where(**where), command="asked")


@pytest.fixture(scope="module")
def swept(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, sweep.sweep(study(folder), TRIED, out).trials


def test_each_trial_is_the_run_that_it_would_be_alone_and_the_best_is_first(swept, folder, tmp_path):
    out, found = swept
    alone = train(load_folder(folder), FEW.model_copy(update=TRIED[1]), tmp_path / "alone")
    assert load_run(out / "trial-001").prior_bytes == alone.prior_bytes
    table = json.loads((out / "results.json").read_text())
    assert [row["trial"] for row in table["rows"]] == [trial.number for trial in found]
    assert table["rows"] == [trial.row() for trial in found]
    shared = [row["shared"] for row in table["rows"]]
    assert shared == sorted(shared, reverse=True)
    assert (table["best"], table["trials"], table["failed"]) == (found[0].folder, 2, 0)
    row = next(row for row in table["rows"] if row["trial"] == 1)
    assert (row["settings"], row["shared"]) == ({"personal": 8}, alone.evaluation["zero_shot"]["mean"])
    assert row["personal"] == pytest.approx(np.mean([f["personal"] for f in alone.evaluation["personal"]]))


def test_resumed_with_more_trials_what_has_ended_is_not_trained_again(swept, folder, monkeypatch):
    out, found = swept
    asked = []
    real = sweep.train
    monkeypatch.setattr(sweep, "train", lambda *args, **more: asked.append(args[1].personal) or real(*args, **more))
    more = sweep.sweep(study(folder), [*TRIED, {"personal": 12}], out, resume=True).trials
    assert asked == [12]
    assert sorted(t.number for t in more) == [0, 1, 2]
    kept = {t.number: t.figures for t in more}
    assert all(kept[trial.number] == trial.figures for trial in found)
    with pytest.raises(TrainingError, match="resume the run in it"):
        sweep.sweep(study(folder), TRIED, out)
    with pytest.raises(TrainingError, match="trained with other settings; resume the sweep with the same --vary"):
        sweep.sweep(study(folder), [{"personal": 9}], out, resume=True)


def test_a_failed_trial_is_a_row_and_is_tried_again(folder, tmp_path, monkeypatch):
    real = sweep.train

    def fails(recordings, config, *args, **more):
        if config.personal == 24:
            raise MemoryError("no room")
        return real(recordings, config, *args, **more)

    monkeypatch.setattr(sweep, "train", fails)
    first = sweep.sweep(study(folder), TRIED, tmp_path / "out", by="worst").trials
    assert [(t.number, t.error) for t in first] == [(1, None), (0, "no room")]
    assert first[1].figures == {"shared": None, "worst": None, "personal": None}
    monkeypatch.setattr(sweep, "train", real)
    again = sweep.sweep(study(folder), TRIED, tmp_path / "out", by="worst", resume=True).trials
    assert {t.error for t in again} == {None}


@pytest.mark.parametrize("damaged", [b"{", b"{}", b"[]", b"\xff"])
def test_a_trial_with_a_damaged_record_is_named(swept, folder, tmp_path, damaged):
    out = shutil.copytree(swept[0], tmp_path / "out")
    (out / "trial-001" / "run.json").write_bytes(damaged)
    with pytest.raises(
        TrainingError, match=r"trial-001/run\.json is damaged; without the folder .*trial-001 that trial"
    ):
        sweep.sweep(study(folder), TRIED, out, resume=True)
    shutil.rmtree(out / "trial-001")
    again = sweep.sweep(study(folder), TRIED, out, resume=True).trials
    assert {t.number: t.figures for t in again} == {t.number: t.figures for t in swept[1]}


def test_without_users_nothing_is_sorted_by_personal_heads(people, tmp_path):
    flat = tmp_path / "flat"
    for i, file in enumerate(people.items):
        (flat / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, flat / file.parent.name / f"{i}{file.suffix}")
    asked = sweep.Study(flat, LinearProbeConfig(backbone="package:none"))
    with pytest.raises(TrainingError, match="cannot be sorted by 'personal': too few users in the data"):
        sweep.sweep(asked, [{"personal": 4}], tmp_path / "out", by="personal")
    assert not (tmp_path / "out").exists()


def test_settings_that_a_recipe_does_not_take_are_refused_before_anything_is_done(folder, tmp_path):
    with pytest.raises(
        TrainingError, match=r"Trial 1 with \{'folds': 1\} is not possible: folds cannot be 1: [^\n]*\.$"
    ):
        sweep.sweep(study(folder), [{"folds": 2}, {"folds": 1}], tmp_path / "out")
    with pytest.raises(TrainingError, match="cannot be sorted by 'loss'; there are: shared, worst, personal"):
        sweep.sweep(study(folder), TRIED, tmp_path / "out", by="loss")
    with pytest.raises(ValueError, match=r"No subject in .* matches 'nobody'"):
        sweep.sweep(replace(study(folder), held_out="nobody"), TRIED, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_people_held_out_are_in_no_trial_and_are_asked_about_the_best(folder, tmp_path):
    held = replace(study(folder), held_out="synth_4")
    swept = sweep.sweep(held, TRIED, tmp_path / "out")
    best = load_run(tmp_path / "out" / swept.trials[0].folder)
    assert {s["stem"] for s in best.provenance["subjects"]} == {f"synth_{i}" for i in range(4)}
    (rec,) = load_folder(folder, "synth_4")
    cut = windows(rec, WindowSpec(best.signal.length, best.signal.stride))
    with torch.no_grad():
        z = best.backbone()(torch.from_numpy(cut.x)).numpy()
    right = ((z @ best.prior.generic_weight.T + best.prior.generic_bias).argmax(1) == cut.y).mean()
    assert swept.held_out == {"people": 1, "shared": pytest.approx(right), "worst": pytest.approx(right)}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["held_out"] == swept.held_out


@pytest.mark.parametrize("held_out", ["", " ,", "!synth_0", "synth_1,!synth_0"])
def test_nobody_is_both_in_trials_and_held_out(folder, tmp_path, people, held_out):
    with pytest.raises(TrainingError, match="globs of the people to hold out were expected, without a '!'"):
        sweep.sweep(replace(study(folder), held_out=held_out), TRIED, tmp_path / "out")
    with pytest.raises(TrainingError, match="without a '!'"):
        by_users(people, held_out)
    assert not (tmp_path / "out").exists()


def test_who_is_held_out_and_cannot_be_asked_is_refused_before_anything_is_trained(folder, tmp_path):
    made = shutil.copytree(folder, tmp_path / "recordings")
    faster, more = load(made / "synth_4.npz"), load(made / "synth_3.npz")
    save(made / "synth_4.npz", replace(faster, fs=400.0))
    save(made / "synth_3.npz", replace(more, label_names=(*more.label_names[:-1], "other")))
    for held_out, said in (
        ("synth_4", "synth_4 is held out, and has 4 channels of .* at 400 Hz; synth_0 has"),
        ("synth_3", "synth_3 is held out, and has labels that nobody else has: other"),
    ):
        asked = replace(study(made), subjects="synth_0,synth_1,synth_2", held_out=held_out)
        with pytest.raises(TrainingError, match=said):
            sweep.sweep(asked, TRIED, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_users_of_pictures_are_held_out_too(people):
    rest, apart = by_users(people, "user1,user3")
    assert (rest.users, apart.users) == (("user0", "user2"), ("user1", "user3"))
    assert len(rest) + len(apart) == len(people)
    for part in (rest, apart):
        assert {(part.users[u], part.items[i]) for i, u in enumerate(part.user)} <= {
            (people.users[u], people.items[i]) for i, u in enumerate(people.user)
        }
    with pytest.raises(TrainingError, match="leaves nobody on one side; the users of the data: user0, user1, user2"):
        by_users(people, "nobody")
    with pytest.raises(TrainingError, match="leaves nobody on one side"):
        by_users(people, "*")
    lonely = replace(people, y=np.where(people.user == 0, 0, 1 + people.y % 2))
    with pytest.raises(TrainingError, match="Only people who are held out have"):
        by_users(lonely, "user0")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_on_ray_the_table_is_the_same(swept, folder, tmp_path):
    pytest.importorskip("ray")
    import ray

    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=2**27,
    )
    try:
        sweep.sweep(study(folder, runner=OnRay()), TRIED, tmp_path / "out")
    finally:
        ray.shutdown()
    sweep.sweep(study(folder), TRIED, swept[0].parent / "again")
    tables = [(path / "results.json").read_text() for path in (tmp_path / "out", swept[0].parent / "again")]
    assert tables[0] == tables[1]


def test_from_the_command_line_on_pictures(vit, people, tmp_path):
    out = tmp_path / "sweep"
    line = ["sweep", "--data", str(people.items[0].parents[2]), "--out", str(out), "--backbone", vit]
    line += [
        "--held-out",
        "user3",
        "--recipe",
        "linear-probe",
        "--vary",
        "personal=4,8",
        "--cache",
        str(tmp_path / "cache"),
    ]
    done = CliRunner().invoke(app, line, env={"COLUMNS": "120"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert re.search(r"trial \d is the best of 2 by shared", done.output)
    assert re.search(r"of people who were in no trial \(1\) the shared head has \d", done.output)
    table = json.loads((out / "results.json").read_text())
    assert {row["settings"]["personal"] for row in table["rows"]} == {4, 8}
    assert (out / table["best"] / "run.json").is_file()
