"""Members of a fusion as its fit sees them: a finished run, which can leave people out, or a bundle as it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.data.recordings import Recordings
from models.heads.head import Head
from models.training.run import Run
from models.training.strangers import strangers

__all__ = ["FrozenSource", "Joined", "RunSource", "Source", "Tick", "in_blocks"]

Array = NDArray[np.float64]
Windows = NDArray[np.float32]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
Tick = Callable[[str, int, int], None]
Forward = Callable[[Windows], NDArray[np.float32]]


def in_blocks(forward: Forward, x: Windows) -> NDArray[np.float32]:
    """Features `(n, d)` of windows, 64 at a time."""
    return np.concatenate([forward(x[at : at + 64]) for at in range(0, len(x), 64)])


class Source(Protocol):
    """A member as the fit sees it: people are numbers, the same for all members."""

    personal: int
    head: Head

    def final(self, person: int) -> Array:
        """Features `(n, d)` of a person's windows by the member that will be served."""

    def without(self, left_out: int, person: int) -> Array:
        """Personal features `(n, p)` of a person's windows in a space that `left_out` had no part in."""

    def evidence(self, person: int) -> Array:
        """Generic logits `(n, K)` of a person's windows from what the person had no part in."""


@dataclass(frozen=True, eq=False)
class Joined:
    """A person's windows: labels, sessions, repetitions `(n,)`; `present (n, M)` which members each has, or all."""

    y: Labels
    session: Labels
    repetition: Labels
    present: Mask | None = None

    def there(self, members: int) -> Mask:
        """Which members each window has, `(n, M)`."""
        return np.ones((len(self.y), members), bool) if self.present is None else self.present


class FrozenSource:
    """A bundle that nobody of the data had a part in: its features are the same whoever is left out.

    Args:
        features: everybody's by its graph, `(n, d)` by person; rows that lack the part are not read.
        head: its generic head, rows in the order of the joint labels.
        personal: how many first features personal heads are fitted in.
    """

    def __init__(self, features: Sequence[NDArray[np.floating]], head: Head, personal: int) -> None:
        self.head, self.personal, self._features = head, personal, features

    def final(self, person: int) -> Array:
        """Features `(n, d)` of a person's windows."""
        return self._features[person].astype(np.float64)

    def without(self, left_out: int, person: int) -> Array:
        """Personal features `(n, p)`: nobody had a part in them."""
        return self.final(person)[:, : self.personal]

    def evidence(self, person: int) -> Array:
        """Generic logits `(n, K)`."""
        return self.head.logits(self.final(person))


class RunSource(FrozenSource):
    """A run that was trained on the people of the data: each is judged by what its folds made of the others.

    Args:
        features, head, personal: as of a bundle, the run's export.
        windows: everybody's, by person.
        run: the run.
        recordings: what it was trained on.
        people: names of the people, in the order of `windows`.
        order: index of each joint label among the run's own.

    Raises:
        TrainingError: the recordings are not the run's, or its checkpoints are gone.
    """

    def __init__(
        self,
        features: Sequence[NDArray[np.floating]],
        head: Head,
        personal: int,
        windows: Sequence[Windows],
        run: Run,
        recordings: Sequence[Recordings],
        people: Sequence[str],
        order: Sequence[int],
    ) -> None:
        super().__init__(features, head, personal)
        self._order = list(order)
        self._own: dict[int, Array] = {}
        self._without: dict[tuple[int, int], NDArray[np.float32]] = {}
        for stranger in strangers(run, recordings):
            u = list(people).index(stranger.name)
            # One stranger at a time: each holds a network of its own.
            for v, x in enumerate(windows):
                found = stranger.features(x)
                self._without[u, v] = found[:, :personal].astype(np.float32)
                if u == v:
                    self._own[u] = found[:, personal:][:, self._order]

    def without(self, left_out: int, person: int) -> Array:
        """Personal features `(n, p)` in the space of all but `left_out`."""
        return self._without[left_out, person].astype(np.float64)

    def evidence(self, person: int) -> Array:
        """Generic logits `(n, K)` by the fold that left the person out."""
        return self._own[person]
