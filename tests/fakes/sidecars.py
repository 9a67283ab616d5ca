"""FakeSidecars: the Pods of an AutoWasm, whose Envoys follow the EnvoyFilter in memory and the instructions of a test."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autowasm.api.patches import patches_of
from autowasm.controller.pods.envoystats import (
    ReadFailure,
    Reading,
    ReloadCounts,
    Requests,
    SidecarStats,
    UnreadStats,
    series_of,
)
from autowasm.controller.pods.podmatching import Pod
from autowasm.kube.resources import ObjectKey

WORKERS = 2


def pod(number: int, *, ready: bool = True) -> Pod:
    """`p0`, `p1`, …: each on a node of its own."""
    name = f"p{number}"
    return Pod(
        "default",
        name,
        name.encode().ljust(16, b"\0"),
        (("app", "details"),),
        f"10.0.0.{number + 1}",
        "Running",
        1,
        injected=True,
        ready=ready,
        node=f"n{number}",
        workload="details",
    )


@dataclass
class FakeSidecars:
    """`envoyfilter` returns the current EnvoyFilter. Each Pod serves a hundred requests between two readings."""

    envoyfilter: Callable[[], Mapping[str, Any] | None]
    pods: list[Pod] = field(default_factory=lambda: [pod(number) for number in range(6)])
    are_listed: bool = True
    failing: str = ""
    """Every request fails in a Pod with this plugin."""
    crashing: str = ""
    ending: str = ""
    """Envoy still has the name of this plugin, but not its VMs."""
    unreadable: set[str] = field(default_factory=set)
    """Pods by name."""
    held: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, unless a test delays the readings."""
    reads: list[tuple[str, str]] = field(default_factory=list)
    """Pod and plugin of each reading, in order."""
    _requests: dict[str, dict[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.held.set()

    def matched(self, _key: ObjectKey) -> Iterable[Pod]:
        return list(self.pods)

    def plugins(self, envoyfilter: Mapping[str, Any] | None = None) -> dict[str, str]:
        """The plugin of each Pod, by the Pod's name, with this EnvoyFilter or the current one; empty if there is none."""
        return {one.name: self.plugin_of(one.name, envoyfilter) for one in self.pods}

    def plugin_of(self, name: str, envoyfilter: Mapping[str, Any] | None = None) -> str:
        """As istiod applies the patches: without a port of its own, the last matching patch takes effect."""
        plugin = ""
        for patch in patches_of(envoyfilter or self.envoyfilter() or {}):
            metadata = ((patch.proxy or {}).get("metadata") or {}).get("NAME", name)
            config = patch.value["typedConfig"].get("value", {}).get("config", {})
            if config and metadata == name:
                plugin = config["name"]
        return plugin

    async def read(self, pods: Iterable[Pod]) -> dict[bytes, Reading]:
        await self.held.wait()
        return {one.uid: self._reading(one.name) for one in pods}

    def _reading(self, name: str) -> Reading:
        plugin = self.plugin_of(name)
        self.reads.append((name, plugin))
        if name in self.unreadable:
            return UnreadStats(ReadFailure.TIMEOUT)
        counts = self._requests.setdefault(name, {2: 0, 5: 0})
        counts[5 if plugin and plugin == self.failing else 2] += 100
        crashes = ReloadCounts(success=plugin == self.crashing)
        known = {self.ending: ReloadCounts(), plugin: crashes}
        return SidecarStats(
            plugins={series_of(name)[0]: found for name, found in known.items() if name},
            active_vms=WORKERS + 2 if plugin else 0,
            warming=0,
            rejected=0,
            listeners_created=1,
            concurrency=WORKERS,
            uptime=100,
            requests=Requests(dict(counts)),
        )
