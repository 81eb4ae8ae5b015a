"""The public Myo armband data set, cloned from its repository and converted to recordings.

Upstream keeps `{PreTrainingDataset,EvaluationDataset}/{Female,Male}<n>/<session>/classe_<i>.dat`: little-endian int16,
8 channels interleaved at 200 Hz, `i` from 0 to 27, gesture `i % 7`, repetition `i // 7`. Its licence is the GNU GPL v3,
so the data is fetched by whoever uses it and never shipped.
"""

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.folders import Progress, fresh_folder
from models.data.recordings import Recordings, RecordingsError, save

__all__ = ["MYO_COMMIT", "MYO_NOTICE", "MYO_URL", "DownloadError", "convert_myo", "download_myo"]

MYO_URL = "https://github.com/UlysseCoteAllard/MyoArmbandDataset"
MYO_COMMIT = "4de3efef85356fbf565d96a150f386d99165cfee"
MYO_NOTICE = (
    f"Myo armband recordings of {MYO_URL}, under the GNU GPL v3: do not redistribute them within a product of another "
    "licence. Please cite U. Côté-Allard et al., IEEE TNSRE 27(4):760-771, 2019 (arXiv:1801.07756)."
)
_GESTURES = (
    "neutral",
    "radial_deviation",
    "wrist_flexion",
    "ulnar_deviation",
    "wrist_extension",
    "hand_close",
    "hand_open",
)
_CHANNELS, _RATE_HZ = 8, 200.0
_PARTS = {
    "pretrain": ("PreTrainingDataset", ("training0",)),
    "eval": ("EvaluationDataset", ("training0", "Test0", "Test1")),
}
# How many women and men of each part the publication used: Female0 …, Male0 …
_IN_PAPER = {("pretrain", "F"): 7, ("pretrain", "M"): 12, ("eval", "F"): 2, ("eval", "M"): 15}


class DownloadError(RecordingsError):
    """A data set could not be fetched, or is not laid out as expected."""


def download_myo(
    out: str | os.PathLike[str],
    *,
    url: str = MYO_URL,
    commit: str = MYO_COMMIT,
    progress: Progress | None = None,
    timeout_s: float = 1800.0,
) -> list[Path]:
    """Clone one commit of the data set and write it as recordings into the new folder `out`, or nothing at all.

    `timeout_s` bounds each git command. The notice of licence and citation is `MYO_NOTICE`, also written to
    `out/LICENCE.txt`. Raises `DownloadError` with a sentence when there is no git, no network or no such commit.
    """
    with fresh_folder(out) as folder, tempfile.TemporaryDirectory(prefix="headway-myo-") as clone:
        _say(progress, f"fetching {url}", 0, 1)
        _clone(url, commit, Path(clone), timeout_s)
        stems = _convert(Path(clone), folder, progress)
    return [Path(out) / f"{stem}.npz" for stem in stems]


def convert_myo(
    checkout: str | os.PathLike[str], out: str | os.PathLike[str], *, progress: Progress | None = None
) -> list[Path]:
    """Write a checkout of the data set that is on this disk already as recordings into the new folder `out`."""
    with fresh_folder(out) as folder:
        stems = _convert(Path(checkout), folder, progress)
    return [Path(out) / f"{stem}.npz" for stem in stems]


def _clone(url: str, commit: str, into: Path, timeout_s: float) -> None:
    _git(["init", "--quiet"], into, timeout_s)
    _git(["remote", "add", "origin", url], into, timeout_s)
    # Only one commit, and of it only the signals: the repository also holds trained weights and images.
    _git(["config", "core.sparseCheckout", "true"], into, timeout_s)
    patterns = into / ".git" / "info" / "sparse-checkout"
    patterns.parent.mkdir(exist_ok=True)
    patterns.write_text("/PreTrainingDataset/**/*.dat\n/EvaluationDataset/**/*.dat\n", encoding="utf-8")
    _git(["fetch", "--quiet", "--depth", "1", "--filter=blob:none", "origin", commit], into, timeout_s)
    _git(["checkout", "--quiet", "FETCH_HEAD"], into, timeout_s)


def _git(arguments: list[str], folder: Path, timeout_s: float) -> None:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set inside hooks; they would point at another one
        environment.pop(name, None)
    try:
        subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except FileNotFoundError as error:
        raise DownloadError("Downloading needs the program git, which is not installed.") from error
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"git {arguments[0]} took more than {timeout_s:g} s; is the network slow?") from error
    except subprocess.CalledProcessError as error:
        raise DownloadError(_explained(arguments[0], str(error.stderr))) from error


def _explained(command: str, stderr: str) -> str:
    lines = [line for line in stderr.strip().splitlines() if line]
    said = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else "no reason")
    unreachable = re.search(
        r"Could not resolve|unable to access|Failed to connect|timed out|unreachable|Connection refused", stderr
    )
    if unreachable:
        return (
            f"The data set's server cannot be reached from here ({said}). Run this where there is a network and "
            "copy the folder, or try 'headway data synth' or 'headway data watch', which need none."
        )
    return f"git {command} failed: {said}."


@dataclass(frozen=True)
class _Person:
    group: str  # pretrain or eval
    sex: str  # F or M
    number: int
    folder: Path

    @property
    def stem(self) -> str:
        return f"{self.group}_{self.sex}{self.number}"

    @property
    def in_paper(self) -> bool:
        return self.number < _IN_PAPER[self.group, self.sex]


def _convert(checkout: Path, out: Path, progress: Progress | None) -> list[str]:
    people = list(_people(checkout))
    kept, copies = _without_copies(people)
    for copy in copies:
        _say(progress, copy, 0, len(kept))
    for done, person in enumerate(kept, start=1):
        save(out / f"{person.stem}.npz", _recordings(person))
        _say(progress, person.stem, done, len(kept))
    (out / "LICENCE.txt").write_text("\n".join([MYO_NOTICE, *copies, ""]), encoding="utf-8")
    return [person.stem for person in kept]


def _people(checkout: Path) -> Iterator[_Person]:
    for group, (part, _) in _PARTS.items():
        if not (checkout / part).is_dir():
            raise DownloadError(f"The data set has no folder {part}; is this a checkout of {MYO_URL}?")
        found = [re.fullmatch(r"(Female|Male)([0-9]+)", path.name) for path in (checkout / part).iterdir()]
        for match in sorted((m for m in found if m is not None), key=lambda m: (m[1], int(m[2]))):
            yield _Person(group, match[1][0], int(match[2]), checkout / part / match[0])


def _without_copies(people: list[_Person]) -> tuple[list[_Person], list[str]]:
    """Drop pre-training people any of whose recordings is an evaluation person's, and say so.

    Upstream's Female7, Female8 and Female9 are byte for byte the three rounds of the evaluation's Female0.
    """
    owners = {
        _hash(path): f"{person.stem}'s {path.parent.name}"
        for person in people
        if person.group == "eval"
        for path in sorted(person.folder.glob("*/classe_*.dat"))
    }
    kept, copies = [], []
    for person in people:
        paths = sorted(person.folder.glob("*/classe_*.dat")) if person.group == "pretrain" else []
        sources = [owners[digest] for digest in map(_hash, paths) if digest in owners]
        if sources:
            told = ", ".join(dict.fromkeys(sources))
            copies.append(
                f"{person.folder.parent.name}/{person.folder.name} is left out: {len(sources)} of its {len(paths)} "
                f"recordings are copies of {told}, and training on them would be training on the test."
            )
        else:
            kept.append(person)
    return kept, copies


def _hash(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _recordings(person: _Person) -> Recordings:
    sessions = _PARTS[person.group][1]
    signals, columns = [], []
    for session, name in enumerate(sessions):
        paths = {int(path.stem.split("_")[1]): path for path in (person.folder / name).glob("classe_*.dat")}
        if not paths:
            raise DownloadError(f"{person.folder / name} holds no recordings classe_0.dat, classe_1.dat and so on.")
        for index in sorted(paths):
            signals.append(_signal(paths[index]))
            columns.append((index % len(_GESTURES), index // len(_GESTURES), session))
    stop = np.cumsum([len(signal) for signal in signals])
    start = np.concatenate([[0], stop[:-1]])
    label, repetition, session_column = np.array(columns).T
    signal = np.concatenate(signals)
    if signal.min() >= -128 and signal.max() <= 127:  # the armband's native range: half the bytes, nothing lost
        signal = signal.astype(np.int8)
    return Recordings.build(
        signal,
        start,
        stop,
        label,
        repetition,
        session=session_column,
        session_names=sessions,
        label_names=_GESTURES,
        fs=_RATE_HZ,
        subject=person.stem,
        in_paper=person.in_paper,
    )


def _signal(path: Path) -> NDArray[np.int16]:
    raw = np.frombuffer(path.read_bytes(), dtype="<i2")
    whole = raw[: len(raw) // _CHANNELS * _CHANNELS]  # a last sample without all its channels is no sample
    if not len(whole):
        raise DownloadError(f"{path} is empty; the download is not whole.")
    return whole.reshape(-1, _CHANNELS).astype(np.int16)


def _say(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(what, done, total)
