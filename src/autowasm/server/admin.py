"""The admin port's resources: `/healthz`, `/readyz` and `/metrics`.

Other parts set the checks of `Health`. Metrics are rendered in slices, and the loop serves other requests between them; a thread
would not help, because it holds the interpreter lock for 5 ms each time that the loop wants to continue. Invariants: a negative
answer has its reason as text; no slice has more than `SLICE` series (a collector's own `collect` is one piece); all series of a
family show the same moment; the text is the same as prometheus_client's, except for the unused `_created` series.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from autowasm.server.requestlog import text_answer

_BEAT: Final = 1.0
_STALE: Final = 10.0
"""Seconds without a beat after which the loop counts as stuck. The kubelet probes again before it restarts the container."""


@dataclass(frozen=True, slots=True)
class Check:
    """Result of a check. `why` is for operators: the missing condition, or the fulfilled one."""

    ok: bool
    why: str


class Health:
    """Named checks; ready if there is at least one and all are good.

    `runtime/` sets them; `controller/reconciler.py` has the condition of the start.
    """

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._warnings: dict[str, str] = {}
        self._is_stopping = False

    def set(self, name: str, ok: bool, why: str = "") -> None:
        """Set the state of the check `name`."""
        self._checks[name] = Check(ok, why)

    def warn(self, name: str, why: str) -> None:
        """Set a warning about another component, which would suffer if this replica became unready; empty: clear it."""
        self._warnings.pop(name, None)
        if why:
            self._warnings[name] = why

    def stopping(self) -> None:
        """Report not ready from now on, regardless of the checks."""
        self._is_stopping = True

    @property
    def is_ready(self) -> bool:
        """The result of `/readyz`."""
        checks = self._checks.values()
        return bool(checks) and not self._is_stopping and all(check.ok for check in checks)

    def report(self) -> str:
        """A summary line, then one line for each check and each warning."""
        lines = ["ready" if self.is_ready else "not ready"]
        if self._is_stopping:
            lines.append("stopping: requests in progress finish, new ones are not accepted")
        if not self._checks:
            lines.append("no checks have run yet")
        for name, check in sorted(self._checks.items()):
            verdict = "ok" if check.ok else "failed"
            lines.append(f"{name}: {verdict}" + (f" ({check.why})" if check.why else ""))
        lines += [f"{name}: warning ({why})" for name, why in sorted(self._warnings.items())]
        return "\n".join(lines)


class Heartbeat:
    """Records regularly that the event loop runs."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()

    async def run(self) -> None:
        """Record a beat every second, forever."""
        while True:
            self._last = self._clock()
            await asyncio.sleep(_BEAT)

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._last


def admin_application(
    health: Health, heartbeat: Heartbeat, registry: CollectorRegistry
) -> web.Application:
    """`/healthz`, `/readyz`, `/metrics`, and `/`, which lists them."""

    async def index(_: web.Request) -> web.Response:
        return text_answer(
            200,
            "/healthz  liveness\n"
            "/readyz   readiness, with the result of each check\n"
            "/metrics  Prometheus metrics",
        )

    async def healthz(_: web.Request) -> web.Response:
        age = heartbeat.age
        if age < _STALE:
            return text_answer(200, "ok")
        return text_answer(503, f"the event loop has been blocked for {age:.0f} s")

    async def readyz(_: web.Request) -> web.Response:
        return text_answer(200 if health.is_ready else 503, health.report())

    async def name_server(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["server"] = "wasmer"

    application = web.Application()
    application.on_response_prepare.append(name_server)
    application.router.add_get("/", index)
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/metrics", make_handler(registry))
    return application


SLICE: Final = 100
"""Series rendered in one iteration of the loop: less than a millisecond."""

_EOF: Final = b"# EOF\n"
_GZIP: Final = 31
"""zlib's window bits for a gzip header."""


class _Part(Collector):
    """One family in the form of a registry, as the encoder expects."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _slices(metric: Metric) -> Iterator[Metric]:
    """The family in parts; a family without series is one part."""
    created = f"{metric.name}_created"
    samples = [sample for sample in metric.samples if sample.name != created]
    for begin in range(0, max(len(samples), 1), SLICE):
        part = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        part.samples = samples[begin : begin + SLICE]
        yield part


def _without_head(text: bytes) -> bytes:
    """Drop HELP and TYPE, which a family has only once."""
    return b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"# "))


async def render(registry: Collector, encode: Callable[[Collector], bytes]) -> AsyncIterator[bytes]:
    """The text in pieces; the loop runs between them. `encode` is prometheus_client's `generate_latest` of a format."""
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
    """A handler of `GET /metrics`: format and gzip by the request's headers, `name[]` as in prometheus_client."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(",".join(request.headers.getall("accept", [])))
        names = request.query.getall("name[]", [])
        selected: Collector = registry.restricted_registry(names) if names else registry
        gzip = "gzip" in request.headers.get("accept-encoding", "")
        packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP) if gzip else None
        body = bytearray()
        async for text in render(selected, encode):
            body += packer.compress(text) if packer else text
        headers = {"content-type": content_type, "vary": "accept, accept-encoding"}
        if packer:
            body += packer.flush()
            headers["content-encoding"] = "gzip"
        return web.Response(body=bytes(body), headers=headers)

    return metrics
