"""The clients of the API server: KubeClient, EventRecorder, LeaderElector, ClusterMode.

Only cluster mode imports this part of the composition root. Invariant: only one process uses an identity, so a restarted
container never mistakes its predecessor's Lease for its own.
"""

import asyncio
import secrets
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from importlib import metadata

from autowasm.controller.cluster import ClusterMode
from autowasm.controller.servicecheck import PublishedService
from autowasm.errors import UsageError
from autowasm.kube.client import KubeClient
from autowasm.kube.leaderelection import (
    AlwaysLeading,
    LeaderElector,
    Lease,
    LeaseTimings,
    last_renewal,
)
from autowasm.kube.recorder import EventRecorder
from autowasm.kube.resources import ObjectKey
from autowasm.net.pools import Pools
from autowasm.settings import Cluster, Election, EnvoyFetch
from autowasm.telemetry.metrics import Metrics


def candidate(
    client: KubeClient,
    election: Election,
    *,
    namespace: str,
    on_change: Callable[[bool], None],
) -> LeaderElector | None:
    """The elector over our Lease; None: leader election is disabled. Raises UsageError for inconsistent timings."""
    if not election.enabled:
        return None
    if election.lease_duration != int(election.lease_duration):
        raise UsageError("--lease-duration: must be a whole number of seconds")
    try:
        timings = LeaseTimings(
            lease_duration=int(election.lease_duration),
            renew_deadline=election.renew_deadline,
            retry_period=election.retry_period,
        )
    except ValueError as error:
        raise UsageError(f"--lease-duration, --renew-deadline, --retry-period: {error}") from error
    key = ObjectKey(namespace, election.lease_name)
    return LeaderElector(
        Lease(client, key),
        lease=key,
        identity=f"{socket.gethostname()}_{secrets.token_hex(4)}",
        timings=timings,
        on_change=on_change,
    )


@dataclass(frozen=True, slots=True)
class ApiServerClients:
    """The exit stack closes them."""

    mode: ClusterMode
    recorder: EventRecorder
    leadership: LeaderElector | AlwaysLeading
    """Its `run` begins after the mode has started."""
    service: PublishedService | None
    """Not checked yet; None: see `ChosenMode`."""
    last_alive: float | None
    """When a leader last renewed the Lease, in seconds since the epoch; None: unknown."""


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
) -> ApiServerClients:
    """`busy`: whether keys wait to be reconciled. `envoy`: where our Service is; the Lease is in its namespace. Raises UsageError."""
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
    leadership = elector or AlwaysLeading()
    mode = ClusterMode(
        client,
        cluster=cluster,
        record_event=recorder.event,
        metrics=metrics,
        leadership=leadership,
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
    return ApiServerClients(mode, recorder, leadership, service, last_alive)
