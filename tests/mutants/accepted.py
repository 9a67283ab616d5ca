"""Survivors that are accepted, each with its reason.

An entry names a mutant by its module, the function that holds it and the changed lines, so it stays valid when lines move.
It becomes stale when the code changes or a test kills the mutant: a stale entry is an error, so the list only holds what
still survives.
"""

import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.mutants.mutation import Mutant

FILE: Final = Path(__file__).with_name("accepted.toml")
_FIELDS: Final = frozenset({"module", "where", "before", "after", "reason"})
Key = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Accepted:
    """An entry of the list."""

    module: str
    where: str
    before: str
    after: str
    reason: str

    @property
    def key(self) -> Key:
        """The key of the entry."""
        return self.module, self.where, self.before, self.after


def key_of(mutant: Mutant) -> Key:
    """The key of an entry that accepts this mutant."""
    return mutant.module, mutant.where, mutant.before, mutant.after


def read(text: str) -> list[Accepted]:
    """The entries of a list.

    Raises:
        ValueError: An entry has unknown or missing fields, has no reason, or occurs twice.
    """
    entries: list[Accepted] = []
    for number, table in enumerate(tomllib.loads(text).get("accepted", []), 1):
        if set(table) != _FIELDS:
            raise ValueError(f"accepted[{number}]: fields must be {', '.join(sorted(_FIELDS))}")
        entry = Accepted(**{name: value.strip() for name, value in table.items()})
        if not entry.reason:
            raise ValueError(f"accepted[{number}]: give the reason for {entry.before!r}")
        if any(entry.key == other.key for other in entries):
            raise ValueError(f"accepted[{number}]: listed twice: {entry.before!r}")
        entries.append(entry)
    return entries


def stale(
    entries: Iterable[Accepted], *, survivors: Collection[Mutant], modules: Collection[str]
) -> list[Accepted]:
    """Entries of these modules that accept no survivor."""
    keys = {key_of(mutant) for mutant in survivors}
    return [entry for entry in entries if entry.module in modules and entry.key not in keys]


def as_toml(mutant: Mutant) -> str:
    """An entry for this mutant, still without a reason."""
    lines = ["[[accepted]]", f'module = "{mutant.module}"', f'where = "{mutant.where}"']
    lines += [f"{name} = {_quoted(getattr(mutant, name))}" for name in ("before", "after")]
    return "\n".join([*lines, 'reason = ""'])


def _quoted(text: str) -> str:
    """A TOML string. Literal where possible: code is full of quotation marks and backslashes."""
    return f"'''\n{text}'''" if "\n" in text or "'" in text else f"'{text}'"
