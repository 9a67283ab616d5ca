"""Short answers for people: one sentence of plain text, on either port.

Not the answers that carry blobs (`response.py`). Invariant: a sentence says what is wrong and what would be right, and
nothing that a caller may not know: no message of a failed fetch, which can name another tenant's registry.
"""

from collections.abc import Mapping
from typing import Final

from aiohttp import web

SERVER: Final = "wasmer"
"""The Server header. Versions of libraries are nobody's business."""


def text_answer(
    status: int, sentence: str, *, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer with `sentence` as its body."""
    return web.Response(
        status=status,
        text=sentence + "\n",
        headers={
            "server": SERVER,
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            **(headers or {}),
        },
    )
