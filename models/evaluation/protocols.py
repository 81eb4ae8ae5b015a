"""Protocols: whom an evaluation scores, and by which rules.

Both protocols are of the inductive track: nothing of the scored sessions is used before they are scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exporters.bundle import InputSpec, Manifest
from models.data.recordings import Recordings, RecordingsError, load, load_folder, recording_files
from models.data.splits import assert_disjoint
from models.data.windows import WindowSpec
from models.evaluation.subjects import Condition, ProtocolError, Rules, Subject, check_signal, make_subject

__all__ = ["PROTOCOLS", "Condition", "Protocol", "ProtocolError", "Rules", "Subject", "make_subject", "plan"]

PROTOCOLS = {
    rules.name: rules
    for rules in (
        Rules(
            name="myo",
            description=(
                "Côté-Allard et al. 2019: calibrate on the first windows or cycles of training0, score all "
                "windows of Test0 and Test1, mean over the two, then over users"
            ),
            calibration="training0",
            tests=("Test0", "Test1"),
            subjects="eval_*",
            population="pretrain_*",
            paper_only=True,
        ),
        Rules(
            name="cycles",
            description=(
                "calibrate on the first windows or repetitions of a user's first session, score all windows "
                "of the other sessions (one session: of the repetitions that no condition calibrates on)"
            ),
        ),
    )
}


@dataclass(frozen=True, eq=False)
class Protocol:
    """A protocol with its people: `test` are scored, `population` is for baselines that need one.

    `trained_on` names people who are scored although the model was trained on them (only when that was allowed).
    """

    rules: Rules
    labels: tuple[str, ...]
    input: InputSpec
    test: tuple[Recordings, ...]
    population: tuple[Recordings, ...]
    trained_on: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the protocol."""
        return self.rules.name

    @property
    def description(self) -> str:
        """What is calibrated on and what is scored; says so when people of the training are among the scored."""
        if not self.trained_on:
            return self.rules.description
        return f"{self.rules.description}. NOT HELD OUT: the model was trained on {', '.join(self.trained_on)}"

    @property
    def spec(self) -> WindowSpec:
        """The model's windows, in samples."""
        return WindowSpec(self.input.window_shape[1], self.input.stride)

    def subjects(self) -> Iterator[Subject]:
        """Cut one user after another, so that one user's windows are in memory at a time.

        Raises:
            ProtocolError: a user's recordings do not fit the protocol.
        """
        for rec in self.test:
            yield make_subject(rec, self.rules, self.input, self.labels)


def plan(
    protocol: str,
    manifest: Manifest,
    data: Path,
    *,
    subjects: str | None = None,
    population: str | None = None,
    allow_training_subjects: bool = False,
) -> Protocol:
    """Choose the people of an evaluation and check that they suit the model and that none is on both sides.

    Args:
        protocol: a name in `PROTOCOLS`.
        manifest: of the bundle to be scored; its provenance names the people it was trained on.
        data: folder of recordings.
        subjects: globs of the people to score; None takes the protocol's, or all that the model was not trained on.
        population: globs of the population; None takes the protocol's, or the people that the model was trained on.
        allow_training_subjects: score people of the training, and say so, where it is refused otherwise.

    Raises:
        ProtocolError: nobody to score, a person of the training, or recordings that the model does not take.
        RecordingsError: the folder or a file cannot be read.
        LeakageError: population and test share people or samples.
    """
    if protocol not in PROTOCOLS:
        raise ProtocolError(f"There is no protocol '{protocol}'; there are: {', '.join(PROTOCOLS)}.")
    rules = PROTOCOLS[protocol]
    digests = {s["digest"] for s in manifest.provenance.get("subjects", []) if "digest" in s}
    test = _chosen(rules, data, subjects, digests)
    overlap = tuple(r.stem for r in test if r.digest in digests)
    if overlap and not allow_training_subjects:
        raise ProtocolError(
            f"The model was trained on {', '.join(overlap)}: their scores would say nothing of new users. "
            "Choose others with --subjects, or pass --allow-training-subjects and have the table say so."
        )
    for rec in test:
        check_signal(rec, manifest.input, manifest.labels)
    people = _population(rules, data, population, digests, {r.digest for r in test})
    for rec in people:
        check_signal(rec, manifest.input, manifest.labels)
    assert_disjoint(people, test)
    return Protocol(rules, manifest.labels, manifest.input, tuple(test), tuple(people), overlap)


def _chosen(rules: Rules, data: Path, subjects: str | None, digests: set[str]) -> list[Recordings]:
    found = load_folder(data, subjects or rules.subjects or "*")
    if rules.paper_only:
        found = [r for r in found if r.in_paper]
    elif subjects is None:
        found = [r for r in found if r.digest not in digests]
    if not found:
        why = "the publication used none of them" if rules.paper_only else "the model was trained on all of them"
        raise ProtocolError(f"{data} holds nobody to score: {why}. Choose people with --subjects.")
    return found


def _population(
    rules: Rules, data: Path, population: str | None, digests: set[str], scored: set[str]
) -> list[Recordings]:
    if population is not None:
        return [r for r in load_folder(data, population) if r.in_paper or not rules.paper_only]
    if rules.population is not None:
        try:
            found = load_folder(data, rules.population)
        except RecordingsError:
            return []  # only baselines need one, and a folder of test people alone is no mistake
        return [r for r in found if r.in_paper or not rules.paper_only]
    people = []
    for path in recording_files(data) if digests else []:
        try:
            rec = load(path)
        except RecordingsError:
            continue  # not of the training, whose digests are of files that could be read
        if rec.digest in digests - scored:
            people.append(rec)
    return people
