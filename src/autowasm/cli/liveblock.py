"""LiveBlock: lines on a terminal that are replaced in place, or a line for each change where no terminal is.

Invariants: only lines that this block wrote are erased; a pipe gets no control characters; the last block stays.
"""

import sys
from typing import Final, TextIO

from autowasm.cli.stdio import height_of, width_of

_UP: Final = "\x1b[{}A"
_ERASE_DOWN: Final = "\r\x1b[J"


class LiveBlock:
    """`show` replaces what was shown before, on a terminal of at least this size and unless `is_plain`."""

    def __init__(self, stream: TextIO, *, width: int, height: int, is_plain: bool = False) -> None:
        self._stream = stream
        self._shown = ""
        columns, rows = self.size
        fits = columns >= width and rows >= height
        self.is_live = fits and not is_plain and stream.isatty()

    @property
    def size(self) -> tuple[int, int]:
        """Columns of the stream, and rows but for the one of the cursor."""
        return width_of(self._stream), height_of(self._stream) - 1

    def above(self, text: str) -> None:
        """A message that stays: above the block, or on standard error where there is no terminal."""
        if not self.is_live:
            print(text, file=sys.stderr, flush=True)
            return
        shown = self._erased()
        self._stream.write(f"{text}\n{shown}\n" if shown else f"{text}\n")
        self._stream.flush()

    def show(self, text: str) -> None:
        """`text` has no line that is wider than the terminal, and no more lines than it. The same text is not written again."""
        if text == self._shown:
            return
        if self.is_live:
            self._erased()
        self._shown = text
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _erased(self) -> str:
        """Move to where the block began, and erase it. Returns its text."""
        if self._shown:
            self._stream.write(_UP.format(self._shown.count("\n") + 1) + _ERASE_DOWN)
        return self._shown
