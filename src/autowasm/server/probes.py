"""What the kubelet and Prometheus ask: is the loop turning, is the service ready, how is it doing.

Not the judgement itself: whoever knows sets `Health`. Invariant: an answer that says no says why, in words.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from autowasm.server.answers import text_answer
from autowasm.server.exposition import make_handler

_BEAT: Final = 1.0
_STALE: Final = 10.0
"""Seconds without a beat after which the loop counts as stuck; kubelet asks again before it acts."""


@dataclass(frozen=True, slots=True)
class Check:
    """`why` is for people: what is missing, or what holds."""

    ok: bool
    why: str


class Health:
    """Named checks; ready when there are some and all are good."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._warnings: dict[str, str] = {}
        self._is_stopping = False

    def set(self, name: str, ok: bool, why: str = "") -> None:
        """State of the check `name` from now on."""
        self._checks[name] = Check(ok, why)

    def warn(self, name: str, why: str) -> None:
        """What is wrong elsewhere, which being unready would make worse; empty: nothing any more."""
        self._warnings.pop(name, None)
        if why:
            self._warnings[name] = why

    def stopping(self) -> None:
        """Not ready from now on, whatever the checks say."""
        self._is_stopping = True

    @property
    def is_ready(self) -> bool:
        """What `/readyz` says."""
        checks = self._checks.values()
        return bool(checks) and not self._is_stopping and all(check.ok for check in checks)

    def report(self) -> str:
        """One line for all, then one for each check and each warning."""
        lines = ["ready" if self.is_ready else "not ready"]
        if self._is_stopping:
            lines.append("stopping: finishes what has begun and takes no more")
        if not self._checks:
            lines.append("nothing was checked yet")
        for name, check in sorted(self._checks.items()):
            verdict = "ok" if check.ok else "failed"
            lines.append(f"{name}: {verdict}" + (f" ({check.why})" if check.why else ""))
        lines += [f"{name}: warning ({why})" for name, why in sorted(self._warnings.items())]
        return "\n".join(lines)


class Heartbeat:
    """Notes regularly that the loop turns."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()

    async def run(self) -> None:
        """Beat for ever."""
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
    """`/healthz`, `/readyz`, `/metrics`, and `/` that lists them."""

    async def index(_: web.Request) -> web.Response:
        return text_answer(
            200,
            "/healthz  is the process alive\n"
            "/readyz   is it ready, and if not, why\n"
            "/metrics  Prometheus metrics",
        )

    async def healthz(_: web.Request) -> web.Response:
        age = heartbeat.age
        if age < _STALE:
            return text_answer(200, "ok")
        return text_answer(503, f"the event loop did not turn for {age:.0f} s")

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
