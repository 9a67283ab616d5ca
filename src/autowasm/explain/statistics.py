"""Reads the statistics of some sidecars through the API server's proxy, for `wasmc explain`.

It needs the permission to `get` `pods/proxy`. Invariants: only Pods that the API server listed are read, on port 15090, with one
path; at most `MAX_READ` of them; each request has a deadline and a limit of bytes; a sidecar that cannot be read is absent from the
result, because the status may have more.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from autowasm.api import envoyfilter as envoyfilters
from autowasm.controller.pods import envoystats, podmatching
from autowasm.controller.pods.resend import changed_at
from autowasm.controller.pods.runwatch import Published, RunWatch
from autowasm.explain.facts import RunFact
from autowasm.explain.objects import Pod
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import ApiError
from autowasm.kube.resources import PODS, ObjectKey
from autowasm.limits import StatsLimits

MAX_READ: Final = 10
"""Pods: as many as a status names."""
_TWICE: Final = 2
"""A failure counts when two readings show it."""


class StatisticsReader:
    """Reads and judges sidecars of one AutoWasm; `live` is its EnvoyFilter."""

    def __init__(
        self, client: KubeClient, live: Mapping[str, Any], *, limits: StatsLimits | None = None
    ) -> None:
        self._client = client
        self._limits = limits or StatsLimits()
        config, metadata = envoyfilters.plugin_config_of(live), live.get("metadata") or {}
        plugin = str((config or {}).get("name") or "")
        is_named = metadata.get("generation") == 1 or plugin != metadata.get("name")
        self._plugin = plugin
        self._watch = RunWatch(Published(plugin, at=changed_at(live), is_named=is_named))

    async def read(self, pods: Iterable[Pod]) -> tuple[RunFact, ...]:
        """The state of each Pod that can be read, in the order of the Pods."""
        if not self._plugin:
            return ()
        async with asyncio.TaskGroup() as tasks:
            wanted = [pod for pod in pods if pod.proxy is not None and pod.addresses][:MAX_READ]
            reading = [
                tasks.create_task(self._read(pod), name=f"statistics of {pod.where}")
                for pod in wanted
            ]
        return tuple(fact for task in reading if (fact := task.result()) is not None)

    async def _read(self, pod: Pod) -> RunFact | None:
        row = podmatching.Pod(
            pod.metadata.namespace,
            pod.metadata.name,
            pod.where.encode(),
            (),
            "",
            "Running",
            0,
            True,
        )
        fact = None
        for _ in range(_TWICE):
            page = await self._page(pod)
            if page is None or not envoystats.is_prometheus(page):
                return fact
            stats = envoystats.parse(page, read_at=time.monotonic())
            report = self._watch.take(row, stats, now=time.time())
            fact = RunFact(pod=pod.where, state=report.state.value, message=report.message)
        return fact

    async def _page(self, pod: Pod) -> bytes | None:
        name = f"{pod.metadata.name}:{envoystats.PORT}"
        path = (
            PODS.object_path(ObjectKey(pod.metadata.namespace, name)) + f"/proxy{envoystats.PATH}"
        )
        try:
            return bytes(
                await self._client.request(
                    "GET",
                    path,
                    query={"filter": envoystats.FILTER},
                    timeout=self._limits.deadline,
                    most=self._limits.page_bytes,
                )
            )
        except ApiError:
            return None
