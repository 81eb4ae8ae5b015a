"""Evaluations from end to end: every method in every condition, and what is written of them."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from models.data.recordings import load_folder, save
from models.evaluation.personaliser import LocalPersonaliser
from models.evaluation.protocols import plan
from models.evaluation.run import GENERIC, PERSONAL, ZERO_SHOT, configuration_hash, evaluate, log_run
from models.evaluation.tables import to_markdown, to_table

CONDITIONS = ["1w", "5w", "1 cycle", "2 cycles", "3 cycles"]


@pytest.fixture(scope="module")
def found(bundle, people):
    local = LocalPersonaliser(bundle)
    told = []
    protocol = plan("cycles", local.manifest, people)
    result = evaluate(local, protocol, progress=lambda *said: told.append(said), command="headway evaluate …")
    assert told[-1] == ("done", 3, 3)
    return result


def test_every_method_is_scored_in_every_condition(found):
    assert found.conditions == [ZERO_SHOT, *CONDITIONS]
    assert list(found.table[GENERIC]) == [ZERO_SHOT]
    assert len(found.table) == 11
    for method in set(found.table) - {GENERIC}:
        assert list(found.table[method]) == CONDITIONS
        assert {s.users for s in found.table[method].values()} == {3}
    assert found.recordings_scored == 3 * 12
    assert sum(found.outcomes["1 cycle"].values()) == 3


def test_the_personal_head_gains_on_people_it_never_saw(found):
    personal, generic = found.table[PERSONAL]["3 cycles"], found.table[GENERIC][ZERO_SHOT]
    assert personal.mean.accuracy > generic.mean.accuracy
    assert not personal.harmed_by_a_point


def test_it_is_the_same_again(found, bundle, people):
    local = LocalPersonaliser(bundle)
    again = evaluate(local, plan("cycles", local.manifest, people), with_baselines=False)
    assert set(again.table) == {GENERIC, PERSONAL}
    assert again.users[PERSONAL] == found.users[PERSONAL]


def test_other_methods_have_rows_of_their_own(found, bundle, people):
    local = LocalPersonaliser(bundle)
    methods = ("map", "ncm", "lda", "ridge", "logistic", "auto")
    result = evaluate(local, plan("cycles", local.manifest, people), methods=methods, with_baselines=False)
    assert set(result.table) == {GENERIC, PERSONAL, *(f"{PERSONAL}, {method}" for method in methods[1:])}
    assert result.users[PERSONAL] == found.users[PERSONAL]
    assert result.outcomes == found.outcomes
    for method in methods[1:]:
        assert list(result.table[f"{PERSONAL}, {method}"]) == CONDITIONS
    shown = next(plan("cycles", local.manifest, people).subjects()).conditions[-1].calibration
    for method in ("map", "ncm"):
        local.calibrate(method, shown.x, shown.y, shown.repetition, method)
    assert not np.allclose(local.state("map")[1].weight, local.state("ncm")[1].weight)


def test_json_holds_figures_and_what_they_were_made_of(found, bundle):
    data = json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["table"][PERSONAL]["1 cycle"]["mean"]["accuracy"] == found.table[PERSONAL]["1 cycle"].mean.accuracy
    assert data["labelled"]["1w"] == 1
    assert list(data["labelled"]) == CONDITIONS
    assert data["labelled"]["3 cycles"] > data["labelled"]["1 cycle"] > data["labelled"]["5w"] == 5
    made = data["made_of"]
    assert made["configuration"] == configuration_hash(LocalPersonaliser(bundle))
    assert [s["stem"] for s in made["subjects"]] == ["synth_5", "synth_6", "synth_7"]
    assert all(len(s["digest"]) == 64 for s in made["subjects"])


def test_tables_name_each_method_and_the_length_of_a_vote(found):
    text = to_markdown(found)
    for method in found.table:
        assert method in text
    assert "voted (1160 ms)" in text  # (9 x 20 + 52) samples at 200 Hz
    assert "3 users, 36 recordings" in text
    table = to_table(found)
    assert table.row_count == len(found.table)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    words = " ".join(console.export_text().split())
    assert "…" not in words  # no name and no number is cut off at the usual width
    assert PERSONAL in words


def test_runs_are_logged_and_counted(found, tmp_path):
    log = tmp_path / "logs" / "runs.jsonl"
    assert [log_run(log, found), log_run(log, found)] == [1, 2]
    entry = json.loads(log.read_text().splitlines()[0])
    assert entry["model"] == "synth/1"
    assert entry["personal"]["1 cycle"] == round(100 * found.table[PERSONAL]["1 cycle"].mean.accuracy, 2)


def test_a_bundle_scored_over_its_own_training_says_so(bundle, people):
    local = LocalPersonaliser(bundle)
    p = plan("cycles", local.manifest, people, subjects="synth_0,synth_6", allow_training_subjects=True)
    assert "NOT HELD OUT: the model was trained on synth_0" in to_markdown(evaluate(local, p, with_baselines=False))


def test_training_from_scratch_is_a_method_like_any_other(bundle, people, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from models.evaluation import trained

    monkeypatch.setattr(trained, "STEPS", 15)
    local = LocalPersonaliser(bundle)
    p = plan("cycles", local.manifest, people, subjects="synth_6")
    methods = trained.methods(len(p.labels), None)
    result = evaluate(local, p, with_baselines=False, trained=methods, trained_conditions=["3 cycles"])
    row = result.table["trained from scratch"]
    assert list(row) == ["3 cycles"]
    assert row["3 cycles"].mean.accuracy > 0.4


def test_what_is_missing_is_said_and_json_stays_json(found, bundle, people, tmp_path):
    rec = load_folder(people, "synth_6")[0]
    stop = rec.stop.copy()
    stop[:4] = rec.start[:4] + 60  # the first repetition: one window a recording
    stop[-1] = rec.start[-1] + 10  # a scored recording without a window
    save(tmp_path / "synth_6.npz", replace(rec, stop=stop))
    local = LocalPersonaliser(bundle)
    result = evaluate(local, plan("cycles", local.manifest, tmp_path), with_baselines=False)
    assert "5w" not in result.conditions
    assert any("no condition of 5 windows a class" in note for note in result.notes)
    assert any("1 recordings shorter than a window" in note for note in result.notes)
    assert result.notes[0] in to_markdown(result)
    unsure = replace(found.users[GENERIC][ZERO_SHOT]["synth_6"], accepted=float("nan"))
    result.users[GENERIC][ZERO_SHOT]["synth_6"] = unsure
    data = json.loads(result.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["users"][GENERIC][ZERO_SHOT]["synth_6"]["accepted"] is None
    assert data["notes"] == result.notes
