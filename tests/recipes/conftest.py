"""What the tests of recipes train on."""

import numpy as np
import pytest

from models.data.collections import load_collection
from models.training.tuned import TuneConfig
from tests import tiny_media


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Thirty noisy pictures of three colours, without users."""
    pytest.importorskip("PIL.Image")
    return load_collection(tiny_media.write_pictures(tmp_path_factory.mktemp("pictures") / "data", 10))


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Thirty other pictures of the same colours."""
    pytest.importorskip("PIL.Image")
    return load_collection(tiny_media.write_pictures(tmp_path_factory.mktemp("others") / "data", 10, seed=1))


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Four people who call three colours by labels of their own."""
    pytest.importorskip("PIL.Image")
    orders = [("red", "green", "blue"), ("blue", "red", "green"), ("green", "blue", "red"), ("red", "blue", "green")]
    users = {f"user{i}": dict(zip("abc", order, strict=True)) for i, order in enumerate(orders)}
    return load_collection(tiny_media.write_pictures(tmp_path_factory.mktemp("people") / "data", 8, users))


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    """Name of a small vision transformer with weights."""
    pytest.importorskip("transformers")
    return tiny_media.vision_encoder(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="session")
def small(vit):
    """Settings of a run that takes a second or two."""

    def settings(recipe, **changes):
        few = {"steps": 12, "folds": 2, "batch": 8, "evaluate_every": 4, "personal": 8, "patience": 20}
        return TuneConfig.model_validate({"backbone": vit, "recipe": recipe, **few, **changes})

    return settings


def same(first, second):
    """Whether two states are bit for bit the same."""
    return first.keys() == second.keys() and all(bool((v == second[k]).all()) for k, v in first.items())


def arrays(run):
    """A run's weights and prior."""
    state = {name: value.numpy() for name, value in run.backbone().state_dict().items()}
    return {**state, "means": np.asarray(run.prior.means), "within": np.asarray(run.prior.within)}
