"""The README's table of values: complete, current, and strict about both; and the schema as strict."""

import json

import pytest

pytest.importorskip("yaml", reason="PyYAML is not installed; it comes with the extra `dev`")

from values_table import BEGIN, CHART, END, ValuesTableError, table, with_table


def test_the_readme_agrees_with_the_values() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert with_table(readme, (CHART / "values.yaml").read_text(encoding="utf-8")) == readme


def test_a_row_holds_path_default_and_meaning() -> None:
    assert table("a:\n  # -- First | second.\n  b: null\n").splitlines()[2] == "| `a.b` | `null` | First \\| second. |"


def test_a_described_mapping_is_one_value() -> None:
    assert table("# -- Both.\na:\n  b: 1\n").splitlines()[2:] == ['| `a` | `{"b": 1}` | Both. |']


def test_a_value_without_a_description_is_refused() -> None:
    with pytest.raises(ValuesTableError, match=r"a\.b has no description"):
        table("a:\n  b: 1\n")


def test_a_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValuesTableError, match="needs the lines"):
        with_table(f"{END} {BEGIN}", "# -- One.\na: 1\n")


def test_every_object_of_the_schema_is_closed() -> None:
    """A misspelt value must be refused: only maps of free keys may lack `properties`."""

    def open_objects(node: object, path: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        here = [path] if "properties" in node and node.get("additionalProperties") is not False else []
        return here + [found for key, child in node.items() for found in open_objects(child, f"{path}/{key}")]

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert open_objects(schema, "") == []
