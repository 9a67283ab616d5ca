"""Terminal: a terminal's screen, for the output of our programs: text, newlines, cursor up, erase down, colours.

Anything else is an error, so a test notices an unknown sequence.
"""

import re
from typing import Final

_PARTS: Final = re.compile(r"\x1b\[(\d*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|(.)", re.DOTALL)


class Terminal:
    """Rows of text; the screen scrolls at the bottom. Raises AssertionError for a row that is too long."""

    def __init__(self, *, columns: int, rows: int) -> None:
        self.columns = columns
        self.rows = rows
        self.scrolled: list[str] = []
        """Rows that have left the screen."""
        self._screen = [""]
        self._row = 0
        self._column = 0

    @property
    def text(self) -> str:
        """The text on the screen."""
        return "\n".join(self._screen).rstrip("\n")

    def feed(self, written: str) -> None:
        """Process the output of the program."""
        for number, letter, control, text, other in _PARTS.findall(written):
            assert not other, f"unknown control character {other!r}"
            if text:
                self._write(text)
            elif control == "\r":
                self._column = 0
            elif control == "\n":
                self._next()
            elif letter == "A":
                assert int(number) <= self._row, "the cursor would leave the screen"
                self._row -= int(number)
            elif letter == "K":
                kept = "" if number == "2" else self._screen[self._row][: self._column]
                self._screen[self._row] = kept
            elif letter == "J":
                self._screen[self._row] = self._screen[self._row][: self._column]
                del self._screen[self._row + 1 :]
            else:
                assert letter == "m", f"unknown sequence {number}{letter}"

    def _write(self, text: str) -> None:
        line = self._screen[self._row].ljust(self._column)
        end = self._column + len(text)
        assert end <= self.columns, f"wider than {self.columns}: {text!r}"
        self._screen[self._row] = line[: self._column] + text + line[end:]
        self._column = end

    def _next(self) -> None:
        self._row += 1
        self._column = 0
        if self._row == len(self._screen):
            self._screen.append("")
        if len(self._screen) > self.rows:
            self.scrolled.append(self._screen.pop(0))
            self._row -= 1
