import re
from pathlib import Path

from models.data.format import OPTIONAL, REQUIRED

PAGE = (Path(__file__).parents[2] / "docs" / "recordings.md").read_text(encoding="utf-8")


def test_the_page_has_every_key_of_the_format():
    rows = dict(re.findall(r"^\| (`[^|]+`) \| (yes|no) \|", PAGE, flags=re.MULTILINE))
    documented = {key: need for keys, need in rows.items() for key in re.findall(r"`(\w+)`", keys)}
    assert documented == {**dict.fromkeys(REQUIRED, "yes"), **dict.fromkeys(OPTIONAL, "no")}


def test_the_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        exec(compile(snippet, "recordings.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"({8 * 110}, 10, 260) ({8 * 110},)"
    assert said[1] == "anna.npz 10 1000.0 ['rest', 'fist', 'open', 'point'] []"
