"""Recipes for images, texts and sounds: each holds what it promises, repeats, resumes and makes a bundle."""

import itertools
import json
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch

from exporters import bundle as bundles
from exporters.export import export_run
from models.backbones import create_encoder
from models.backbones.freezing import FrozenChanged
from models.data.collections import load_collection
from models.training import TrainingError, tuned
from models.training.devices import Devices, one_process
from models.training.fine_tuning import fine_tune
from models.training.inputs import Augment
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.loop import Loop, fit
from models.training.probing import unit
from models.training.runners import Where
from models.training.timetable import Layer, Timetable
from tests import tiny_media
from tests.recipes.conftest import arrays, same

ALL = ("lp-ft", "gradual", "freezeout", "full", "scratch")


@pytest.fixture(scope="module")
def runs(small, pictures, tmp_path_factory):
    made = {}

    def run(recipe):
        if recipe not in made:
            made[recipe] = fine_tune(pictures, small(recipe), tmp_path_factory.mktemp(recipe) / "run", command="asked")
        return made[recipe]

    return run


class Watched:
    """Notes what the loop does: which tensors differ from the start after each step, and the largest rates."""

    def __init__(self, monkeypatch):
        from models.training.loop import _Fit

        self.changed, self.rates, self.heads = [], [], []
        real = _Fit._take_step

        def watched(fit):
            before = {k: v.clone() for k, v in fit.work.objective.state_dict().items()}
            self.heads.append((before["head.weight"].numpy().copy(), before["head.bias"].numpy().copy()))
            loss = real(fit)
            after = fit.work.objective.state_dict()
            self.changed.append({k for k, v in before.items() if not torch.equal(v, after[k])})
            self.rates.append(max(g["lr"] for g in fit.optimiser.param_groups))
            return loss

        monkeypatch.setattr(_Fit, "_take_step", watched)


@pytest.mark.parametrize("recipe", ["lp-ft", "scratch"])
def test_a_run_makes_a_bundle_that_answers_as_torch_does(runs, recipe, pictures, tmp_path):
    run = runs(recipe)
    assert run.provenance["recipe"] == recipe
    assert run.provenance["command"] == "asked"
    assert run.provenance["config"]["seed"] == 0
    assert 0 <= run.evaluation["zero_shot"]["mean"] <= 1
    assert np.isfinite(run.prior.means).all()
    bundle = bundles.load(export_run(run.folder, tmp_path, name="tuned", user_labels=4))
    assert bundle.manifest.parity["max_error"] <= 1e-4
    session = ort.InferenceSession(bundle.backbone, providers=["CPUExecutionProvider"])
    z = session.run(None, {"input": run.items[:5]})[0]
    with torch.no_grad():
        assert np.abs(z - run.backbone()(torch.from_numpy(run.items[:5])).numpy()).max() <= 1e-4
    hit = run.prior.generic_weight @ np.asarray(session.run(None, {"input": run.items})[0]).T
    assert hit.shape == (3, len(run.items))


@pytest.mark.parametrize("recipe", ALL)
def test_the_curves_and_stages_of_every_network_are_kept(runs, recipe):
    run = runs(recipe)
    networks = json.loads((run.folder / "history.json").read_text())["networks"]
    assert [n["network"] for n in networks] == ["fold 1 of 2", "fold 2 of 2", "network"]
    for network, stage in zip(networks, run.provenance["stages"][:2], strict=False):
        best = min(network["validation"], key=lambda point: point[1])
        assert (best[0], best[1]) == (stage["best_step"], pytest.approx(stage["log_loss"], abs=1e-6))
    assert run.provenance["stages"][-1]["steps"] == max(
        1, int(np.median([s["best_step"] for s in run.provenance["stages"][:2]]))
    )


def test_lp_ft_begins_with_a_head_at_its_plateau_and_then_learns_at_a_hundredth(small, pictures, tmp_path, monkeypatch):
    watched = Watched(monkeypatch)
    config = small("lp-ft", folds=1, steps=4, augment=False, dropout=0.0, label_smoothing=0.0)
    fine_tune(pictures, config, tmp_path / "run")
    assert max(watched.rates) <= config.rate / 100
    assert any(k.startswith("encoder.network.embeddings") for k in watched.changed[0]), "all layers are unfrozen"
    # The first head is the convex problem's: its class-balanced gradient is that of the pull alone.
    weight, bias = watched.heads[0]
    encoder = create_encoder(config.backbone)
    keep = np.concatenate([np.flatnonzero(pictures.y == c) for c in range(3)])
    from models.training.features import features_of

    z = unit(features_of(encoder, pictures)[0].astype(float))[keep]
    logits = tuned.SCALE * z @ weight.T + bias
    shares = np.exp(logits - np.logaddexp.reduce(logits, 1, keepdims=True))
    assert (logits.argmax(1) == pictures.y[keep]).mean() > 0.9, "a head at its plateau before anything is unfrozen"
    assert np.abs((shares - np.eye(3)[pictures.y[keep]]).mean(0)).max() < 0.1


def test_gradual_unfreezes_one_layer_after_the_other_from_the_top(small, pictures, tmp_path, monkeypatch):
    watched = Watched(monkeypatch)
    config = small("gradual", folds=1, steps=16, augment=False)
    encoder = create_encoder(config.backbone)
    table = tuned.timetable_of(encoder, config, 16)
    fine_tune(pictures, config, tmp_path / "run")
    assert [len(table.learning(s)) for s in (0, 2, 4, 6)] == [1, 2, 3, 4]
    for step, changed in enumerate(watched.changed[:16]):
        allowed = tuple(p for layer in table.learning(step) for p in layer.prefixes)
        assert changed
        assert all(k.startswith(allowed) for k in changed), f"step {step}"
    assert watched.changed[0] == {"head.weight", "head.bias"}
    assert any("embeddings" in k for k in watched.changed[15])


def test_freezeout_stops_layers_from_the_input_on_and_computes_nothing_backwards_through_them(
    small, pictures, tmp_path, monkeypatch
):
    watched = Watched(monkeypatch)
    config = small("freezeout", folds=1, steps=16, augment=False, freezeout_first=0.5)
    table = tuned.timetable_of(create_encoder(config.backbone), config, 16)
    fine_tune(pictures, config, tmp_path / "run")
    assert len(table.learning(0)) == 4
    assert len(table.learning(15)) == 1
    for step, changed in enumerate(watched.changed[:16]):
        frozen = tuple(p for layer in table.layers if not layer.learns(step) for p in layer.prefixes)
        assert changed
        assert not any(k.startswith(frozen) for k in changed if frozen), f"step {step}"


def test_full_changes_everything_from_the_first_step(small, pictures, tmp_path, monkeypatch):
    watched = Watched(monkeypatch)
    fine_tune(pictures, small("full", folds=1, steps=2), tmp_path / "run")
    config = small("full")
    parameters = {f"encoder.{n}" for n, _ in create_encoder(config.backbone).named_parameters()}
    # Two steps: before the head has moved from zero, no gradient passes it.
    assert parameters <= watched.changed[0] | watched.changed[1] | {
        n for n in parameters if "mask_token" in n or "pooler" in n
    }


def test_scratch_starts_from_random_weights_of_the_seed_not_from_the_pre_trained_ones(small):
    from models.training.starting import starting_encoder

    pretrained = create_encoder(small("scratch").backbone).state_dict()
    first, again = (starting_encoder(small("scratch")).state_dict() for _ in range(2))
    other = starting_encoder(small("scratch", seed=1)).state_dict()
    name = (
        "network.layers.0.attention.q_proj.weight"
        if "network.layers.0.attention.q_proj.weight" in first
        else next(n for n, v in first.items() if v.ndim == 2)
    )
    assert same(first, again)
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], pretrained[name])


def test_the_same_seed_gives_the_same_weights_and_another_does_not(runs, small, pictures, tmp_path):
    first = arrays(runs("lp-ft"))
    assert same(first, arrays(fine_tune(pictures, small("lp-ft"), tmp_path / "again")))
    assert not same(first, arrays(fine_tune(pictures, small("lp-ft", seed=1), tmp_path / "other")))


@pytest.mark.parametrize("recipe", ["lp-ft", "gradual", "freezeout"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_at_a_random_step_resumes_to_the_same_weights(
    runs, small, pictures, tmp_path, monkeypatch, recipe, seed
):
    whole = arrays(runs(recipe))
    killed_at = int(np.random.default_rng((seed, len(recipe))).integers(1, 26))
    drawn, real = itertools.count(), tuned.Tuning.batch

    def die(self, *args):
        if next(drawn) == killed_at:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(tuned.Tuning, "batch", die)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(pictures, small(recipe), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    monkeypatch.setattr(tuned.Tuning, "batch", real)
    assert same(whole, arrays(fine_tune(pictures, small(recipe), tmp_path / "run", resume=True)))


def test_averaged_weights_resume_too(small, pictures, tmp_path, monkeypatch):
    config = small("full", ema=0.9, folds=1, balance="none")
    whole = arrays(fine_tune(pictures, config, tmp_path / "whole"))
    assert not same(whole, arrays(fine_tune(pictures, small("full", folds=1, balance="none"), tmp_path / "plain")))
    drawn, real = itertools.count(), tuned.Tuning.batch

    def die(self, *args):
        if next(drawn) == 9:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(tuned.Tuning, "batch", die)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(pictures, config, tmp_path / "run")
    monkeypatch.setattr(tuned.Tuning, "batch", real)
    assert same(whole, arrays(fine_tune(pictures, config, tmp_path / "run", resume=True)))


def test_with_people_the_record_of_the_guard_is_of_networks_that_had_left_them_out(small, people, tmp_path):
    run = fine_tune(people, small("lp-ft"), tmp_path / "run")
    assert run.prior.hyper.evidence
    assert not run.prior.hyper.pooled
    held = [name for s in run.provenance["stages"][:-1] for name in s["held_out"]]
    assert sorted(held) == sorted(people.users)
    assert run.evaluation["zero_shot"]["of"] == "users"


def test_batch_norms_stand_still_unless_asked(pictures, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    settings = {"size": 32, "resize": 32}
    few = {"steps": 2, "folds": 1, "batch": 6, "evaluate_every": 2, "personal": 8, "recipe": "full", "augment": False}
    before = create_encoder("package:efficientnet-lite0", settings).state_dict()
    for asked in (False, True):
        config = tuned.TuneConfig(backbone="package:efficientnet-lite0", settings=settings, batch_norm=asked, **few)
        after = fine_tune(pictures, config, tmp_path / str(asked)).backbone().encoder.state_dict()
        moved = [k for k in after if "running" in k and not torch.equal(before[k], after[k])]
        assert bool(moved) is asked
        learned = [k for k in after if k.endswith("weight") and not torch.equal(before[k], after[k])]
        assert learned


class OneLayer:
    """The smallest work there is: a linear layer beside a frozen one."""

    def __init__(self, spoil=None):
        self.objective = torch.nn.Module()
        self.objective.learns, self.objective.still = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        self.objective.forward = lambda x: (self.objective.learns(x) + self.objective.still(x)).square().mean()
        self.spoil = spoil

    def batch(self, rng, step, rank, world):
        if step == 3 and self.spoil is not None:
            self.spoil(self.objective)
        return (torch.from_numpy(rng.standard_normal((4, 2)).astype(np.float32)),)

    def validation(self):
        return None


def fitted(work):
    table = Timetable((Layer(("learns",), lambda step: 0.1),))
    return fit(one_process(), work, table, Loop(6, 6, 1, 0, 0.0), name="one layer")


def test_what_is_frozen_is_bit_identical_after_every_step():
    work = OneLayer()
    before = {k: v.clone() for k, v in work.objective.state_dict().items()}
    fitted(work)
    after = work.objective.state_dict()
    assert {k for k, v in before.items() if not torch.equal(v, after[k])} == {"learns.weight", "learns.bias"}

    def nudge(objective):
        with torch.no_grad():
            objective.still.bias.add_(1e-6)

    with pytest.raises(FrozenChanged, match=r"'still\.bias' is frozen and has changed"):
        fitted(OneLayer(nudge))


@pytest.mark.parametrize(("name", "said"), [("still", "is frozen"), ("learns", "learns")])
def test_changing_requires_grad_behind_the_plans_back_raises(name, said):
    def toggle(objective):
        weight = objective.get_submodule(name).weight
        weight.requires_grad_(not weight.requires_grad)

    with pytest.raises(FrozenChanged, match=rf"'{name}\.weight' {said}, and its requires_grad was changed"):
        fitted(OneLayer(toggle))


def test_augmentation_does_not_depend_on_who_takes_a_row_and_keeps_the_form(vit):
    encoder = create_encoder(vit)
    x = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    augment = Augment(encoder.input, 7)
    whole = augment(x, 3, range(6))
    assert whole.dtype == torch.uint8
    assert not torch.equal(whole, torch.from_numpy(x))
    assert torch.equal(whole[1::2], augment(x[1::2], 3, range(1, 6, 2)))
    assert not torch.equal(whole, augment(x, 4, range(6)))


def test_cached_features_are_of_fixed_views_and_nothing_stochastic(vit, pictures, tmp_path):
    def probe(**changes):
        settings = {"backbone": vit, "recipe": "cached-features", "personal": 8, **changes}
        return LinearProbeConfig.model_validate(settings)

    with pytest.raises(TrainingError, match="a random change of it would be the same for ever"):
        train_probe(pictures, probe(augment=True), tmp_path / "run", cache=tmp_path / "cache")
    with pytest.raises(TrainingError, match="cached-features needs a folder"):
        train_probe(pictures, probe(), tmp_path / "run")
    first = train_probe(pictures, probe(views=3), tmp_path / "first", cache=tmp_path / "cache")
    again = train_probe(pictures, probe(views=3), tmp_path / "again", cache=tmp_path / "cache")
    plain = train_probe(pictures, probe(), tmp_path / "plain", cache=tmp_path / "cache")
    assert first.provenance["features_computed"] == len(pictures)
    assert again.provenance["features_computed"] == 0
    assert plain.provenance["features_computed"] == len(pictures)
    assert same(arrays(first), arrays(again))
    assert not np.array_equal(arrays(first)["weight"], arrays(plain)["weight"])


def test_a_branch_keeps_the_trunk_and_the_old_bundle_as_they_were(runs, small, others, tmp_path):
    trunk = runs("lp-ft")
    old = export_run(trunk.folder, tmp_path / "models", name="trunk")
    before = {f.name: f.read_bytes() for f in old.iterdir()}
    config = small("full", folds=1, start=str(trunk.folder), learns_from=trunk.backbone().taps[-1])
    branch = fine_tune(others, config, tmp_path / "branch")
    export_run(branch.folder, tmp_path / "models", name="trunk.group")
    assert {f.name: f.read_bytes() for f in old.iterdir()} == before
    was, now = trunk.backbone().encoder.state_dict(), branch.backbone().encoder.state_dict()
    changed = {k for k, v in was.items() if not torch.equal(v, now[k])}
    assert changed
    last = trunk.backbone().taps[-1]
    own = [k for k in was if f".{last}." in f".{k}" or "layernorm" in k]
    assert changed <= set(own)


def test_what_cannot_be_fine_tuned_is_a_sentence(small, pictures, tmp_path):
    onnx_file = tiny_media.image_encoder(tmp_path)
    with pytest.raises(TrainingError, match=r"has no weights that could learn; its recipe is linear-probe"):
        fine_tune(pictures, small("full", backbone=onnx_file), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"has no layer 'nowhere'; there are: "):
        fine_tune(pictures, small("full", learns_from="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    table = tmp_path / "t.csv"
    table.write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
    with pytest.raises(TrainingError, match="The data are texts, and the backbone reads images"):
        fine_tune(load_collection(table), small("full"), tmp_path / "run")
    with pytest.raises(TrainingError, match="nothing to resume"):
        fine_tune(pictures, small("full"), tmp_path / "run", resume=True)


def test_a_rate_that_diverges_is_a_sentence(small, pictures, tmp_path):
    with pytest.raises(TrainingError, match=r"diverged"):
        fine_tune(pictures, small("full", learning_rate=1e30, folds=1), tmp_path / "run")


def test_texts_of_different_lengths_are_fine_tuned_with_tokens_dropped(small, tmp_path):
    encoder = tiny_media.text_encoder(tmp_path)
    rng, table = np.random.default_rng(0), tmp_path / "texts.csv"
    rows = [
        (" ".join(tiny_media.sentence(c, rng) for _ in range(1 + i % 3)), c)
        for c in tiny_media.WORDS
        for i in range(12)
    ]
    table.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    data = load_collection(table)
    run = fine_tune(data, small("lp-ft", backbone=encoder, balance="none"), tmp_path / "run")
    assert run.evaluation["zero_shot"]["mean"] > 0.6
    bundle = bundles.load(export_run(run.folder, tmp_path / "models", name="texts"))
    assert bundle.manifest.parity["max_error"] <= 1e-4


def test_mixed_precision_gives_about_the_same_network(small, pictures, tmp_path):
    config = small("full", folds=1, steps=4, dropout=0.0)
    full = fine_tune(pictures, config, tmp_path / "full")
    mixed = fine_tune(pictures, config, tmp_path / "mixed", where=Where(Devices(precision="bf16-mixed")))
    assert not same(arrays(full), arrays(mixed))
    for name, value in full.backbone().encoder.state_dict().items():
        assert torch.allclose(value, mixed.backbone().encoder.state_dict()[name], atol=2e-3), name


@pytest.mark.parametrize(("balance", "wanted"), [("class", [1, 1]), ("none", [1, 3])])
def test_classes_are_drawn_equally_often_where_asked(small, tmp_path, balance, wanted):
    rng = np.random.default_rng(0)
    for label, count in (("rare", 6), ("usual", 18)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "data" / label / f"{i}.png").write_bytes(tiny_media.picture((90, 90, 90), rng))
    data = load_collection(tmp_path / "data")
    shares = tuned._shares(data, np.arange(24), balance)
    drawn = np.full(24, 1 / 24) if shares is None else shares
    share = np.bincount(data.y, drawn)
    assert share / share[0] == pytest.approx(wanted)


def test_figures_and_record_are_of_networks_that_had_not_seen_what_they_judge(small, people, tmp_path, monkeypatch):
    from models.training import fine_tuning, networks

    outcomes, heads = [], []
    real_fit, real_top = networks.fit_job, fine_tuning.fit_top
    monkeypatch.setattr(
        networks, "fit_job", lambda job, tick: outcomes.append((job, real_fit(job, tick))) or outcomes[-1][1]
    )
    monkeypatch.setattr(fine_tuning, "fit_top", lambda *args: heads.append(args[-1]) or real_top(*args))
    fine_tune(people, small("lp-ft"), tmp_path / "run")
    assert len(outcomes) == 3
    for (job, outcome), judge in zip(outcomes, heads[0].judges, strict=False):
        assert not set(job.keep) & set(job.out)
        assert set(np.flatnonzero(judge.out)) == set(job.out)
        assert not set(people.user[job.keep]) & set(people.user[job.out])
        assert np.array_equal(judge.features, outcome.features)
        assert np.array_equal(judge.logits, outcome.logits)
    # Whatever a fold leaves out is called: its network, and the head that it begins with, are the same.
    left = outcomes[0][0].out
    y = people.y.copy()
    y[left] = (y[left] + 1) % 3
    first = outcomes[0]
    outcomes.clear()
    fine_tune(replace(people, y=y), small("lp-ft"), tmp_path / "other")
    assert np.array_equal(outcomes[0][0].head[0], first[0].head[0])
    losses = [o.fitted.curves["loss"] for o in (first[1], outcomes[0][1])]
    assert losses[0] == losses[1]


def test_what_cannot_be_started_from_is_a_sentence(runs, small, pictures, others, tmp_path):
    start = str(runs("lp-ft").folder)
    with pytest.raises(TrainingError, match="was trained on 30 of these 30 examples, so nothing could be left out"):
        fine_tune(pictures, small("full", start=start), tmp_path / "run")
    with pytest.raises(TrainingError, match="leave the recipe scratch out"):
        fine_tune(others, small("scratch", start=start), tmp_path / "run")
    with pytest.raises(TrainingError, match="leave settings of the encoder out"):
        fine_tune(others, small("full", start=start, settings={"size": 32}), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"is a run of hf:.*, and the backbone is package:efficientnet-lite0"):
        fine_tune(others, small("full", start=start, backbone="package:efficientnet-lite0"), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"no finished training run"):
        fine_tune(others, small("full", start=str(tmp_path / "none")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_fold_says_how_many_were_judged(small, people, tmp_path):
    run = fine_tune(people, small("lp-ft", folds=1, steps=2), tmp_path / "run")
    assert run.evaluation["users"] == 1
    assert run.evaluation["protocol"].endswith("1 of 4 judged")
