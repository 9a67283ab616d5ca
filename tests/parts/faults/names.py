"""Sets the answer of a process's name service (`resolver/sitecustomize.py`) for one name.

Not the name service. Invariant: an answer is set whole or not at all.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_RESOLVER = Path(__file__).with_name("resolver")

Failure = Literal["EAI_AGAIN", "EAI_NONAME", "hang"]
"""The name server fails; it has no such name, as for a Service without endpoints; it does not answer."""


@dataclass(frozen=True, slots=True)
class Names:
    """The answers for `name`; the process reads `file`."""

    name: str
    file: Path

    def lead_to(self, addresses: Sequence[str]) -> None:
        """From now on the answer is these addresses."""
        self._tell({"what": "addresses", "addresses": list(addresses)})

    def fail(self, failure: Failure) -> None:
        """From now on the lookup fails."""
        self._tell({"what": failure})

    def lookups(self, what: str) -> int:
        """Number of lookups with the answer `what`: `addresses`, or a failure."""
        try:
            return self.file.with_name(f"{self.file.name}.asked").read_text().split().count(what)
        except FileNotFoundError:
            return 0

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for the process, and for no other."""
        return {
            **os.environ,
            "PYTHONPATH": str(_RESOLVER),
            "AUTOWASM_TEST_NAMES": str(self.file),
        }

    def _tell(self, told: Mapping[str, object]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        half = self.file.with_name(f".{self.file.name}")
        half.write_text(json.dumps({"name": self.name, **told}))
        half.replace(self.file)
