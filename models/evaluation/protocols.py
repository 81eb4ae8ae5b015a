"""Protocols: whom an evaluation scores, and by which rules.

Both protocols are of the inductive track: nothing of the scored sessions is used before they are scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.bundle import InputSpec, Manifest
from models.data.recordings import Recordings, RecordingsError, load, load_folder, recording_files
from models.data.splits import assert_disjoint
from models.data.windows import WindowSpec
from models.evaluation.paired import People, load_people, paired_subject
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
    `people`: of a fused model, recordings of those scored, by part.
    """

    rules: Rules
    labels: tuple[str, ...]
    input: InputSpec
    test: tuple[Recordings, ...]
    population: tuple[Recordings, ...]
    trained_on: tuple[str, ...] = ()
    people: People | None = None

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

    @property
    def seconds(self) -> tuple[float, float]:
        """Length of a window and time to the next one, in s; of a fused model the longest of its parts."""
        parts = self.input.parts or (self.input,)
        length = max(part.window_shape[-1] / part.sample_rate for part in parts)
        return length, max(part.stride / part.sample_rate for part in parts)

    def __len__(self) -> int:
        """Number of people scored."""
        return len(self.test if self.people is None else self.people)

    def subjects(self) -> Iterator[Subject]:
        """Cut one user after another, so that one user's windows are in memory at a time.

        Raises:
            ProtocolError: a user's recordings do not fit the protocol.
        """
        for own in (self.people or {}).values():
            yield paired_subject(own, self.input, self.labels)
        for rec in self.test if self.people is None else ():
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
        data: folder of recordings; of a fused model with a folder for each part.
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
    if manifest.input.parts:
        return _of_parts(rules, manifest, data, subjects, digests, allow_training_subjects)
    test = _chosen(rules, data, subjects, digests)
    overlap = tuple(r.stem for r in test if r.digest in digests)
    _check_strangers(overlap, allow_training_subjects)
    for rec in test:
        check_signal(rec, manifest.input, manifest.labels)
    people = _population(rules, data, population, digests, {r.digest for r in test})
    for rec in people:
        check_signal(rec, manifest.input, manifest.labels)
    assert_disjoint(people, test)
    return Protocol(rules, manifest.labels, manifest.input, tuple(test), tuple(people), overlap)


def _check_strangers(overlap: Sequence[str], allowed: bool) -> None:
    if overlap and not allowed:
        raise ProtocolError(
            f"The model was trained on {', '.join(overlap)}: their scores would say nothing of new users. "
            "Choose others with --subjects, or pass --allow-training-subjects and have the table say so."
        )


def _of_parts(
    rules: Rules, manifest: Manifest, data: Path, subjects: str | None, digests: set[str], allowed: bool
) -> Protocol:
    """The people of an evaluation of a fused model."""
    spec = manifest.input
    if any(part.media is not None or len(part.window_shape) != 2 for part in spec.parts):
        raise ProtocolError(
            "This evaluates models of recordings; what left-out people would get of images, texts and sounds is in the "
            "manifest's evaluation, from `headway fuse`."
        )
    if rules.paper_only:
        raise ProtocolError(
            f"The protocol '{rules.name}' is of one armband's recordings; for several parts there is 'cycles'."
        )
    people = load_people(data, spec, subjects)
    known = {name: any(r.digest in digests for own in parts.values() for r in own) for name, parts in people.items()}
    if subjects is None:
        people = {name: parts for name, parts in people.items() if not known[name]}
    if not people:
        raise ProtocolError(
            f"{data} holds nobody to score: the model was trained on all of them. Choose people with --subjects."
        )
    overlap = tuple(name for name in people if known[name])
    _check_strangers(overlap, allowed)
    test = tuple(r for parts in people.values() for own in parts.values() for r in own)
    return Protocol(rules, manifest.labels, spec, test, (), overlap, people)


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
