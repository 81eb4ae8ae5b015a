"""A cache of features that two processes fill at the same time."""

import multiprocessing

import numpy as np
import pytest

from models.backbones import create_encoder
from models.data.collections import load_collection
from models.training.features import features_of
from tests import tiny_media

pytest.importorskip("PIL.Image")
ROUNDS = 15


def fill(encoder, data, folder, barrier, told):
    """What each process does: the features of everything, in a cache that is new in every round, both at once."""
    try:
        backbone, collection = create_encoder(encoder), load_collection(data)
        for number in range(ROUNDS):
            barrier.wait(60)
            found, computed = features_of(backbone, collection, folder / str(number))
        told.put((found, computed))
    except BaseException as e:
        barrier.abort()
        told.put(repr(e))
        raise


def test_two_processes_fill_one_cache_at_the_same_time(tmp_path):
    data = tiny_media.write_pictures(tmp_path / "data", 2)
    encoder, cache = tiny_media.image_encoder(tmp_path), tmp_path / "cache"
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(2), context.Queue()
    both = [context.Process(target=fill, args=(encoder, data, cache, barrier, told), daemon=True) for _ in range(2)]
    for process in both:
        process.start()
    answers = [told.get(timeout=120) for _ in both]
    for process in both:
        process.join(60)
    assert not [answer for answer in answers if isinstance(answer, str)]
    expected, _ = features_of(create_encoder(encoder), load_collection(data))
    for number in range(ROUNDS):
        found, computed = features_of(create_encoder(encoder), load_collection(data), cache / str(number))
        assert computed == 0
        assert np.array_equal(found, expected)
    assert all(np.array_equal(found, expected) for found, _ in answers)
    assert not list(cache.rglob("*.tmp"))
