"""Completion in bash, zsh and fish by argcomplete: the shell runs `wasmc` with a variable, and gets the possible words.

Invariants: argcomplete is imported only for completion; the names of AutoWasms come from the cluster of the flags, within `_DEADLINE`;
after an error there are no names.
"""

import argparse
from typing import Any, Final

VARIABLE: Final = "_ARGCOMPLETE"
"""Set by the shell's code of argcomplete."""
SHELLS: Final = ("bash", "zsh", "fish")
_PROGRAMS: Final = ("wasmc", "kubectl-autowasm")
_DEADLINE: Final = 3.0
"""Seconds for which a user waits for names after pressing the Tab key."""


def code(shell: str) -> str:
    """The code for the shell's configuration."""
    import argcomplete  # noqa: PLC0415 - see the invariant

    return str(argcomplete.shellcode(list(_PROGRAMS), shell=shell))


def answer(parser: argparse.ArgumentParser) -> None:
    """Write the possible words and exit."""
    import argcomplete  # noqa: PLC0415

    argcomplete.autocomplete(parser)


def autowasm_names(*, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The names of AutoWasms, for argcomplete."""
    from autowasm.cli import clusters  # noqa: PLC0415 - reads a cluster

    return clusters.names(parsed_args, timeout=_DEADLINE)
