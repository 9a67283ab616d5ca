"""DataPath: fetching, storing and serving modules, independent of failures in other parts.

`manager.py` decides what to fetch. Invariants: opening the data path starts no reconcile and opens no port; one address policy
and one count of requests apply to all outgoing traffic.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.image import ImageSource
from autowasm.artifacts.object import HttpObjectSource
from autowasm.artifacts.peers import PeerList, Peers
from autowasm.artifacts.published import PublishedModules
from autowasm.artifacts.pullsecrets import ServiceAccounts
from autowasm.blobs.eviction import Retention
from autowasm.blobs.pins import Pins
from autowasm.controller.sourcepolicy import PolicyFile, SourcePolicy
from autowasm.net.addresspolicy import AddressPolicy
from autowasm.net.hosts import NamedHosts
from autowasm.net.session import ObjectSession
from autowasm.registry.client import RegistryClient
from autowasm.runtime.context import SharedResources
from autowasm.runtime.modes import ChosenMode
from autowasm.server.app import BlobServer
from autowasm.server.downloadlog import DownloadLog
from autowasm.settings import Cluster, Outgoing


async def make_peers(shared: SharedResources, *, instance: str) -> Peers | None:
    """The other replicas, discovered from now on; None: peers are not configured."""
    settings = shared.settings
    if not (settings.peers.urls or settings.peers.host):
        return None
    known = PeerList(settings.peers, pools=shared.pools)
    peers = Peers(
        known,
        instance=instance,
        store=shared.store,
        settings=settings.peers,
        module_bytes=settings.limits.module_bytes,
        pools=shared.pools,
        metrics=shared.metrics,
        tasks=shared.tasks,
    )
    await shared.stack.enter_async_context(peers)
    shared.tasks.create_task(known.run(), name="peers")
    return peers


def make_fetcher(
    shared: SharedResources, chosen: ChosenMode, *, peers: Peers | None, policy: PolicyFile
) -> ArtifactFetcher:
    """The fetcher over registries, objects and peers; the exit stack closes its connections."""
    settings, pools = shared.settings, shared.pools
    registry, objects = _make_clients(shared, policy)
    return ArtifactFetcher(
        settings=settings,
        store=shared.store,
        sources={
            "registry": ImageSource(registry, limits=settings.limits, pools=pools),
            "object": HttpObjectSource(objects, limits=settings.limits, pools=pools),
        },
        secrets=chosen.mode,
        pools=pools,
        metrics=shared.metrics,
        tasks=shared.tasks,
        service_accounts=_service_accounts(chosen, settings.cluster),
        object_hosts=policy.object_hosts,
        peers=peers,
    )


def _make_clients(
    shared: SharedResources, file: PolicyFile
) -> tuple[RegistryClient, ObjectSession]:
    settings, pools = shared.settings, shared.pools
    on_request = _counting(shared, file)
    policy = AddressPolicy.of(settings.outgoing)
    registry = RegistryClient(
        outgoing=settings.outgoing,
        limits=settings.limits,
        pools=pools,
        policy=policy,
        on_request=on_request,
    )
    shared.stack.push_async_callback(registry.close)
    objects = ObjectSession(
        outgoing=settings.outgoing,
        limits=settings.limits,
        pools=pools,
        policy=policy,
        on_request=on_request,
    )
    shared.stack.push_async_callback(objects.close)
    return registry, objects


def _counting(shared: SharedResources, file: PolicyFile) -> Callable[[str], None]:
    """Count a request to `HOST[:PORT]` under a name from the operator's configuration."""
    hosts, sent = NamedHosts(), shared.metrics.requests.sent
    named: tuple[object] | None = None

    def count(host: str) -> None:
        nonlocal named
        policy = file.policy
        if named is None or named[0] is not policy:  # the policy file may change
            hosts.set(_named_by(shared.settings.outgoing, policy))
            named = (policy,)
        sent(hosts.name_of(host))

    return count


def _named_by(outgoing: Outgoing, policy: SourcePolicy | None) -> Iterator[str]:
    yield from sorted({*outgoing.plain_http, *outgoing.insecure, *outgoing.private_hosts})
    yield from (host for host, _ in outgoing.ca_files)
    for _, rule in policy.rules if policy is not None else ():
        for entry in (*(rule.registries or ()), *(rule.objects or ())):
            yield entry.partition("/")[0]


def _service_accounts(chosen: ChosenMode, cluster: Cluster | None) -> ServiceAccounts | None:
    wanted = cluster is not None and cluster.service_account_pull_secrets
    return chosen.cluster if wanted else None


@dataclass(frozen=True, slots=True)
class DataPath:
    """From sources to sidecars."""

    peers: Peers | None
    fetcher: ArtifactFetcher
    retention: Retention
    published: PublishedModules
    download_log: DownloadLog
    blob_server: BlobServer
    """Not started yet."""


async def open_data_path(
    shared: SharedResources, chosen: ChosenMode, *, policy: PolicyFile
) -> DataPath:
    """Open everything but the ports; the exit stack closes it."""
    settings, store, metrics = shared.settings, shared.store, shared.metrics
    instance = secrets.token_hex(8)
    download_log = DownloadLog(settings.download_log, instance=instance)
    peers = await make_peers(shared, instance=instance)
    fetcher = make_fetcher(shared, chosen, peers=peers, policy=policy)
    pins = Pins()
    retention = Retention(store, pins, settings=settings, pools=shared.pools, metrics=metrics)
    await shared.stack.enter_async_context(retention)
    published = PublishedModules(fetcher, pins=pins, peers=peers)
    blob_server = BlobServer(
        store,
        published,
        instance=instance,
        download_log=download_log,
        limits=settings.serve,
        metrics=metrics,
    )
    return DataPath(peers, fetcher, retention, published, download_log, blob_server)
