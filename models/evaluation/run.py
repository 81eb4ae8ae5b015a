"""An evaluation: every method in every condition over all subjects of a protocol."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.windows import Windows
from models.evaluation.baselines import Baseline, baselines
from models.evaluation.personaliser import DEFAULT_METHOD, LocalPersonaliser, Personaliser
from models.evaluation.protocols import Protocol, Subject
from models.evaluation.scores import Scores, Summary, mean_scores, score, summarise
from models.heads.head import softmax
from models.heads.prior import HyperParameters

ZERO_SHOT = "0-shot"
GENERIC = "generic (0-shot)"
PERSONAL = "personal head"

Progress = Callable[[str, int, int], None]
Trained = Callable[[Windows, NDArray[np.float32]], NDArray[np.floating]]


@dataclass(slots=True)
class Evaluation:
    """Figures and what they were measured on. `table[method][condition]`; `users[method][condition][user]`.

    `labelled[condition]`: windows a class that calibrations had, mean over users.
    """

    protocol: str
    description: str
    conditions: list[str]
    table: dict[str, dict[str, Summary]]
    users: dict[str, dict[str, dict[str, Scores]]]
    outcomes: dict[str, dict[str, int]]
    recordings_scored: int
    windows_scored: int
    vote_ms: float
    made_of: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    labelled: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """As a JSON document."""
        document = {
            "protocol": self.protocol,
            "description": self.description,
            "conditions": self.conditions,
            "labelled": self.labelled,
            "recordings_scored": self.recordings_scored,
            "windows_scored": self.windows_scored,
            "outcomes": self.outcomes,
            "table": {m: {c: s.to_dict() for c, s in row.items()} for m, row in self.table.items()},
            "users": {
                m: {c: {u: asdict(s) for u, s in by_user.items()} for c, by_user in row.items()}
                for m, row in self.users.items()
            },
            "notes": self.notes,
            "made_of": self.made_of,
        }
        return json.dumps(_without_nan(document), indent=1)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN; the accuracy of accepted windows is one where all were rejected."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def evaluate(
    personaliser: Personaliser,
    protocol: Protocol,
    *,
    methods: Sequence[str] = (DEFAULT_METHOD,),
    with_baselines: bool = True,
    trained: dict[str, Trained] | None = None,
    trained_conditions: Iterable[str] = ("1 cycle", "4 cycles"),
    progress: Progress = lambda what, done, total: None,
    command: str = "",
) -> Evaluation:
    """Score the generic head, baselines and guarded personal heads.

    Args:
        personaliser: the bundle, in this process or behind HTTP.
        protocol: whom to calibrate and score.
        methods: of the personal heads, the one that the row "personal head" is of first.
        with_baselines: also closed-form heads on hand-made features and on the bundle's.
        trained: further methods that train on a calibration set and give logits for windows, by name; slow.
        trained_conditions: conditions in which those run.
        progress: told the subject, how many are done, and how many there are.
        command: recorded.
    """
    begin = time.monotonic()
    local = personaliser if isinstance(personaliser, LocalPersonaliser) else None
    k = len(protocol.labels)
    extra: list[Baseline] = []
    if with_baselines:
        spec = None if protocol.input.parts else protocol.spec
        extra = baselines(k, local, protocol.population, protocol.labels, spec)
    tally = _Tally()
    for i, subject in enumerate(protocol.subjects()):
        progress(subject.name, i, len(protocol))
        tally.count(subject)
        _generic(tally, subject, personaliser)
        for method in methods:
            _personal(
                tally, subject, personaliser, method, PERSONAL if method == methods[0] else f"{PERSONAL}, {method}"
            )
        for baseline in extra:
            _baseline(tally, subject, baseline, protocol.labels)
        for name, train in (trained or {}).items():
            _trained(tally, subject, name, train, set(trained_conditions), protocol.labels)
        if local is not None:
            local.forget_features()
    progress("done", len(protocol), len(protocol))
    length, stride = protocol.seconds
    return Evaluation(
        protocol.name,
        protocol.description,
        tally.conditions,
        tally.table(),
        tally.users,
        tally.outcomes,
        tally.recordings,
        tally.windows,
        ((10 - 1) * stride + length) * 1e3,
        made_of(personaliser, protocol, command, time.monotonic() - begin),
        tally.notes,
        {c: round(float(np.mean(found)), 3) for c, found in tally.labelled.items()},
    )


@dataclass(slots=True)
class _Tally:
    """What was scored so far, as `Evaluation` has it."""

    users: dict[str, dict[str, dict[str, Scores]]] = field(default_factory=dict)
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    conditions: list[str] = field(default_factory=lambda: [ZERO_SHOT])
    notes: list[str] = field(default_factory=list)
    labelled: dict[str, list[float]] = field(default_factory=dict)
    recordings: int = 0
    windows: int = 0

    def count(self, subject: Subject) -> None:
        """Take up a subject: how much there is to score, in which conditions, and what is odd about it."""
        self.recordings += sum(subject.recordings.values())
        self.windows += sum(len(w) for w in subject.tests.values())
        self.conditions += [c.name for c in subject.conditions if c.name not in self.conditions]
        for c in subject.conditions:
            y = c.calibration.y
            self.labelled.setdefault(c.name, []).append(len(y) / len(np.unique(y)))
        self.notes += subject.notes
        self.notes += [
            f"{subject.name}, {t}: {n} recordings shorter than a window" for t, n in subject.too_short.items() if n
        ]

    def put(self, method: str, condition: str, user: str, scores: Scores) -> None:
        """Note a subject's scores."""
        self.users.setdefault(method, {}).setdefault(condition, {})[user] = scores

    def decided(self, condition: str, said: str) -> None:
        """Count a verdict of the guard."""
        count = self.outcomes.setdefault(condition, {})
        count[said] = count.get(said, 0) + 1

    def table(self) -> dict[str, dict[str, Summary]]:
        """Summaries over subjects, beside the generic head's."""
        generic = self.users[GENERIC][ZERO_SHOT]
        return {
            m: {c: summarise(row[c], generic) for c in self.conditions if c in row} for m, row in self.users.items()
        }


def _over_tests(
    subject: Subject, labels: tuple[str, ...], probabilities: Callable[[NDArray[np.float32]], NDArray[np.floating]]
) -> Scores:
    found = []
    for test in subject.tests.values():
        p = probabilities(test.x)
        if len(p) != len(test):
            raise RuntimeError(f"{len(p)} of {len(test)} windows of {subject.name} were scored")
        found.append(score(p, test.y, test.recording, labels))
    return mean_scores(found)


def _generic(tally: _Tally, subject: Subject, p: Personaliser) -> None:
    scores = _over_tests(subject, p.manifest.labels, lambda x: p.predict(None, x))
    tally.put(GENERIC, ZERO_SHOT, subject.name, scores)


def _personal(tally: _Tally, subject: Subject, p: Personaliser, method: str, row: str) -> None:
    for condition in subject.conditions:
        user, chosen = f"{subject.name} {condition.name}", condition.calibration
        p.erase(user)
        outcome = p.calibrate(user, chosen.x, chosen.y, chosen.repetition, method)
        if row == PERSONAL:
            tally.decided(condition.name, f"{outcome.outcome} ({outcome.evidence})")
        scores = _over_tests(subject, p.manifest.labels, lambda x, user=user: p.predict(user, x))  # type: ignore[misc]
        tally.put(row, condition.name, subject.name, scores)
        p.erase(user)


def _baseline(tally: _Tally, subject: Subject, baseline: Baseline, labels: tuple[str, ...]) -> None:
    tests = {id(t.x): baseline.extract(t.x) for t in subject.tests.values()}
    for condition in subject.conditions:
        chosen = condition.calibration
        head = baseline.fit(baseline.extract(chosen.x), chosen.y, chosen.repetition)
        scores = _over_tests(subject, labels, lambda x, head=head: softmax(head.logits(tests[id(x)])))  # type: ignore[misc]
        tally.put(baseline.name, condition.name, subject.name, scores)


def _trained(
    tally: _Tally, subject: Subject, name: str, method: Trained, wanted: set[str], labels: tuple[str, ...]
) -> None:
    for condition in subject.conditions:
        if condition.name in wanted:
            together = np.concatenate([t.x for t in subject.tests.values()])
            logits = method(condition.calibration, together)
            parts = np.split(logits, np.cumsum([len(t) for t in subject.tests.values()])[:-1])
            by_test = {id(t.x): part for t, part in zip(subject.tests.values(), parts, strict=True)}
            scores = _over_tests(subject, labels, lambda x, by_test=by_test: softmax(by_test[id(x)]))  # type: ignore[misc]
            tally.put(name, condition.name, subject.name, scores)


def configuration_hash(personaliser: Personaliser) -> str:
    """Digest of every setting that personal heads depend on: recorded before test subjects are scored."""
    return configuration_of(personaliser.manifest.feature_space, personaliser.manifest.head)


def configuration_of(feature_space: str, head: HyperParameters) -> str:
    """The same digest from its parts."""
    text = json.dumps([feature_space, head.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_of(provenance: Mapping[str, Any]) -> str:
    """Digest of the training that a bundle or a run is of: the same for both, and for variants of the bundle."""
    known = {
        k: provenance[k] for k in ("command", "config", "subjects", "data", "started", "finished") if k in provenance
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def made_of(p: Personaliser, protocol: Protocol, command: str, seconds: float) -> dict[str, Any]:
    """What an evaluation was made of: model, configuration, people, command, versions."""
    return {
        "model": f"{p.manifest.name}/{p.manifest.version}",
        "feature_space": p.manifest.feature_space,
        "configuration": configuration_hash(p),
        "training": training_of(p.manifest.provenance),
        "subjects": [{"stem": r.stem, "digest": r.digest} for r in protocol.test],
        "population": [r.stem for r in protocol.population],
        "command": command,
        "seconds": round(seconds, 1),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "headway": version("headway"),
            "onnxruntime": _version("onnxruntime"),
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "absent"


def log_run(path: Path, evaluation: Evaluation) -> int:
    """Append an evaluation to a log of runs (one JSON object a line) and return how many it holds."""
    personal = evaluation.table[PERSONAL]
    entry = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "protocol": evaluation.protocol,
        **{k: evaluation.made_of[k] for k in ("model", "configuration", "command")},
        "generic": round(100 * evaluation.table[GENERIC][ZERO_SHOT].mean.accuracy, 2),
        "personal": {c: round(100 * s.mean.accuracy, 2) for c, s in personal.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as f:
        f.write(json.dumps(entry) + "\n")
        f.flush()
        os.fsync(f.fileno())
    return len(path.read_text().splitlines())
