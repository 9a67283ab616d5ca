"""Chooses the mode (cluster or directory) and the leadership from the settings.

Invariant: standalone mode imports and runs nothing that uses an API server.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autowasm.controller.interfaces import Mode, RecordEvent, record_no_event
from autowasm.errors import UsageError
from autowasm.kube.leaderelection import AlwaysLeading
from autowasm.runtime.context import SharedResources
from autowasm.settings import Cluster, Standalone
from autowasm.standalone.directory import ConfigDirectory
from autowasm.standalone.mode import StandaloneMode
from autowasm.standalone.publisher import StandalonePublisher

if TYPE_CHECKING:
    from autowasm.controller.cluster import ClusterMode
    from autowasm.controller.servicecheck import PublishedService
    from autowasm.kube.leaderelection import LeaderElector
    from autowasm.kube.recorder import EventRecorder


@dataclass(frozen=True, slots=True)
class ChosenMode:
    """The mode and its companions."""

    mode: Mode
    cluster: "ClusterMode | None" = None
    """`mode` if it is cluster mode; None: standalone."""
    record_event: RecordEvent = record_no_event
    recorder: "EventRecorder | None" = None
    """Writes what `record_event` queues; None: there are no Events."""
    leadership: "LeaderElector | AlwaysLeading" = field(default_factory=AlwaysLeading)
    """Its `run` begins after the mode has started."""
    service: "PublishedService | None" = None
    """The Service that sidecars fetch from; None: wasmer runs outside the cluster, or sidecars use another way."""
    last_alive: float | None = None
    """When a leader last renewed the Lease, in seconds since the epoch; None: unknown."""


async def choose_mode(
    shared: SharedResources,
    *,
    busy: Callable[[], bool],
    on_leading: Callable[[bool], None],
    warn: Callable[[str, str], None],
) -> ChosenMode:
    """`busy`: whether keys wait to be reconciled. `warn`: see `Health.warn`. Raises UsageError."""
    settings = shared.settings
    if settings.cluster is not None:
        return await _cluster(shared, settings.cluster, busy=busy, on_leading=on_leading, warn=warn)
    if settings.standalone is not None:
        return ChosenMode(await _standalone(shared, settings.standalone))
    raise UsageError("nothing to run: no mode was chosen")


async def _cluster(
    shared: SharedResources,
    cluster: Cluster,
    *,
    busy: Callable[[], bool],
    on_leading: Callable[[bool], None],
    warn: Callable[[str, str], None],
) -> ChosenMode:
    from autowasm.runtime.apiserver import connect  # noqa: PLC0415  # standalone needs none of it

    connected = await connect(
        cluster,
        envoy=shared.settings.envoy,
        pools=shared.pools,
        metrics=shared.metrics,
        tasks=shared.tasks,
        stack=shared.stack,
        on_leading=on_leading,
        busy=busy,
        warn=warn,
    )
    return ChosenMode(
        connected.mode,
        connected.mode,
        connected.recorder.event,
        connected.recorder,
        connected.leadership,
        connected.service,
        connected.last_alive,
    )


async def _standalone(shared: SharedResources, standalone: Standalone) -> Mode:
    directory = ConfigDirectory(
        standalone.config_dir,
        limits=shared.settings.limits,
        pools=shared.pools,
        metrics=shared.metrics,
    )
    publisher = StandalonePublisher(
        standalone.envoy_dir, template=standalone.listener_template, pools=shared.pools
    )
    mode = StandaloneMode(directory, publisher)
    await mode.check()
    return mode
