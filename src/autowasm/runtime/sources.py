"""Where modules come from: registries, objects, and the other replicas.

Not the clients themselves. Invariant: one address policy, and one count of requests, for all that goes out.
"""

from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.image import ImageSource
from autowasm.artifacts.object import HttpObjectSource
from autowasm.artifacts.peerlist import PeerList
from autowasm.artifacts.peers import Peers
from autowasm.artifacts.pullsecrets import ServiceAccounts
from autowasm.controller.mode import Mode
from autowasm.controller.policy.policyfile import PolicyFile
from autowasm.net.policy import AddressPolicy
from autowasm.net.session import ObjectSession
from autowasm.registry.client import RegistryClient
from autowasm.runtime.ground import Ground
from autowasm.settings import Cluster


async def make_peers(ground: Ground, *, instance: str) -> Peers | None:
    """The other replicas, looked for from now on; None: there are none to look for."""
    settings = ground.settings
    if not (settings.peers.urls or settings.peers.host):
        return None
    known = PeerList(settings.peers, pools=ground.pools)
    peers = Peers(
        known,
        instance=instance,
        store=ground.store,
        settings=settings.peers,
        module_bytes=settings.limits.module_bytes,
        pools=ground.pools,
        metrics=ground.metrics,
        tasks=ground.tasks,
    )
    await ground.stack.enter_async_context(peers)
    ground.tasks.create_task(known.run(), name="peers")
    return peers


def make_fetcher(
    ground: Ground, *, mode: Mode, peers: Peers | None, policy: PolicyFile
) -> ArtifactFetcher:
    """What fetches from all of them; its connections are closed with the stack."""
    settings, pools = ground.settings, ground.pools
    registry, objects = _make_clients(ground)
    return ArtifactFetcher(
        settings=settings,
        store=ground.store,
        sources={
            "registry": ImageSource(registry, limits=settings.limits, pools=pools),
            "object": HttpObjectSource(objects, limits=settings.limits, pools=pools),
        },
        secrets=mode,
        pools=pools,
        metrics=ground.metrics,
        tasks=ground.tasks,
        service_accounts=_service_accounts(mode, settings.cluster),
        object_hosts=policy.object_hosts,
        peers=peers,
    )


def _make_clients(ground: Ground) -> tuple[RegistryClient, ObjectSession]:
    settings, pools, on_request = ground.settings, ground.pools, ground.metrics.requests.sent
    policy = AddressPolicy(allow=settings.outgoing.allow_cidr, deny=settings.outgoing.deny_cidr)
    registry = RegistryClient(
        outgoing=settings.outgoing,
        limits=settings.limits,
        pools=pools,
        policy=policy,
        on_request=on_request,
    )
    ground.stack.push_async_callback(registry.close)
    objects = ObjectSession(
        outgoing=settings.outgoing,
        limits=settings.limits,
        pools=pools,
        policy=policy,
        on_request=on_request,
    )
    ground.stack.push_async_callback(objects.close)
    return registry, objects


def _service_accounts(mode: Mode, cluster: Cluster | None) -> ServiceAccounts | None:
    wanted = cluster is not None and cluster.service_account_pull_secrets
    return mode if wanted and isinstance(mode, ServiceAccounts) else None
