"""DataPath: fetching, keeping and serving, which go on whatever is wrong with the rest.

Not who decides what is fetched (`control.py`). Invariant: opening it starts no reconciling and opens no port.
"""

import secrets
from dataclasses import dataclass

from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.peers import Peers
from autowasm.artifacts.published import PublishedModules
from autowasm.blobs.pins import Pins
from autowasm.blobs.retention import Retention
from autowasm.controller.interfaces import Mode
from autowasm.controller.sourcepolicy import PolicyFile
from autowasm.runtime.ground import Ground
from autowasm.runtime.sources import make_fetcher, make_peers
from autowasm.server.app import BlobServer
from autowasm.server.downloadlog import Sightings


@dataclass(frozen=True, slots=True)
class DataPath:
    """From sources to sidecars."""

    peers: Peers | None
    fetcher: ArtifactFetcher
    retention: Retention
    published: PublishedModules
    sightings: Sightings
    blob_server: BlobServer
    """Not started yet."""


async def open_data_path(ground: Ground, *, mode: Mode, policy: PolicyFile) -> DataPath:
    """All of it but the ports; what has to be closed is on the stack."""
    settings, store, metrics = ground.settings, ground.store, ground.metrics
    instance = secrets.token_hex(8)
    sightings = Sightings(settings.sightings, instance=instance)
    peers = await make_peers(ground, instance=instance)
    fetcher = make_fetcher(ground, mode=mode, peers=peers, policy=policy)
    pins = Pins()
    retention = Retention(store, pins, settings=settings, pools=ground.pools, metrics=metrics)
    await ground.stack.enter_async_context(retention)
    published = PublishedModules(fetcher, pins=pins, peers=peers)
    blob_server = BlobServer(
        store,
        published,
        instance=instance,
        sightings=sightings,
        limits=settings.serve,
        metrics=metrics,
    )
    return DataPath(peers, fetcher, retention, published, sightings, blob_server)
