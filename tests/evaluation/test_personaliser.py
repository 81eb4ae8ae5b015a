"""The local personaliser: the service's own numbers, in this process."""

import numpy as np
import pytest

from models.evaluation.personaliser import LocalPersonaliser
from models.evaluation.protocols import ProtocolError, plan
from service.client import Client
from service.commands.evaluation import HttpPersonaliser
from service.commands.process import running_service


@pytest.fixture
def local(bundle):
    return LocalPersonaliser(bundle)


@pytest.fixture
def subject(local, people):
    return next(iter(plan("cycles", local.manifest, people).subjects()))


def three_cycles(subject):
    chosen = next(c for c in subject.conditions if c.name == "3 cycles").calibration
    return chosen.x, chosen.y, chosen.repetition


def test_a_user_gets_a_head_and_loses_it_by_erasure(local, subject):
    test = subject.tests["session1"]
    generic = local.predict(None, test.x)
    assert generic.dtype == np.float32
    np.testing.assert_allclose(generic.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(local.predict("ana", test.x), generic)
    assert local.calibrate("ana", *three_cycles(subject)).evidence == "held_out"
    assert not np.array_equal(local.predict("ana", test.x), generic)
    np.testing.assert_array_equal(local.predict("ben", test.x), generic)
    local.erase("ana")
    local.erase("ana")
    np.testing.assert_array_equal(local.predict("ana", test.x), generic)


def test_windows_are_run_once(local, subject, monkeypatch):
    x = subject.tests["session1"].x[:100]
    first = local.features(x)
    monkeypatch.setattr(local, "_session", None)
    np.testing.assert_array_equal(local.features(x.copy()), first)
    np.testing.assert_array_equal(local.features(x[::-1]), first[::-1])
    local.forget_features()
    with pytest.raises(AttributeError):
        local.features(x)


def test_windows_of_another_shape_are_refused(local):
    with pytest.raises(ProtocolError, match="takes windows of shape"):
        local.features(np.zeros((3, 2, 9), np.float32))


def test_http_gives_the_same_numbers(bundle, local, subject, tmp_path):
    test = subject.tests["session1"]
    with running_service(bundle.parent.parent, tmp_path) as service, Client(service.url) as client:
        http = HttpPersonaliser(client, local.manifest)
        for condition in subject.conditions:
            chosen = condition.calibration
            user = f"user {condition.name}"
            said = [p.calibrate(user, chosen.x, chosen.y, chosen.repetition) for p in (local, http)]
            assert said[0] == said[1]
            ours, theirs = (p.predict(user, test.x) for p in (local, http))
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
            np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))
