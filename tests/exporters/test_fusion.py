"""Fused bundles: the graph computes what its members and the join do, with parts present and missing."""

import shutil

import numpy as np
import onnx
import pytest

from exporters import bundle as bundles
from exporters import int8
from exporters.bridge import Rows, bridge
from exporters.export import ExportError, onnx_forward
from exporters.fusion import Member
from exporters.gate import PrecisionError
from exporters.parity import ParityError
from exporters.precision import convert, features
from exporters.worth import Labelled
from models.data.parts import pack
from models.heads.head import softmax
from tests import tiny_fused
from tests.tiny import LABELS, tiny_prior, write_tiny_bundle


@pytest.fixture(scope="module", params=["late", "concatenated"])
def fused(request, tmp_path_factory):
    return bundles.load(tiny_fused.write_sensors(tmp_path_factory.mktemp("fused"), request.param))


def generic(bundle, rows):
    prior = bundle.prior
    z = onnx_forward(bundle.backbone)(rows)
    assert np.isfinite(z).all()
    assert z.shape == (len(rows), bundle.manifest.feature_dim)
    return softmax(z @ prior.generic_weight.T + prior.generic_bias)


def test_a_fused_bundle_says_what_its_parts_are(fused):
    spec = fused.manifest.input
    assert [(p.name, p.shape, p.sample_rate, p.modality) for p in spec.parts] == [
        ("arm", (-1, 2, 4), 100.0, "emg"),
        ("watch", (-1, 4, 6), 50.0, "imu"),
    ]
    assert spec.shape == (-1, 2 + 8 + 24)
    assert spec.modality == "emg+imu"
    assert fused.manifest.parity["max_error"] < 1e-4


def test_releases_that_know_of_no_parts_refuse_a_fused_bundle(fused, tmp_path):
    assert fused.manifest.manifest_version == "2.0"  # of which they read 1.x
    plain = bundles.load(write_tiny_bundle(tmp_path, "arm"))
    assert plain.manifest.manifest_version == "1.0"
    text = (plain.path / "manifest.json").read_text()
    (plain.path / "manifest.json").write_text(text.replace('"shape":', '"shapes": [], "shape":'))
    with pytest.raises(bundles.BundleError, match=r"input\.shapes"):
        bundles.load(plain.path)


def test_each_part_alone_answers_as_its_member_does_and_both_are_surer(fused):
    arm, watch, labels = tiny_fused.sensor_windows(40, np.random.default_rng(5))
    spec, y = fused.manifest.input, np.array([LABELS.index(name) for name in labels])
    sure = {}
    for parts in ({"arm": arm}, {"watch": watch}, {"arm": arm, "watch": watch}):
        found = generic(fused, pack(spec, parts))
        assert (found.argmax(1) == y).mean() > 0.95
        sure[len(parts)] = found[np.arange(len(y)), y].mean()
    member = tiny_prior()
    alone = softmax(arm.reshape(len(arm), 4, 2).sum(2) @ member.generic_weight.T + member.generic_bias)
    np.testing.assert_allclose(generic(fused, pack(spec, {"arm": arm})), alone, atol=1e-5)
    assert sure[2] >= sure[1]


def test_rows_with_other_parts_missing_do_not_see_each_other(fused):
    arm, watch, _ = tiny_fused.sensor_windows(3, np.random.default_rng(6))
    spec = fused.manifest.input
    rows = np.concatenate(
        [pack(spec, {"arm": arm}), pack(spec, {"watch": watch}), pack(spec, {"arm": arm, "watch": watch})]
    )
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    run = onnx_forward(fused.backbone)
    np.testing.assert_allclose(run(rows), np.concatenate([run(row[None]) for row in rows]), atol=1e-6)


def test_what_lies_in_a_missing_part_is_not_read(fused):
    arm, watch, _ = tiny_fused.sensor_windows(3, np.random.default_rng(7))
    spec = fused.manifest.input
    clean, dirty = pack(spec, {"arm": arm}), pack(spec, {"arm": arm, "watch": watch})
    dirty[:, 1], dirty[:, 10:] = 0, np.nan
    run = onnx_forward(fused.backbone)
    np.testing.assert_array_equal(run(dirty), run(clean))


def test_members_that_cannot_be_fused_are_refused(tmp_path, fused):
    open_set = bundles.load(write_tiny_bundle(tmp_path, "open", user_labels=3))
    with pytest.raises(ExportError, match="closed set of labels"):
        Member("open", open_set)
    with pytest.raises(ExportError, match="fused itself"):
        Member("again", fused)
    member = Member("arm", bundles.load(write_tiny_bundle(tmp_path, "arm")))
    for name in ("Arm", "input", "user_id", ""):
        with pytest.raises(ExportError, match="cannot be an input's name"):
            Member(name, member.bundle)
    with pytest.raises(ExportError, match="same labels"):
        member.head(("rest", "fist", "wave"))
    np.testing.assert_array_equal(member.head(LABELS[::-1]).weight, tiny_prior().generic_weight[::-1])


def test_a_graph_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    from exporters import fusion

    true = fusion.fused_graph

    def wrong(graphs, join, spec):
        from dataclasses import replace

        return true(graphs, replace(join, impute=join.impute * 0.9), spec)

    monkeypatch.setattr(fusion, "fused_graph", wrong)
    with pytest.raises(ParityError, match="differ"):
        tiny_fused.write_sensors(tmp_path)
    assert not (tmp_path / "fused").exists()


def test_a_fused_bundle_in_half_precision_answers_alike_with_each_part_missing(tmp_path, fused):
    path, found = convert(fused.path, tmp_path)
    assert found.same
    assert found.windows > 2 * 64  # of which each part was taken out, too
    halved = bundles.load(path)
    assert (halved.manifest.precision, halved.manifest.manifest_version) == ("fp16", "2.0")
    assert halved.manifest.feature_space == fused.manifest.feature_space
    assert halved.backbone != fused.backbone
    arm, watch, _ = tiny_fused.sensor_windows(6, np.random.default_rng(8))
    for parts in ({"arm": arm}, {"watch": watch}, {"arm": arm, "watch": watch}):
        rows = pack(fused.manifest.input, parts)
        np.testing.assert_allclose(generic(halved, rows), generic(fused, rows), atol=1e-2)


def test_a_variant_that_fails_without_a_part_alone_is_refused(tmp_path, fused, monkeypatch):
    from exporters import precision

    def spoiled(graph):
        """The same graph, but for what it makes up for a part that is missing."""
        model = onnx.load_from_string(graph)
        for c in model.graph.initializer:
            value = onnx.numpy_helper.to_array(c)
            if value.shape == (8, 8) and not value.diagonal().any():
                c.CopyFrom(onnx.numpy_helper.from_array(-value, c.name))
        yield "spoiled", model.SerializeToString()

    monkeypatch.setattr(precision, "halves", spoiled)
    with pytest.raises(PrecisionError, match="cannot be served in fp16"):
        convert(fused.path, tmp_path)


@pytest.mark.parametrize(("lacking", "said"), [(0, "without arm"), (1, "without watch"), (None, "")])
def test_what_eight_bits_lose_without_one_part_is_not_made_up_for_by_the_others(
    tmp_path, fused, monkeypatch, lacking, said
):
    """Two windows of a hundred get another's features where one part is missing: less than 1 % of all views."""
    spec = fused.manifest.input
    arm, watch, _ = tiny_fused.sensor_windows(34, np.random.default_rng(8))
    x = pack(spec, {"arm": arm, "watch": watch})
    y = generic(fused, x).argmax(1)

    def spoiled(graph, spec, x):
        z = features(fused.backbone, spec, x)
        if graph != fused.backbone and lacking is not None:
            there = np.flatnonzero(x[:, lacking] == 0)
            z[there[:1]], z[there[-1:]] = z[there[-1:]].copy(), z[there[:1]].copy()
        return z

    marked = onnx.load_from_string(fused.backbone)
    marked.doc_string = "in eight bits"
    monkeypatch.setattr(int8, "quantisations", lambda *_: iter([("spoiled", marked.SerializeToString())]))
    monkeypatch.setattr(int8, "features", spoiled)
    judged = Labelled(x, y, np.full(len(x), -1), np.zeros(len(x), np.int64))
    if said:
        with pytest.raises(PrecisionError, match=f"{said} accuracy falls by 2.0%, 1% is allowed"):
            int8.quantise(fused.path, tmp_path, x, judged)
    else:
        _, agreement, task = int8.quantise(fused.path, tmp_path, x, judged)
        assert (task.shared, task.shared_int8, agreement.windows) == (1.0, 1.0, 3 * len(x))


def test_members_in_half_precision_can_be_fused(tmp_path, fused):
    write_tiny_bundle(tmp_path, "arm")
    halved, _ = convert(tmp_path / "arm", tmp_path)
    found = bundles.load(tiny_fused.write_sensors(tmp_path / "halved", arm=halved))
    assert found.manifest.precision == "fp16"
    arm, watch, _ = tiny_fused.sensor_windows(4, np.random.default_rng(8))
    rows = pack(found.manifest.input, {"arm": arm, "watch": watch})
    np.testing.assert_allclose(generic(found, rows), generic(fused, rows), atol=1e-2)


def test_a_bridge_leads_from_one_fused_bundle_to_another(tmp_path):
    first = tiny_fused.write_sensors(tmp_path / "models", "late")
    members = tmp_path / "models" / "members"
    shutil.rmtree(members)
    # Features of the watch's part are another multiple of the signal, and heads of the old ones are of no use.
    second = tiny_fused.write_sensors(tmp_path / "models", "late", scale=2.0)
    rng, people = np.random.default_rng(3), []
    spec = bundles.load(first).manifest.input
    for u in range(5):
        own = [tiny_fused.sensor_windows(10, rng, rng.normal(0, 1.5, 4)) for _ in range(2)]
        x = np.concatenate([pack(spec, {"arm": arm, "watch": watch}) for arm, watch, _ in own])
        y = np.array([LABELS.index(label) for *_, labels in own for label in labels])
        people.append(Rows(f"p{u}", x, y, np.repeat([0, 1], len(y) // 2)))
    path, fitted = bridge(first, second, people, tmp_path / "models")
    assert fitted.parity.passes
    bundle = bundles.load(path)
    assert list(bundle.bridges) == [bundles.load(first).manifest.feature_space]
    assert bundle.manifest.manifest_version == "2.0"
    assert bundle.backbone == bundles.load(second).backbone
