"""Folders and tables of labelled examples."""

import json

import numpy as np
import pytest

from models.data.collections import CollectionError, load_collection
from tests import tiny_media

pytest.importorskip("PIL.Image")


def table(path, rows):
    path.write_text("text,label,user,repetition\n" + "\n".join(",".join(map(str, r)) for r in rows))
    return path


def test_a_folder_of_labels_is_one_population(tmp_path):
    c = load_collection(tiny_media.write_pictures(tmp_path / "d", 12))
    assert (c.kind, c.labels, c.users, len(c)) == ("image", ("blue", "green", "red"), (), 36)
    assert np.bincount(c.y).tolist() == [12, 12, 12]
    assert c.read(0)[:4] == b"\x89PNG"
    # Dealt to repetitions alike, and in the same way again.
    assert all(np.bincount(c.repetition[c.y == k]).tolist() == [6, 6] for k in range(3))
    assert np.array_equal(load_collection(tmp_path / "d").repetition, c.repetition)
    assert not np.array_equal(load_collection(tmp_path / "d", seed=1).repetition, c.repetition)


def test_a_folder_of_users_has_people_and_their_own_repetitions(tmp_path):
    users = {"ana": {"a": "red", "b": "blue"}, "bo": {"a": "blue", "b": "red"}}
    c = load_collection(tiny_media.write_pictures(tmp_path / "d", 4, users))
    assert (c.labels, c.users) == (("a", "b"), ("ana", "bo"))
    assert not set(c.repetition[c.user == 0]) & set(c.repetition[c.user == 1])


def test_sounds_of_every_format_are_one_collection(tmp_path):
    for label in ("high", "low"):
        (tmp_path / label).mkdir()
        for suffix in ("wav", "flac", "OGG", "opus"):
            (tmp_path / label / f"1.{suffix}").write_bytes(b"")
    c = load_collection(tmp_path)
    assert (c.kind, c.labels, len(c)) == ("audio", ("high", "low"), 8)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_tables_of_texts(tmp_path, kind):
    rows = [("good soup, hot", "food"), ("high sea", "sea"), ("bread", "food"), ("a boat", "sea")]
    path = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps({"text": t, "label": k}) for t, k in rows))
    else:
        sep = "," if kind == "csv" else "\t"
        path.write_text(f"text{sep}label\n" + "\n".join(f'"{t}"{sep}{k}' for t, k in rows))
    c = load_collection(path)
    assert (c.kind, c.labels, c.items[0], c.y.tolist()) == ("text", ("food", "sea"), "good soup, hot", [0, 1, 0, 1])
    assert len({c.digest_of(i) for i in range(4)}) == 4


def test_repetitions_that_are_told_are_kept_apart_by_user(tmp_path):
    rows = [(f"t{i}", "xy"[i % 2], f"u{i // 4}", i // 2 % 2) for i in range(8)]
    c = load_collection(table(tmp_path / "t.csv", rows))
    assert c.repetition.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a", "x", "", ""), ("b", "x", "", "")], "one label only, 'x'"),
        ([("a", "x", "u", ""), ("b", "y", "", "")], "names a user for some items and none for others"),
        ([("a", "x", "", 1), ("b", "y", "", "")], "Some rows name a repetition"),
        ([("a", "x", "", "one"), ("b", "y", "", 1)], "row 1: repetition 'one' is not a whole number"),
        ([("", "x", "", ""), ("b", "y", "", "")], "row 1: text and label must be strings"),
        ([], "holds no labelled images, sounds or texts"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(tmp_path, rows, words):
    with pytest.raises(CollectionError, match=words):
        load_collection(table(tmp_path / "t.csv", rows))


def test_folders_that_cannot_be_meant_are_refused(tmp_path):
    with pytest.raises(CollectionError, match="neither a folder nor a table"):
        load_collection(tmp_path / "none")
    (tmp_path / "t.jsonl").write_text('{"text": "a", "tag": "b"}')
    with pytest.raises(CollectionError, match="columns text and label"):
        load_collection(tmp_path / "t.jsonl")
    folder = tiny_media.write_pictures(tmp_path / "d", 1)
    (folder / "stray.png").write_bytes(b"")
    with pytest.raises(CollectionError, match="at different depths"):
        load_collection(folder)
    (folder / "stray.png").unlink()
    (folder / "red" / "0.wav").write_bytes(b"")
    with pytest.raises(CollectionError, match="holds audio and image files"):
        load_collection(folder)
