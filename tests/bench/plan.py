"""The parameters of a row: size, repeats, and the folder for its files."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """`small` is for trying the benchmark itself: its figures are meaningless."""

    directory: Path
    repeats: int
    small: bool

    def pick(self, full: T, small: T) -> T:
        """The one for this size."""
        return small if self.small else full
