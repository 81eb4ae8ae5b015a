"""`headway report`: the page says what its inputs say, needs nothing else, and takes hostile text as text."""

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from exporters import bundle as bundles
from models.data.recordings import load_folder
from models.data.synthetic import Design, write_folder
from models.evaluation.personaliser import LocalPersonaliser
from models.evaluation.protocols import plan
from models.evaluation.run import GENERIC, PERSONAL, ZERO_SHOT, configuration_of, evaluate, training_of
from models.heads.prior import HyperParameters
from models.training import TrainConfig, train
from service.cli import app

SECTIONS = ["summary", "curves", "learning-curve", "users", "guard", "confusion", "map", "timings", "made-of"]
WORLD = {"channels": 3, "labels": 3, "repetitions": 3, "sessions": 1, "seconds": 1.0, "seed": 5}
HOSTILE = """</title><script src="http://x.example/a.js">alert('1')</script>&amp;"""


class Page(HTMLParser):
    """What a reader finds: tags with attributes, tables by caption as rows of text, and which rows are marked."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.marked, self.words = [], {}, {}, []
        self.row = self.caption = self.style = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "tr":
            self.row, self.harmed = [], attrs.get("class") == "harm"
        elif tag in ("td", "th"):
            self.row.append("")
        elif tag == "caption":
            self.caption = ""

    def handle_data(self, data):
        self.words.append(data)
        within = self.tags[-1][0] if self.tags else ""
        if within == "style" and self.style is None:
            self.style = data
        if within == "caption":
            self.caption += data
        elif self.row:
            self.row[-1] += data

    def handle_endtag(self, tag):
        if tag == "caption":
            self.tables[self.caption], self.marked[self.caption] = [], []
        elif tag == "tr":
            if self.harmed:
                self.marked[self.caption].append(self.row[0])
            self.tables[self.caption].append(self.row)
            self.row = None

    @property
    def text(self):
        return " ".join(self.words)

    def table(self, start):
        return next(rows for caption, rows in self.tables.items() if caption.startswith(start))


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """Folder of four people that the run is trained on."""
    folder = tmp_path_factory.mktemp("population")
    write_folder(folder, 4, Design(**WORLD))
    return folder


@pytest.fixture(scope="module")
def run(population, tmp_path_factory):
    """A tiny run."""
    config = TrainConfig(steps=20, folds=2, evaluate_every=10, personal=16, users_per_step=3)
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(load_folder(population), config, folder, command="headway train …").folder


def evaluated(bundle, people, run, folder):
    """The figures, on three people, of a bundle as if it were exported from a run."""
    manifest, _ = bundles.read_manifest(bundle)
    provenance = json.loads((run / "run.json").read_text())["provenance"]
    files = {name: (bundle / name).read_bytes() for name in manifest.files}
    of_run = manifest.model_copy(update={"provenance": provenance, "files": {}})
    local = LocalPersonaliser(bundles.write(folder / "models", of_run, files))
    chosen = plan("cycles", local.manifest, people, subjects="synth_5,synth_6,synth_7", population="synth_[0-4]")
    file = folder / "evaluation.json"
    file.write_text(evaluate(local, chosen, command="headway evaluate …").to_json())
    return file


@pytest.fixture(scope="module")
def evaluation(bundle, people, run, tmp_path_factory):
    """The figures of a bundle of the run on three people."""
    return evaluated(bundle, people, run, tmp_path_factory.mktemp("evaluations"))


@pytest.fixture(scope="module")
def file(run, population, evaluation, tmp_path_factory):
    """The page of everything that can be given."""
    out = tmp_path_factory.mktemp("pages") / "deep" / "report.html"
    written(run, "--data", population, "--evaluation", evaluation, "--out", out)
    return out


@pytest.fixture(scope="module")
def whole(file):
    """What a reader finds on it."""
    return Page(file.read_text())


def written(run, *arguments):
    done = CliRunner().invoke(app, ["report", str(run), *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done


def page_of(run, *arguments):
    written(run, *arguments)
    out = arguments[arguments.index("--out") + 1] if "--out" in arguments else run / "report.html"
    return Page(out.read_text())


def copied(run, tmp_path, change):
    """A run whose record is changed; `change` takes the record."""
    folder = tmp_path / "changed"
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def changed(evaluation, tmp_path, change):
    document = json.loads(evaluation.read_text())
    change(document)
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(document))
    return file


def test_all_sections_are_there_and_every_figure_has_words(whole):
    assert [a["id"] for tag, a in whole.tags if tag == "section"] == SECTIONS
    figures = [a for tag, a in whole.tags if tag == "svg"]
    assert len(figures) >= 3 + 2 + 6 + 2 + 4 + 1
    ids = [a["id"] for _, a in whole.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for figure in figures:
        assert figure["role"] == "img"
        assert set(figure["aria-labelledby"].split()) <= set(ids)
    assert sum(tag == "h1" for tag, _ in whole.tags) == 1


def test_the_page_needs_nothing_from_elsewhere(whole, file):
    for tag, attributes in whole.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "use", "image")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in whole.style
    assert "@import" not in whole.style
    assert file.stat().st_size < 1_500_000
    assert "http://" not in file.read_text()
    assert "https://" not in file.read_text()


def test_the_same_inputs_give_the_same_bytes_and_nothing_is_left_beside_them(
    file, run, population, evaluation, tmp_path
):
    again = tmp_path / "again.html"
    written(run, "--data", population, "--evaluation", evaluation, "--out", again)
    assert again.read_bytes() == file.read_bytes()
    assert [f.name for f in tmp_path.iterdir()] == ["again.html"]


def test_curves_are_those_of_the_history(whole, run):
    networks = json.loads((run / "history.json").read_text())["networks"]
    loss = [[n["network"], str(s), f"{v:.4f}"] for n in networks for s, v in n["loss"]]
    judged = [[n["network"], str(s), f"{v:.4f}"] for n in networks for s, v, _ in n["validation"]]
    right = [[n["network"], str(s), f"{100 * v:.4f}"] for n in networks for s, _, v in n["validation"]]
    assert whole.table("Training loss")[1:] == loss
    assert whole.table("People left out of the fold: log-loss")[1:] == judged
    assert whole.table("People left out of the fold: accuracy")[1:] == right


def test_the_learning_curve_is_that_of_the_evaluation(whole, evaluation):
    found = json.loads(evaluation.read_text())
    head, *rows = whole.table("Window accuracy")
    assert head == [
        "method", ZERO_SHOT, *(f"{c} ({found['labelled'][c]:.0f})" for c in found["conditions"] if c != ZERO_SHOT)
    ]  # fmt: skip
    assert [row[0] for row in rows] == list(found["table"])
    for method, *cells in rows:
        for condition, cell in zip(found["conditions"], cells, strict=True):
            summary = found["table"][method].get(condition)
            assert cell == (f"{100 * summary['mean']['accuracy']:.2f} ± {100 * summary['sd']:.1f}" if summary else "–")


def test_the_runs_own_record_is_shown(whole, run):
    record = json.loads((run / "run.json").read_text())
    rows = {(int(w), int(r)): gain for w, r, _, gain, *_ in whole.table("The record that the guard goes by")[1:]}
    assert rows == {(e["windows"], e["repetitions"]): f"{100 * e['gain']:+.2f}" for e in record["hyper"]["evidence"]}
    zero = record["evaluation"]["zero_shot"]
    assert f"{100 * zero['mean']:.2f} ± {100 * zero['sd']:.2f} %, worst {100 * zero['worst']:.2f} %" in whole.text
    seconds = dict(whole.table("Begun")[1:])
    assert seconds["training, all"] == f"{record['provenance']['seconds']:.1f}"
    assert {f"training, {k}" for k in record["provenance"]["timings"]} <= set(seconds)
    assert "evaluation" in seconds


def test_each_user_is_there_and_the_harmed_are_marked(run, evaluation, tmp_path):
    def harm(document):
        document["users"][GENERIC][ZERO_SHOT]["synth_6"]["accuracy"] = 0.75
        for condition, users in document["users"][PERSONAL].items():
            users["synth_6"]["accuracy"] = 0.7234 if condition == "1 cycle" else 0.9
            users["synth_5"]["accuracy"] = users["synth_7"]["accuracy"] = 1.0

    file = changed(evaluation, tmp_path, harm)
    found = json.loads(file.read_text())
    page = page_of(run, "--evaluation", file, "--out", tmp_path / "page.html")
    for condition, users in found["users"][PERSONAL].items():
        caption = f"Evaluated people, personal head after {condition}"
        generic = found["users"][GENERIC][ZERO_SHOT]
        rows = {row[0]: row[1:3] for row in page.tables[caption][1:]}
        assert rows == {
            u: [f"{100 * generic[u]['accuracy']:.2f}", f"{100 * s['accuracy']:.2f}"] for u, s in users.items()
        }
        assert page.marked[caption] == (["synth_6"] if condition == "1 cycle" else [])
    assert page.tables["Evaluated people, personal head after 1 cycle"][1] == [
        "synth_6", "75.00", "72.34", "-2.66", "harmed"
    ]  # fmt: skip
    assert page.text.count("▼ -2.66") == 1
    assert "1 of 3 harmed: synth_6" in page.text


def test_left_out_people_confusion_and_map(whole, population, run):
    users = {row[0]: row[1:] for row in whole.tables["The run's own people, each left out, after one repetition"][1:]}
    names = [r.subject for r in load_folder(population)]
    assert sorted(users) == names
    labels = json.loads((run / "run.json").read_text())["labels"]
    for who, column in (("Shared head", 0), ("Head served after one repetition", 1)):
        head, *rows = whole.table(f"{who}: windows")
        assert head[1:] == [row[0] for row in rows] == labels
        counts = [[int(n) for n in row[1:]] for row in rows]
        right = sum(counts[i][i] for i in range(len(labels))) / sum(map(sum, counts))
        # Everyone has as many windows here, so that the mean over people is the mean over windows.
        assert right == pytest.approx(sum(float(u[column]) for u in users.values()) / 400, abs=1e-3)
    assert sum(int(row[1]) for row in whole.table("Verdicts on the run's own people")[1:]) == 4


def test_maps_show_the_same_dots_beside_both_heads_classes(whole, file, population):
    names = [r.subject for r in load_folder(population)]
    rows = whole.table("Distance within labels over between")[1:]
    assert [row[0] for row in rows] == names
    ratios = {name: (float(before), float(after)) for name, before, after, _ in rows}
    mean = [sum(r[i] for r in ratios.values()) / len(ratios) for i in (0, 1)]
    found = re.search(r"mean ratio ([\d.]+) before, ([\d.]+) after", whole.text)
    assert [float(v) for v in found.groups()] == pytest.approx(mean, abs=1e-3)
    assert mean[1] < mean[0]  # these people differ by a turn and by gains, which a repetition tells
    for i, name in enumerate(names):
        drawn = re.search(rf"<svg[^>]*map-{i}-t.*?</svg>", file.read_text())[0]
        before, after = (re.findall(r'dots" d="([^"]*)"', half) for half in halves(drawn))
        assert [len(d.split("M")) for d in before] == [len(d.split("M")) for d in after]
        assert f"before: the population's classes, {ratios[name][0]:.3f}" in html.unescape(drawn)
        middles = whole.table(f"{name}: middles on the map")[1:]
        assert any(row[3:5] != row[5:7] for row in middles)


def halves(drawn):
    """Both panels of a map."""
    _, before, after = drawn.split('<rect class="box"')
    return before, after


def test_folds_are_counted_as_they_were(run, whole, tmp_path):
    names = ["fold 1 of 2", "fold 2 of 2"]
    assert [row[0] for row in whole.table("Networks")[1:]][:2] == names
    assert {row[0] for row in whole.table("Training loss")[1:]} >= set(names)
    made = whole.table("Commands, settings and versions")
    assert ["folds", "2"] in made
    asked_for_more = copied(run, tmp_path, lambda record: record["provenance"]["config"].update(folds=5))
    assert ["folds", "5 at most; 2 networks were trained on folds"] in page_of(asked_for_more).table(
        "Commands, settings"
    )


def test_without_evaluation_and_data_the_page_says_how_to_get_more(run):
    page = page_of(run)
    assert [a["id"] for tag, a in page.tags if tag == "section"] == SECTIONS
    assert "Give --evaluation, or --data" in page.text
    assert "Give --data, the folder of the recordings" in page.text
    (run / "report.html").unlink()


def test_a_run_of_an_older_version_still_gives_a_page(run, tmp_path):
    folder = copied(run, tmp_path, lambda record: record["provenance"].pop("timings"))
    (folder / "history.json").unlink()
    page = page_of(folder)
    assert "kept no history" in page.text
    assert page.table("Networks")[1][2] in ("10", "20")
    assert "did not record the seconds" in page.text


def test_an_evaluation_of_an_older_version_has_its_steps_drawn_alike(run, evaluation, tmp_path):
    file = changed(evaluation, tmp_path, lambda document: document.pop("labelled"))
    page = page_of(run, "--evaluation", file, "--out", tmp_path / "page.html")
    assert "did not say how many windows" in page.text
    assert page.table("Window accuracy")[0][1:3] == [ZERO_SHOT, "1w"]


def belong(document, run):
    """Let an evaluation be of a run."""
    document["made_of"]["training"] = training_of(json.loads((run / "run.json").read_text())["provenance"])


def test_hostile_text_stays_text(run, evaluation, tmp_path):
    def poison(document):
        for by_condition in document["users"].values():
            for users in by_condition.values():
                users[HOSTILE] = users.pop("synth_6")
        document["conditions"] = [HOSTILE if c == "1 cycle" else c for c in document["conditions"]]
        for part in (*document["table"].values(), *document["users"].values(), document["outcomes"]):
            if "1 cycle" in part:
                part[HOSTILE] = part.pop("1 cycle")
        document["notes"] = [HOSTILE, "half a pair \ud800"]
        document["made_of"]["command"] = HOSTILE

    def rename(record):
        record["labels"][0] = record["provenance"]["command"] = HOSTILE
        record["provenance"]["subjects"][0]["stem"] = HOSTILE

    poisoned = copied(run, tmp_path, rename)
    file = changed(evaluation, tmp_path, lambda document: (poison(document), belong(document, poisoned)))
    page = page_of(poisoned, "--evaluation", file, "--out", tmp_path / "page.html")
    assert not any(tag == "script" for tag, _ in page.tags)
    assert not any("src" in attributes for _, attributes in page.tags)
    assert sum(tag == "title" for tag, _ in page.tags) == 1 + sum(tag == "svg" for tag, _ in page.tags)
    assert HOSTILE in {row[0] for row in page.tables["Evaluated people, personal head after 5w"]}
    assert [HOSTILE] in page.tables["Left out"]


def test_people_of_the_training_are_named_as_such(run, evaluation, tmp_path):
    record = json.loads((run / "run.json").read_text())
    own = record["provenance"]["subjects"][2]
    page = page_of(
        run, "--out", tmp_path / "page.html", "--evaluation",
        changed(evaluation, tmp_path, lambda d: d["made_of"]["subjects"].append(own)),
    )  # fmt: skip
    assert f"NOT HELD OUT: this run was trained on {own['stem']}." in page.text


def test_an_evaluation_of_another_run_is_refused(run, evaluation, bundle, people, tmp_path):
    other = copied(run, tmp_path, lambda record: record["provenance"].update(started="2020-01-01T00:00:00+00:00"))
    file = evaluated(bundle, people, other, tmp_path / "of-other")
    assert "both name the same training" in page_of(other, "--evaluation", file).text
    with pytest.raises(ValueError, match=r"evaluation of synth/1, and not of the run .*from another training"):
        written(run, "--evaluation", file, "--out", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_an_evaluation_of_an_older_version_is_known_by_the_settings_of_heads(run, evaluation, tmp_path):
    hyper = HyperParameters.model_validate(json.loads((run / "run.json").read_text())["hyper"])

    def older(document):
        document["made_of"].pop("training")
        document["made_of"]["configuration"] = configuration_of(document["made_of"]["feature_space"], hyper)

    file = changed(evaluation, tmp_path, older)
    page = page_of(run, "--evaluation", file, "--out", tmp_path / "page.html")
    assert "heads have this run's settings" in page.text
    for change, sentence in (
        (lambda d: d["made_of"].pop("training"), "its heads have other settings"),
        (lambda d: d.pop("made_of"), "does not say what it is made of"),
    ):
        with pytest.raises(ValueError, match=sentence):
            written(run, "--evaluation", changed(evaluation, tmp_path, change))


def nothing(document):
    pass


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(track="causal"), "of the causal track.*without --track"),
        (lambda d: d["users"].pop(PERSONAL), "not both the generic and the personal head"),
        (lambda d: d["users"][GENERIC][ZERO_SHOT].pop("synth_6"), "no generic scores of synth_6"),
        (lambda d: d["table"][PERSONAL]["1w"]["mean"].pop("accuracy"), "table.personal head.1w.mean.accuracy: Field"),
        (lambda d: d["users"][PERSONAL]["1w"]["synth_6"].update(accuracy=float("nan")), "synth_6.accuracy: .*finite"),
        (lambda d: d.clear(), "not what `headway evaluate --json` writes"),
    ],
)
def test_other_evaluations_are_refused_with_a_sentence(run, evaluation, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        written(run, "--evaluation", changed(evaluation, tmp_path, change), "--out", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r.update(format=99), "not what `headway train` writes: format"),
        (lambda r: r.pop("evaluation"), "evaluation: Field required"),
    ],
)
def test_other_runs_are_refused_with_a_sentence(run, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        written(copied(run, tmp_path, change))


def test_files_that_are_not_there_or_not_json_are_named(run, tmp_path):
    with pytest.raises(ValueError, match=r"no file .*none\.json"):
        written(run, "--evaluation", tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ValueError, match="not an object"):
        written(run, "--evaluation", tmp_path / "bad.json")
    (tmp_path / "bad.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        written(run, "--evaluation", tmp_path / "bad.json")
    with pytest.raises(ValueError, match="is a folder; --out is the file"):
        written(run, "--out", tmp_path)


def test_data_of_other_people_and_lost_checkpoints_are_refused(run, population, tmp_path):
    others = tmp_path / "others"
    write_folder(others, 4, Design(**{**WORLD, "seed": 6}))
    with pytest.raises(ValueError, match=r"not the recordings of the run .* synth_0"):
        written(run, "--data", others)
    with pytest.raises(ValueError, match="no folder"):
        written(run, "--data", tmp_path / "none")
    folder = copied(run, tmp_path, nothing)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match="is gone"):
        written(folder, "--data", population)
    assert not (folder / "checkpoints").exists()


SLOTS = {
    f"user{i}": dict(zip("abc", order, strict=True))
    for i, order in enumerate(
        [("red", "green", "blue"), ("blue", "red", "green"), ("red", "green", "blue"), ("red", "blue", "green")]
    )
}
"""What people call by three labels: most of them the same."""


def trained_on_images(folder, users=None):
    """A run on pictures of tiny colours, and where these are."""
    pytest.importorskip("PIL.Image")
    from models.data.collections import load_collection
    from models.training.linear_probe import LinearProbeConfig, train_probe
    from tests import tiny_media

    data = tiny_media.write_pictures(folder / "data", 12, users)
    (folder / "encoder").mkdir()
    config = LinearProbeConfig(backbone=tiny_media.image_encoder(folder / "encoder"))
    return train_probe(load_collection(data), config, folder / "run").folder, data


def test_a_run_on_images_without_users_has_bars_by_label(tmp_path):
    run, data = trained_on_images(tmp_path)
    page = page_of(run)
    assert [a["id"] for tag, a in page.tags if tag == "section"] == SECTIONS
    assert "there are no steps to draw" in page.text
    assert "the prior is pooled" in page.text
    assert "Give --data, the folder or table" in page.text
    page = page_of(run, "--data", data)
    counts = [[int(n) for n in row[1:]] for row in page.table("Shared head: examples")[1:]]
    by_label = {row[0]: row[1:] for row in page.table("Shared head by label")[1:]}
    labels = json.loads((run / "run.json").read_text())["labels"]
    assert by_label == {
        label: [f"{100 * row[i] / sum(row):.1f}", "12"]
        for i, (label, row) in enumerate(zip(labels, counts, strict=True))
    }
    zero = json.loads((run / "run.json").read_text())["evaluation"]["zero_shot"]["mean"]
    assert sum(counts[i][i] for i in range(len(labels))) / 36 == pytest.approx(zero)
    assert "36 of 36 items, which are the same as read" in page.text
    assert "there is no personal head to draw" in page.text


def test_a_run_on_peoples_images_has_their_bars_confusions_and_maps(tmp_path):
    run, data = trained_on_images(tmp_path, SLOTS)
    cache = tmp_path / "cache"
    page = page_of(run, "--data", data, "--cache", cache)
    users = {row[0]: row[1:] for row in page.table("The run's own people, each left out, after one repetition")[1:]}
    assert sorted(users) == sorted(SLOTS)
    record = json.loads((run / "run.json").read_text())
    for what, column in (("Shared head: examples", 0), ("Head served after one repetition: examples", 1)):
        counts = [[int(n) for n in row[1:]] for row in page.table(what)[1:]]
        right = sum(counts[i][i] for i in range(3)) / sum(map(sum, counts))
        assert right == pytest.approx(sum(float(u[column]) for u in users.values()) / 400, abs=1e-3)
    # Who calls colours by other names is far from the population's classes, and near to their own.
    ratios = {row[0]: [float(v) for v in row[1:3]] for row in page.table("Distance within labels over between")[1:]}
    assert ratios["user1"][1] < 0.5 * ratios["user1"][0]
    assert {p["windows"] for p in record["evaluation"]["personal"]} >= {1}
    assert "examples a class" in page.text
    first = (run / "report.html").read_bytes()
    written(run, "--data", data, "--cache", cache)
    assert (run / "report.html").read_bytes() == first


def test_other_images_than_the_trainings_are_refused(tmp_path):
    from tests import tiny_media

    run, data = trained_on_images(tmp_path)
    others = tiny_media.write_pictures(tmp_path / "others", 12, seed=1)
    with pytest.raises(ValueError, match=r"not the data of the run .*: the 36 items that it kept are others"):
        written(run, "--data", others)
    next(others.rglob("*.png")).unlink()
    with pytest.raises(ValueError, match="35 items, not 36"):
        written(run, "--data", others)
    folder = copied(run, tmp_path, lambda record: record["provenance"]["config"].update(recipe="lp-ft"))
    with pytest.raises(ValueError, match="recipe lp-ft, which changed the encoder"):
        written(folder, "--data", data)


def test_torch_is_not_needed_without_recordings(run, evaluation, tmp_path):
    code = (
        "import sys\nfrom service.cli import app\n"
        f"app(['report', {str(run)!r}, '--evaluation', {str(evaluation)!r}, '--out', {str(tmp_path / 'a.html')!r}], "
        "standalone_mode=False)\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
