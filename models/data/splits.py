"""Splits by user and by repetition, and the check that nothing is on both sides.

There is no split of windows at random here, on purpose: windows overlap, so a random split puts nearly the same
samples on both sides, where one nearest neighbour scores 100 %.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.data.recordings import Recordings
from models.data.windows import Windows

__all__ = [
    "LeakageError",
    "SplitError",
    "assert_disjoint",
    "folds",
    "recording_prints",
    "split_repetitions",
    "split_subjects",
]


class SplitError(ValueError):
    """A split was asked for that the data cannot give."""


class LeakageError(SplitError):
    """The same person, or the same samples, would be on both sides of a split."""


def split_subjects(recs: Sequence[Recordings], held_out: float, seed: int) -> tuple[list[Recordings], list[Recordings]]:
    """Whole people on either side: `(train, held out)`, each in the order given.

    `held_out`: how many people (int), or the share of them (float between 0 and 1, at least one person). Files that
    name the same subject stay together. Raises `SplitError` when a side would be empty, `LeakageError` when two
    people's files share a recording.
    """
    people = _people(recs)
    if isinstance(held_out, int):
        count = held_out
    else:
        if not 0 < held_out < 1:
            raise SplitError(f"The share held out lies between 0 and 1, not {held_out}; a whole number counts people.")
        count = max(1, round(held_out * len(people)))
    if not 0 < count < len(people):
        raise SplitError(f"Of {len(people)} people, 1 to {len(people) - 1} can be held out, not {count}.")
    order = np.random.default_rng(seed).permutation(len(people))
    return _sides(recs, {people[i] for i in order[:count]})


def folds(recs: Sequence[Recordings], k: int, seed: int) -> list[tuple[list[Recordings], list[Recordings]]]:
    """`k` pairs `(train, held out)`; each person is held out in exactly one. `k` = people: leave one user out.

    Raises `SplitError` when `k` is under 2 or above the number of people, `LeakageError` as `split_subjects`.
    """
    people = _people(recs)
    if not 2 <= k <= len(people):
        raise SplitError(f"Of {len(people)} people, 2 to {len(people)} folds can be made, not {k}.")
    order = np.random.default_rng(seed).permutation(len(people))
    return [_sides(recs, {people[i] for i in part}) for part in np.array_split(order, k)]


def assert_disjoint(train: Sequence[Recordings], test: Sequence[Recordings]) -> None:
    """Refuse data that is on both sides.

    Raises `LeakageError` naming both files when a file of each side has the same content, the same stem or subject,
    or when any single recording has the same samples, whatever its label, file, cycle or stored type. A copy that was
    cut or scaled anew is beyond this check.
    """
    _assert_apart([(rec, "train") for rec in train] + [(rec, "test") for rec in test])


def split_repetitions(windows: Windows, calibrate: int) -> tuple[Windows, Windows]:
    """One subject's windows as `(the first `calibrate` repetitions of the first session, all the rest)`.

    For a score on other sessions only, select by `session` from the rest. Raises `SplitError` when either part would
    be empty, `LeakageError` when windows of both share samples (recordings that overlap, or several subjects' windows
    at once).
    """
    if len(windows) == 0:
        raise SplitError("There are no windows to split.")
    first = windows.session == windows.session.min()
    repetitions = np.unique(windows.repetition[first])
    if not 1 <= calibrate <= len(repetitions):
        raise SplitError(
            f"The first session has {len(repetitions)} repetitions; 1 to {len(repetitions)} can calibrate, "
            f"not {calibrate}."
        )
    mask = first & np.isin(windows.repetition, repetitions[:calibrate])
    if mask.all():
        raise SplitError(f"{calibrate} repetitions are all there is; nothing is left to score.")
    _assert_no_shared_samples(windows.start[mask], windows.start[~mask], windows.x.shape[2])
    return windows.select(mask), windows.select(~mask)


def recording_prints(rec: Recordings) -> list[str | None]:
    """A fingerprint of each recording's samples, blind to labels, borders in the file and stored type.

    None for a recording that never changes: silence is alike in everybody.
    """
    prints: list[str | None] = []
    for start, stop in zip(rec.start, rec.stop, strict=True):
        samples = np.ascontiguousarray(rec.signal[start:stop], dtype=np.float32)
        if (samples == samples[0]).all():
            prints.append(None)
            continue
        samples = samples + np.float32(0)  # -0.0 becomes 0.0, which has other bytes
        prints.append(hashlib.blake2b(f"{samples.shape}".encode() + samples.tobytes(), digest_size=16).hexdigest())
    return prints


def _people(recs: Sequence[Recordings]) -> list[str]:
    _assert_apart([(rec, rec.subject) for rec in recs])
    return list(dict.fromkeys(rec.subject for rec in recs))


def _sides(recs: Sequence[Recordings], held: set[str]) -> tuple[list[Recordings], list[Recordings]]:
    return [rec for rec in recs if rec.subject not in held], [rec for rec in recs if rec.subject in held]


def _assert_apart(placed: Sequence[tuple[Recordings, str]]) -> None:
    seen: dict[tuple[str, str], tuple[Recordings, str]] = {}
    for rec, side in placed:
        keys = [("the same content", rec.digest), ("the same stem", rec.stem), ("the same subject", rec.subject)]
        keys += [(f"recording {i}", f"samples {key}") for i, key in enumerate(recording_prints(rec)) if key is not None]
        for what, value in keys:
            # Samples match whatever their place in the file; the other keys only their own kind.
            key = ("samples", value) if value.startswith("samples ") else (what, value)
            other, other_side = seen.setdefault(key, (rec, side))
            if other_side != side:
                told = f"the samples of {what} of the latter" if key[0] == "samples" else f"{what} ({value})"
                raise LeakageError(
                    f"{other.stem} and {rec.stem} share {told}: they cannot be on both sides of a split. "
                    f"Leave one out, for example with the subjects '*,!{rec.stem}'."
                )


def _assert_no_shared_samples(left: NDArray[np.int64], right: NDArray[np.int64], length: int) -> None:
    ordered = np.sort(left)
    after = np.searchsorted(ordered, right)
    near = np.abs(right - ordered[np.clip(after, 0, len(ordered) - 1)]) < length
    near |= np.abs(right - ordered[np.clip(after - 1, 0, len(ordered) - 1)]) < length
    if near.any():
        raise LeakageError(
            f"A window of the calibration and one of the rest share samples near {int(right[np.argmax(near)])}: "
            "recordings overlap, or the windows of several subjects were split at once; split each subject's own."
        )
