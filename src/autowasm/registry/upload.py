"""Body: the bytes of one upload, read anew for every try, counted and timed as they leave.

Not a request. Invariant: a file is never in memory whole, and a try that must be repeated (a token was asked for) starts
at the first byte.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from autowasm.net.transfer import Transfer


class Body:
    """`content` in memory or in a file, `size` bytes long."""

    def __init__(self, content: bytes | Path, *, size: int) -> None:
        self._content = content
        self._size = size

    @contextmanager
    def open(self, transfer: Transfer, *, answer_timeout: float) -> Iterator["BodyReader"]:
        """What requests sends. Not for an empty body, which requests would send chunked; nothing that we upload is empty."""
        stream: BinaryIO
        if isinstance(self._content, Path):
            stream = self._content.open("rb")
        else:
            stream = io.BytesIO(self._content)
        with stream:
            yield BodyReader(stream, self._size, transfer, answer_timeout=answer_timeout)


class BodyReader:
    """The least that requests and urllib3 ask of a body: a length and `read`."""

    def __init__(
        self, stream: BinaryIO, size: int, transfer: Transfer, *, answer_timeout: float
    ) -> None:
        self._stream = stream
        self._size = size
        self._transfer = transfer
        self._answer_timeout = answer_timeout
        self._left = size

    def __len__(self) -> int:
        return self._size

    def read(self, count: int = -1) -> bytes:
        """The next bytes. What was handed out before has been taken by the kernel when this is called again."""
        self._transfer.expect_body()
        data = self._stream.read(self._left if count < 0 else min(count, self._left))
        self._left -= len(data)
        self._transfer.received(len(data))
        if not data:
            self._transfer.expect_answer(self._answer_timeout)
        return data
