"""Metrics as Prometheus asks for them, rendered in slices so that nobody waits for it.

Not a registry. A thread would not do: it holds the interpreter for 5 ms at a time, each time the loop wants to go on.
Invariants: no slice has more than `SLICE` series (a collector's own `collect` is one piece); a family is of one moment; the
text is what prometheus_client would have written at once, but for the `_created` series, which nobody asks for.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

SLICE: Final = 100
"""Series rendered before the loop gets its turn: less than a millisecond."""

_EOF: Final = b"# EOF\n"
_GZIP: Final = 31
"""zlib's window bits for a gzip header."""


class _Part(Collector):
    """What an encoder takes for a registry."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _slices(metric: Metric) -> Iterator[Metric]:
    """The family in parts; one without series is a part as well."""
    created = f"{metric.name}_created"
    samples = [sample for sample in metric.samples if sample.name != created]
    for begin in range(0, max(len(samples), 1), SLICE):
        part = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        part.samples = samples[begin : begin + SLICE]
        yield part


def _without_head(text: bytes) -> bytes:
    """A family is introduced once."""
    return b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"# "))


async def render(registry: Collector, encode: Callable[[Collector], bytes]) -> AsyncIterator[bytes]:
    """Text piece by piece; the loop turns between two. `encode` is prometheus_client's `generate_latest` of a format."""
    ends = False
    for metric in registry.collect():
        for number, part in enumerate(_slices(metric)):
            text = encode(_Part(part))
            ends = text.endswith(_EOF)
            text = text.removesuffix(_EOF)
            yield text if number == 0 else _without_head(text)
            await asyncio.sleep(0)
    if ends:
        yield _EOF


def make_handler(
    registry: CollectorRegistry,
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler of `GET /metrics`: format and gzip as the client asks, `name[]` as prometheus_client's own has it."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(",".join(request.headers.getall("accept", [])))
        names = request.query.getall("name[]", [])
        asked: Collector = registry.restricted_registry(names) if names else registry
        gzip = "gzip" in request.headers.get("accept-encoding", "")
        packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP) if gzip else None
        body = bytearray()
        async for text in render(asked, encode):
            body += packer.compress(text) if packer else text
        headers = {"content-type": content_type, "vary": "accept, accept-encoding"}
        if packer:
            body += packer.flush()
            headers["content-encoding"] = "gzip"
        return web.Response(body=bytes(body), headers=headers)

    return metrics
