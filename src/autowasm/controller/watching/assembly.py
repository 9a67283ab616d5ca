"""What talks to the API server, put together: client, recorder of Events, elector, ClusterMode.

The half of the composition root that standalone mode never imports. Not a place for decisions.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from importlib import metadata

from autowasm.controller.cluster import ClusterMode
from autowasm.controller.publishing.service import PublishedService
from autowasm.controller.watching.candidate import candidate
from autowasm.kube.client import KubeClient
from autowasm.kube.leaderelection import AlwaysLeading, LeaderElector, Lease, last_renewal
from autowasm.kube.recorder import EventRecorder
from autowasm.kube.resources import ObjectKey
from autowasm.net.pools import Pools
from autowasm.settings import Cluster, EnvoyFetch
from autowasm.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Connected:
    """Closed with the stack that it was made on."""

    mode: ClusterMode
    recorder: EventRecorder
    elector: LeaderElector | None
    """To be run once the mode has started; None: nobody else is there."""
    service: PublishedService | None
    """Not looked at yet; None: see `ChosenMode`."""
    last_alive: float | None
    """When some leader last renewed the Lease, in seconds since the epoch; None: not known."""


async def connect(
    cluster: Cluster,
    *,
    envoy: EnvoyFetch,
    pools: Pools,
    metrics: Metrics,
    tasks: asyncio.TaskGroup,
    stack: AsyncExitStack,
    on_leading: Callable[[bool], None],
    busy: Callable[[], bool],
    warn: Callable[[str, str], None],
) -> Connected:
    """`busy`: whether keys wait to be reconciled. `envoy`: where our Service is; the Lease is beside it. Raises UsageError."""
    client = await stack.enter_async_context(
        KubeClient(
            kubeconfig=cluster.kubeconfig,
            pools=pools,
            user_agent=f"wasmer/{metadata.version('autowasm')}",
        )
    )
    recorder = EventRecorder(
        client,
        component="wasmer",
        instance=socket.gethostname(),
        limits=client.limits,
        busy=busy,
        metrics=metrics.events,
    )
    tasks.create_task(recorder.run(), name="events")
    namespace = envoy.service_namespace
    elector = candidate(client, cluster.election, namespace=namespace, on_change=on_leading)
    mode = ClusterMode(
        client,
        cluster=cluster,
        announce=recorder.event,
        metrics=metrics,
        leadership=elector or AlwaysLeading(),
        unexpected=metrics.unexpected_errors.labels("pod_counts").inc,
    )
    metrics.informers.follow(mode.informers)
    last_alive = None
    if elector is not None:
        last_alive = await last_renewal(
            Lease(client, ObjectKey(namespace, cluster.election.lease_name))
        )
    service = None
    if cluster.kubeconfig is None and envoy.cluster_override is None:
        service = PublishedService(
            client,
            envoy=envoy,
            report=partial(warn, "service"),
            problem=metrics.service_problem,
        )
    return Connected(mode, recorder, elector, service, last_alive)
