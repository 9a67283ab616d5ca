"""Parser: an argparse parser whose errors suggest the intended flag or command.

Invariants: no abbreviated flags; every usage error ends with status 2 and one sentence; this module imports nothing heavier than
argparse, because `wasmc --help` imports it.
"""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn

_SIMILAR: Final = 0.6
_UNRECOGNIZED: Final = re.compile(r"unrecognized arguments: (?P<first>\S+)")
_OF_OTHERS: Final = {"--format": "--json", "--output": "--json", "-o": "--json", "-e": "--env"}
"""Flags of other tools, and the flag that does the same in commands that have it."""


class UsageExit(SystemExit):
    """A usage error that was printed. `message`: its sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class Parser(argparse.ArgumentParser):
    """Reports usage errors in the form of all other errors, with a suggestion."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._given: list[str] = []
        self.elsewhere: Mapping[str, str] = {}
        """Commands of other tools, and their equivalents here: a sentence after "use"."""

    def parse_known_args(  # type: ignore[override]  # argparse has overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Called by argparse for this parser and for the command's parser."""
        self._given = list(args or ())
        parsed, rest = super().parse_known_args(args, namespace)
        return parsed, self._fill(parsed, rest)

    def _fill(self, parsed: argparse.Namespace, rest: list[str]) -> list[str]:
        """Assign a word after a flag to an optional argument without a value, as argparse does since Python 3.13. Returns the rest."""
        for action in self._get_positional_actions():
            is_open = action.nargs == argparse.OPTIONAL and getattr(parsed, action.dest) is None
            if is_open and len(rest) == 1 and not rest[0].startswith("-"):
                setattr(parsed, action.dest, self._get_values(action, rest))
                return []
        return rest

    def error(self, message: str) -> NoReturn:
        """Print the usage and the sentence, with a suggestion. Raises UsageExit."""
        message += self._suggestion(message)
        used = self._of_command() if _UNRECOGNIZED.match(message) else self
        self._print_message(f"{used.format_usage()}{self._program}: error: {message}\n", _stderr())
        raise UsageExit(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if isinstance(action, argparse._SubParsersAction) and value in self.elsewhere:
            told = f"there is no command {value!r}; use {self.elsewhere[value]}"
            raise argparse.ArgumentError(None, told)
        names = [str(each) for each in action.choices]
        meant = closest(str(value), names)
        told = f"invalid choice: {value!r}"
        told += f"; did you mean {meant}?" if meant else f" (choose from {', '.join(names)})"
        raise argparse.ArgumentError(action, told)

    @property
    def _program(self) -> str:
        """`wasmc` for `wasmc push`."""
        words = self.prog.split(" ")
        return " ".join(words[:2]) if words[0] == "kubectl" else words[0]

    def commands(self) -> dict[str, argparse.ArgumentParser]:
        """The parsers of the commands, by their names and aliases."""
        return {
            name: parser
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for name, parser in action.choices.items()
        }

    def _suggestion(self, message: str) -> str:
        if found := _UNRECOGNIZED.match(message):
            word = found["first"]
            used = self._of_command()._option_string_actions
            if not word.startswith("-") and "-o" in used:
                return f"; did you mean -o {word}?"
            other = _OF_OTHERS.get(word.partition("=")[0], "")
            meant = other if other in used else self._meant(word)
            return f"; did you mean {meant}?" if meant else ""
        if message.startswith("the following arguments are required"):
            for word in self._given:
                flag = word.partition("=")[0]
                if flag == "--":
                    break
                if flag.startswith("--") and flag not in self._option_string_actions:
                    meant = closest(flag, self._option_string_actions)
                    return f"; unknown flag {flag}" + (f": did you mean {meant}?" if meant else "")
        return ""

    def _meant(self, word: str) -> str:
        """The flag of this parser or of the given command that `word` misspells."""
        if not word.startswith("-"):
            return ""
        flags = list(self._option_string_actions)
        if (used := self._of_command()) is not self:
            flags += used._option_string_actions
        return closest(word.partition("=")[0], [each for each in flags if len(each) > 2])

    def _of_command(self) -> argparse.ArgumentParser:
        """The parser of the given command, or this one."""
        commands = self.commands()
        given = next((commands[each] for each in self._given if each in commands), None)
        return (
            self if given is None else given._of_command() if isinstance(given, Parser) else given
        )


def closest(word: str, names: Iterable[str]) -> str:
    """The most similar of `names` to `word`; empty if none is similar."""
    import difflib  # noqa: PLC0415 - only for an error

    found = difflib.get_close_matches(word.lower(), list(names), n=1, cutoff=_SIMILAR)
    return found[0] if found else ""


def _stderr() -> Any:
    import sys  # noqa: PLC0415 - read when it is used: tests replace it

    return sys.stderr
