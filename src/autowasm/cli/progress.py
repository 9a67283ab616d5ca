"""A line of progress on a terminal: bytes, share, rate.

Not for logs or files: where the stream is no terminal, nothing is written. Invariant: the line is gone when the block
ends, so that what is printed afterwards stands at the margin.
"""

import time
from types import TracebackType
from typing import Final, Self, TextIO

from autowasm.units import format_size

_WIDTH: Final = 24
_REDRAW_SECONDS: Final = 0.1
_ERASE: Final = "\r\x1b[K"


class Progress:
    """`with Progress(...) as progress: progress.advance(n)`. `total` in bytes, None if it is not known."""

    def __init__(self, label: str, *, total: int | None, stream: TextIO, quiet: bool) -> None:
        self._label = label
        self._total = total
        self._stream = stream
        self._shown = not quiet and stream.isatty()
        self._done = 0
        self._begun = time.monotonic()
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._draw()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown:
            self._stream.write(_ERASE)
            self._stream.flush()

    def advance(self, count: int) -> None:
        """`count` more bytes have moved."""
        self._done += count
        if time.monotonic() - self._drawn >= _REDRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        if not self._shown:
            return
        self._drawn = time.monotonic()
        rate = self._done / max(self._drawn - self._begun, 0.001)
        self._stream.write(f"{_ERASE}{self._label} {self._amount()} {format_size(int(rate))}/s")
        self._stream.flush()

    def _amount(self) -> str:
        if not self._total:
            return format_size(self._done)
        share = min(self._done / self._total, 1.0)  # repeated tries count again
        bar = "#" * round(share * _WIDTH)
        return f"[{bar:<{_WIDTH}}] {share:4.0%} {format_size(self._done)} of {format_size(self._total)}"
