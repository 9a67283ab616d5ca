"""Which blobs go first. Pure.

Not their removal. Invariants: a blob in a history goes after all that nobody names; among equals the longest unused goes
first; nothing is chosen beyond what is asked for, and nothing at all if all of it would not do.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from autowasm.digest import Sha256Hex


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored blob that nobody has published. `used`: when it was last, in seconds of any clock; `kept`: in a history."""

    sha256: Sha256Hex
    size: int
    used: float
    kept: bool


def expired(candidates: Iterable[Candidate], *, before: float) -> list[Candidate]:
    """Those that nobody names and that were last used before that time."""
    return [each for each in candidates if not each.kept and each.used < before]


def choose(candidates: Iterable[Candidate], size: int) -> list[Candidate]:
    """The first to go for `size` bytes of room; empty if all together are less."""
    chosen: list[Candidate] = []
    for each in sorted(candidates, key=lambda each: (each.kept, each.used, each.sha256)):
        if size <= 0:
            break
        chosen.append(each)
        size -= each.size
    return chosen if size <= 0 else []
