"""Sets the wall clock of processes (`clock/sitecustomize.py`).

Not the clock. Invariant: a setting is written atomically.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_CLOCK = Path(__file__).with_name("clock")


@dataclass(frozen=True, slots=True)
class Clock:
    """The processes read `file`."""

    file: Path

    def jump_to(self, seconds: int) -> None:
        """From now on the clock is this far ahead of the system's, or behind it if negative."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        half = self.file.with_name(f".{self.file.name}")
        half.write_text(str(seconds))
        half.replace(self.file)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for the processes, and for no others."""
        return {**os.environ, "PYTHONPATH": str(_CLOCK), "AUTOWASM_TEST_CLOCK": str(self.file)}
