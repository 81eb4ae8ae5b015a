"""One encoder for several tasks: what the loss promises, that every recipe keeps it, and what comes behind."""

import itertools
import json
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch

from exporters import bundle as bundles
from exporters.export import ExportError, export_run
from models.backbones import create_encoder
from models.training import TrainingError, tuned
from models.training.fine_tuning import fine_tune
from models.training.inputs import Inputs
from models.training.linear_probe import LinearProbeConfig
from models.training.several import fine_tune_tasks, probe_tasks
from models.training.tasks_run import load_tasks_run
from models.training.tuned import encoded
from models.training.tuned_tasks import Answers, TasksConfig, TasksJob, columns_of
from tests.recipes.conftest import same
from tests.tiny_tasks import tiny_tasks

ALL = ("lp-ft", "gradual", "freezeout", "full", "scratch")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pytest.importorskip("PIL.Image")
    return tiny_tasks(tmp_path_factory.mktemp("tasks") / "data")


@pytest.fixture(scope="module")
def config(vit):
    def settings(recipe="lp-ft", **changes):
        few = {"steps": 6, "folds": 2, "batch": 8, "evaluate_every": 2, "personal": 8, "patience": 20}
        return TasksConfig.model_validate({"backbone": vit, "recipe": recipe, **few, **changes})

    return settings


@pytest.fixture(scope="module")
def run(data, config, tmp_path_factory):
    return fine_tune_tasks(data, config(), tmp_path_factory.mktemp("run") / "run", command="asked")


@pytest.fixture(scope="module")
def probed(data, vit, tmp_path_factory):
    return probe_tasks(data, LinearProbeConfig(backbone=vit, personal=16), tmp_path_factory.mktemp("lp") / "run")


def arrays(run):
    state = {name: value.numpy() for name, value in run.backbone().state_dict().items()}
    first, second = (task.prior for task in run.tasks)
    return {**state, "means": first.means, "moment": second.second_moment, "residual": second.residual_variance}


def network(data, config, **weights):
    """The network of all tasks with a head that is not zero, and the job that trains it."""
    job = TasksJob(
        name="n", recorded={}, state={}, files={}, head=None, collection=data, keep=np.arange(len(data)),
        out=np.arange(0), config=config(task_weights=weights, dropout=0.0), steps=2, seed=0,
        checkpoint=None, devices=None, logs=(None, ()),
    )  # fmt: skip
    encoder = create_encoder(job.config.backbone)
    made = job.tuned(encoder)
    generator = torch.Generator().manual_seed(1)
    made.head.weight.data.normal_(0, 0.3, generator=generator)
    return made, job, Inputs(encoder, data)


def without(data, name, rows):
    """The data, of whose task `name` some rows are not known."""
    tasks = []
    for task in data.tasks:
        if task.name == name:
            keep = ~np.isin(task.rows, rows)
            values = {"y": task.data.y[keep]} if task.labels else {"t": task.data.t[keep]}
            items = tuple(np.array(task.data.items, object)[keep])
            same = {"user": task.data.user[keep], "repetition": task.data.repetition[keep], "items": items}
            task = replace(task, rows=task.rows[keep], data=replace(task.data, **same, **values))
        tasks.append(task)
    return replace(data, tasks=tuple(tasks))


def losses(data, config, index, **weights):
    """Loss of a batch, and its gradient in the head, by task."""
    made, job, inputs = network(data, config, **weights)
    work = job.tuning(made, inputs)
    loss = made(torch.from_numpy(inputs.take(index)), *work.answers(index))
    loss.backward()
    return loss.item(), [made.head.weight.grad[own].clone() for own in columns_of(data.tasks)]


def test_answers_that_are_not_known_do_not_touch_the_other_tasks_loss(data, config):
    colour, lit = data.tasks
    index = np.intersect1d(lit.rows, np.setdiff1d(np.arange(len(data)), colour.rows))[:6]
    assert len(index) >= 3, "lit is known of these, and colour is not"
    loss, (first, second) = losses(data, config, index)
    assert not first.any()
    assert second.any()
    made, job, inputs = network(data, config)
    _, said = encoded(made, inputs, index)
    own = columns_of(data.tasks)[1]
    scale = job.learned().scales[1]
    t = (lit.data.t[np.searchsorted(lit.rows, index)] - scale[0]) / scale[1]
    # Half: the mean over two tasks; and the share of items that it is known of.
    assert loss == pytest.approx(0.5 * len(data) / len(lit.rows) * ((said[:, own] - t) ** 2).mean(), rel=1e-4)


def test_emptying_a_cell_leaves_the_other_tasks_gradient_as_it_is(data, config):
    colour, _ = data.tasks
    index = np.arange(12)
    gone = colour.rows[colour.rows < 4]
    _, (before, lit) = losses(data, config, index)
    _, (after, same) = losses(without(data, "colour", gone), config, index)
    assert torch.equal(lit, same)
    assert not torch.equal(before, after)


def test_a_few_answers_count_as_much_as_many_on_average(data):
    few = without(data, "colour", data.tasks[0].rows[::2])
    for known, balanced in itertools.product((data, few), (False, True)):
        shares = Answers.of(known, np.arange(len(data)), balanced=balanced).share
        assert np.allclose(shares.mean(0), 1)
        assert (shares[np.setdiff1d(np.arange(len(data)), known.tasks[0].rows), 0] == 0).all()
    y, share = few.tasks[0].data.y, Answers.of(few, np.arange(len(data)), balanced=True).share[few.tasks[0].rows, 0]
    assert np.allclose([share[y == c].sum() for c in range(3)], share.sum() / 3), "every label weighs the same"


def test_knowing_nothing_costs_the_same_in_every_task(data, config):
    made, job, inputs = network(data, config)
    made.head.weight.data.zero_()
    everything = np.arange(len(data))
    made.label_smoothing = 0.0
    loss = made(torch.from_numpy(inputs.take(everything)), *job.tuning(made, inputs).answers(everything))
    assert loss.item() == pytest.approx(1, rel=1e-4)


def test_weights_are_ratios(data, config):
    index = np.arange(12)
    _, even = losses(data, config, index)
    _, (colour, lit) = losses(data, config, index, colour=3.0)
    assert torch.allclose(colour, 1.5 * even[0])
    assert torch.allclose(lit, 0.5 * even[1])


@pytest.mark.parametrize("recipe", ALL)
def test_by_every_recipe_both_heads_learn_and_the_trunk_is_one(data, config, recipe, tmp_path):
    made = fine_tune_tasks(data, config(recipe, folds=1, steps=4), tmp_path / "run")
    weight = made.backbone().weight
    for own in columns_of(data.tasks):
        assert weight[:, own].abs().sum() > 0
    assert [task.name for task in made.tasks] == ["colour", "lit"]
    assert made.provenance["recipe"] == recipe


def test_both_tasks_are_learned_as_well_as_the_features_allow(probed, run):
    for made in (probed, run):
        colour, lit = (task.evaluation["zero_shot"] for task in made.tasks)
        assert colour["mean"] > 0.9
        assert lit["r2"]["lit"] > 0.5
        assert lit["rmse"]["lit"] < 20
        assert max(e.users for e in made.tasks[0].prior.hyper.evidence) == 4
        assert {e.users for e in made.tasks[1].prior.settings.evidence} == {4}


def test_the_shared_heads_say_what_the_graph_computes(run, data):
    z = run.backbone()(torch.from_numpy(run.items)).detach().numpy()
    colour, lit = run.tasks
    columns = [np.concatenate([z[:, a:b] for a, b in run.architecture.columns(i)], 1) for i in range(2)]
    said = columns[0] @ colour.prior.generic_weight.T + colour.prior.generic_bias
    assert np.allclose(np.exp(said).sum(1), 1, atol=1e-4)
    values = lit.prior.generic.logits(columns[1])[:, 0]
    assert 0 < values.mean() < 100, "in the target's own unit"
    assert abs(z[:, -1].mean()) < 1, "and in the graph in deviations, whatever the unit is"
    assert np.corrcoef(values, z[:, -1])[0, 1] == pytest.approx(1)


def test_a_bundle_of_it_answers_as_torch_does_and_its_card_has_every_output(run, tmp_path):
    bundle = bundles.load(export_run(run.folder, tmp_path, name="both", user_labels=4))
    manifest = bundle.manifest
    assert manifest.names == ("colour", "lit")
    assert manifest.parity["max_error"] <= 1e-4
    assert (manifest.user_labels, manifest.outputs[0].user_labels) == (4, 0)
    session = ort.InferenceSession(bundle.backbone, providers=["CPUExecutionProvider"])
    z = session.run(None, {"input": run.items[:5]})[0]
    with torch.no_grad():
        assert np.abs(z - run.backbone()(torch.from_numpy(run.items[:5])).numpy()).max() <= 1e-4
    for output, task in zip(bundle.outputs, run.tasks, strict=True):
        assert output.manifest.evaluation == task.evaluation
        assert output.population.dim == output.manifest.feature_dim
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert "Output `colour`: heads for 3 labels: blue, green, red; a user may add 4" in card
    assert "Root mean squared error of the shared head on left-out people: lit [%]" in card


def test_one_task_of_numbers_is_a_bundle_of_targets_and_needs_no_people(vit, tmp_path):
    one = tiny_tasks(tmp_path / "data", "lit", users=0, missing=0.0)
    made = probe_tasks(one, LinearProbeConfig(backbone=vit, personal=16), tmp_path / "run")
    assert made.provenance["population"] == {"lit": "pooled"}
    manifest = bundles.load(export_run(made.folder, tmp_path / "models", name="lit")).manifest
    assert (manifest.task, manifest.names, manifest.regression.evidence) == ("regression", (), ())
    assert manifest.evaluation["zero_shot"]["r2"]["lit"] > 0.5
    with pytest.raises(ExportError, match="user_labels are of outputs with labels"):
        export_run(made.folder, tmp_path / "models", name="lit", user_labels=2)


def test_the_same_seed_gives_the_same_run(run, data, config, tmp_path):
    assert same(arrays(run), arrays(fine_tune_tasks(data, config(), tmp_path / "again")))
    assert not same(arrays(run), arrays(fine_tune_tasks(data, config(seed=1), tmp_path / "other")))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_run_killed_at_a_random_step_resumes_to_the_same_weights(run, data, config, tmp_path, monkeypatch, seed):
    killed_at = int(np.random.default_rng(seed).integers(1, 13))
    drawn, real = itertools.count(), tuned.Tuning.batch

    def die(self, *args):
        if next(drawn) == killed_at:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(tuned.Tuning, "batch", die)
    with pytest.raises(KeyboardInterrupt):
        fine_tune_tasks(data, config(), tmp_path / "run")
    monkeypatch.setattr(tuned.Tuning, "batch", real)
    with pytest.raises(TrainingError, match="begun with other settings"):
        fine_tune_tasks(without(data, "lit", data.tasks[1].rows[:1]), config(), tmp_path / "run", resume=True)
    assert same(arrays(run), arrays(fine_tune_tasks(data, config(), tmp_path / "run", resume=True)))


def test_figures_are_of_networks_that_had_not_seen_what_they_judge(data, config, tmp_path, monkeypatch):
    from models.training import networks

    outcomes, real = [], networks.fit_job
    monkeypatch.setattr(
        networks, "fit_job", lambda job, tick: outcomes.append((job, real(job, tick))) or outcomes[-1][1]
    )
    made = fine_tune_tasks(data, config(), tmp_path / "run")
    lit, own = data.tasks[1], columns_of(data.tasks)[1]
    values = np.zeros(len(data))
    for job, outcome in outcomes[:2]:
        assert not set(data.user[job.keep]) & set(data.user[job.out])
        mean, deviation = job.learned().scales[1]
        known = np.intersect1d(job.keep, lit.rows)
        assert mean == pytest.approx(lit.data.t[np.isin(lit.rows, known)].mean())
        values[job.out] = (mean + deviation * outcome.logits[:, own])[job.out, 0]
    t, v = lit.data.t[:, 0], values[lit.rows]
    share = np.clip(np.polyfit(v, t, 1)[0], 0, 1)
    error = t - (t.mean() + share * (v - v.mean()))
    assert made.tasks[1].evaluation["zero_shot"]["rmse"]["lit"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)


def test_a_head_of_lp_ft_begins_at_its_plateau_in_every_task(data, config, tmp_path, monkeypatch):
    from models.training import networks

    jobs, real = [], networks.fit_job
    monkeypatch.setattr(networks, "fit_job", lambda job, tick: jobs.append(job) or real(job, tick))
    fine_tune_tasks(data, config(folds=1, steps=2), tmp_path / "run")
    made = jobs[0].tuned(jobs[0].encoder())
    _, said = encoded(made, Inputs(made.encoder, data), np.arange(len(data)))
    colour, lit = data.tasks
    first, second = columns_of(data.tasks)
    assert (said[colour.rows][:, first].argmax(1) == colour.data.y).mean() > 0.9
    scale = jobs[0].learned().scales[1]
    assert ((said[lit.rows][:, second] - (lit.data.t - scale[0]) / scale[1]) ** 2).mean() < 0.5


def test_a_weight_of_no_task_and_a_label_of_one_fold_are_sentences(data, config, tmp_path):
    with pytest.raises(TrainingError, match="task_weights names 'age'; the tasks are colour, lit"):
        fine_tune_tasks(data, config(task_weights={"age": 2}), tmp_path / "run")
    with pytest.raises(ValueError, match="greater than 0"):
        config(task_weights={"lit": 0})
    colour = data.tasks[0]
    blue = colour.rows[colour.data.y == 0]
    rare = without(data, "colour", blue[data.user[blue] > 0])
    with pytest.raises(TrainingError, match="Task colour: 'blue' has examples in one of 4 folds only"):
        fine_tune_tasks(rare, config(folds=4), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_one_task_starts_from_one_of_several_and_the_reverse(run, data, pictures, config, small, tmp_path):
    assert fine_tune(pictures, small("full", start=str(run.folder), steps=2, folds=1), tmp_path / "one").labels
    with pytest.raises(TrainingError, match="was trained on"):
        fine_tune_tasks(data, config("full", start=str(run.folder)), tmp_path / "again")
    assert load_tasks_run(run.folder).tasks[1].labels == ()


def test_curves_are_kept(run):
    networks = json.loads((run.folder / "history.json").read_text())["networks"]
    assert [n["network"] for n in networks] == ["fold 1 of 2", "fold 2 of 2", "network"]
    assert all(0 <= worth <= 1 for n in networks for _, _, worth in n["validation"])
    assert len(networks[0]["held_out"]) == 2
