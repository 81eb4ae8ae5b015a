"""Tables with several tasks: what is read of them, and what is refused."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.asked import Ask, asks
from models.data.collections import Collection, CollectionError, load_collection
from models.data.tasks import Measured, load_tasks

ROWS = [
    {"text": "a", "user": "u", "kind": "x", "age [years]": "3", "code": "1"},
    {"text": "b", "user": "u", "kind": "", "age [years]": "4.5", "code": "2"},
    {"text": "c", "user": "v", "kind": "y", "age [years]": " ", "code": "1"},
    {"text": "d", "user": "v", "kind": "x", "age [years]": "-1e1", "code": ""},
    {"text": "e", "user": "v", "kind": "", "age [years]": "", "code": ""},
]


@pytest.fixture
def table(tmp_path):
    def write(rows=ROWS, **cells):
        file = tmp_path / "t.csv"
        rows = [{**row, **dict.fromkeys(cells.keys() - row.keys(), "")} for row in rows]
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, rows[0])
            writer.writeheader()
            writer.writerows([{**row, **cells} if i == 0 else row for i, row in enumerate(rows)])
        return file

    return write


def test_words_are_labels_numbers_are_targets_and_empty_cells_are_not_known(table):
    found = load_tasks(table(), asks(["kind", "age"]))
    kind, age = found.tasks
    assert found.items == ("a", "b", "c", "d"), "a row without any answer is left out"
    assert (kind.labels, kind.rows.tolist(), kind.data.y.tolist()) == (("x", "y"), [0, 2, 3], [0, 1, 0])
    assert [str(t) for t in age.targets] == ["age [years]"]
    assert (age.rows.tolist(), age.data.t[:, 0].tolist()) == ([0, 1, 3], [3.0, 4.5, -10.0])
    assert age.data.items == ("a", "b", "d")
    assert [age.data.users[u] for u in age.data.user] == ["u", "u", "v"]
    assert str(kind) == "kind: 2 labels; known of 3 items"


def test_a_column_of_numbers_can_be_labels_and_several_columns_one_regression(table):
    (code,) = load_tasks(table(), asks(["code:classification"])).tasks
    assert code.labels == ("1", "2")
    (both,) = load_tasks(table(), asks(["both=age,code"])).tasks
    assert isinstance(both.data, Measured)
    assert both.rows.tolist() == [0, 1], "where all of them are known"
    assert both.data.t.tolist() == [[3.0, 1.0], [4.5, 2.0]]


def test_json_lines_say_the_same(table, tmp_path):
    file = tmp_path / "t.jsonl"
    lines = [{k: float(v) if k == "age [years]" else v for k, v in row.items() if v.strip()} for row in ROWS]
    file.write_text("\n".join(map(json.dumps, lines)))
    first, second = (load_tasks(f, asks(["kind", "age"])) for f in (table(), file))
    assert first.items == second.items
    assert np.array_equal(first.tasks[1].data.t, second.tasks[1].data.t)


@pytest.mark.parametrize(
    ("asked", "cells", "says"),
    [
        ("height", {}, "has no column 'height'; it has text, user, kind, age"),
        ("kind:regression", {}, "task kind .* row 1: 'x' in kind is not a finite number"),
        ("age", {"age [years]": "nan"}, "row 1: 'nan' in age .* is not a finite number"),
        ("age", {"age [years]": "three"}, "2 cells are numbers, and row 1 holds 'three'"),
        ("user", {}, "says what an item is or whose"),
        ("kind", {"text": ""}, "row 1: either a text in the column text, or a path"),
        ("kind", {"repetition": "one"}, "row 1: repetition 'one' is not a whole number"),
        ("kind", {"user": ""}, "names a user for some items and none for others"),
    ],
)
def test_a_column_that_cannot_be_a_task_is_refused_with_its_row(table, asked, cells, says):
    with pytest.raises(CollectionError, match=says):
        load_tasks(table(**cells), asks([asked]))


def test_what_has_nothing_to_learn_is_refused(table):
    empty = [{**row, "kind": ""} for row in ROWS]
    with pytest.raises(CollectionError, match="has no row with an answer in kind"):
        load_tasks(table(empty), asks(["kind"]))
    with pytest.raises(CollectionError, match=r"task kind .*: no row has an answer"):
        load_tasks(table(empty), asks(["kind", "age"]))
    with pytest.raises(CollectionError, match="one label only, 'x'"):
        load_tasks(table([{**row, "kind": "x"} for row in ROWS]), asks(["kind"]))
    with pytest.raises(CollectionError, match="is 3 in every row"):
        load_tasks(table([{**row, "age [years]": "3"} for row in ROWS]), asks(["age"]))


def test_a_label_that_one_person_alone_has_is_refused(table):
    rows = [{"text": f"{u}{k}", "user": u, "kind": k} for u in "abc" for k in "xy"]
    load_tasks(table(rows), asks(["kind"]))
    with pytest.raises(CollectionError, match="only a has items of 'z'"):
        load_tasks(table([*rows, {"text": "az", "user": "a", "kind": "z"}]), asks(["kind"]))


def test_one_task_of_labels_is_the_collection_of_its_column(table):
    rows = [{"text": f"{u}{k}{i}", "user": u, "label": k} for u in "abc" for k in "xyz" for i in range(9)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    alone, (task,) = load_collection(table(rows)), load_tasks(table(rows), asks(["label"])).tasks
    assert (task.data.items, task.data.labels, task.data.users) == (alone.items, alone.labels, alone.users)
    for name in ("y", "user", "repetition"):
        assert np.array_equal(getattr(task.data, name), getattr(alone, name))


def test_files_lie_beside_the_table(table, tmp_path):
    rows = [{"file": f"{i}.png", "kind": "xy"[i % 2]} for i in range(4)]
    with pytest.raises(CollectionError, match=r"row 1: there is no file .*0\.png"):
        load_tasks(table(rows), asks(["kind"]))
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"0")
    found = load_tasks(table(rows), asks(["kind"]))
    assert (found.kind, found.items[1]) == ("image", tmp_path / "1.png")
    assert isinstance(found.tasks[0].data, Collection)
    with pytest.raises(CollectionError, match="is not a table"):
        load_tasks(tmp_path, asks(["kind"]))


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (["Age"], "'Age' cannot be the name of an output: .* --task kind=Age"),
        (["a=b", "a=c"], "names 'a' twice"),
        (["a=b,c:classification"], "a classification has one column"),
        (["a=b,b"], "a column is named twice"),
        (["a="], "NAME=COLUMN was expected"),
        (["a,b"], "NAME=COLUMN was expected"),
        ([f"t{i}" for i in range(17)], "at most 16"),
    ],
)
def test_what_is_not_of_the_form_is_a_sentence(told, says):
    with pytest.raises(CollectionError, match=says):
        asks(told)


name = st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,8}\Z")
column = st.text(st.characters(exclude_characters=",=:", exclude_categories=("C", "Z")), min_size=1, max_size=8)


@given(name, st.lists(column, min_size=1, max_size=3, unique=True), st.sampled_from([None, "regression"]))
def test_what_is_asked_for_is_read_as_it_was_written(name, columns, kind):
    text = f"{name}={','.join(columns)}" + (f":{kind}" if kind else "")
    assert asks([text]) == (Ask(name, tuple(columns), "regression" if len(columns) > 1 else kind),)


@pytest.mark.parametrize(
    ("lines", "asked", "says"),
    [
        (["text,kind,kind", "a,x,1", "b,y,2"], "kind", "two columns 'kind'"),
        (["text,kind,n", "wave, boat,x,1", "b,y,2"], "kind", "row 1 has more cells than the header, text, kind, n"),
        (["text,age [years],age [months]", "a,1,12", "b,2,24"], "age", r"several units, age \[years\], age \[months\]"),
        (["text,age", "a,1", "b,2e31"], "age", "row 2: 2e[+]31 in age is beyond"),
    ],
)
def test_a_table_that_can_be_read_in_two_ways_is_refused(tmp_path, lines, asked, says):
    file = tmp_path / "t.csv"
    file.write_text("\n".join(lines))
    with pytest.raises(CollectionError, match=says):
        load_tasks(file, asks([asked]))


def test_a_column_in_two_units_is_named_with_its_unit(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("text,age [years],age [months]\na,1,12\nb,2,25")
    (age,) = load_tasks(file, asks(["age=age [months]"])).tasks
    assert (str(age.targets[0]), age.data.t[:, 0].tolist()) == ("age [months]", [12.0, 25.0])
