"""When a module is copied from other replicas, and when only its source may be used."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from autowasm.api.record import Record
from autowasm.artifacts.peers import Peers
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.errors import SourceUnavailable
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import IMAGE
from tests.unit.artifacts.conftest import fetching_replica

Modules = Callable[[str], bytes]


class Others:
    """The other replicas: they have `module`."""

    def __init__(self, store: BlobStore, module: bytes | None) -> None:
        self._store = store
        self._module = module
        self.requests: list[Sha256Hex] = []

    async def copy(self, sha256: Sha256Hex) -> bool:
        self.requests.append(sha256)
        if self._module is None:
            return False
        async with self._store.stage() as stage:
            stage.path.write_bytes(self._module)
            await self._store.commit(stage, sha256)
        return True


async def _record(directory: Path, module: bytes) -> Record:
    """A record from another replica."""
    async with fetching_replica(directory / "other", Metrics()) as replica:
        replica.registry.add(IMAGE, module)
        return await replica.fetcher.fetch(replica.request())


@pytest.mark.parametrize("stored", [True, False])
async def test_record_needs_no_source_where_a_replica_has_its_module(
    tmp_path: Path, metrics: Metrics, modules: Modules, stored: bool
) -> None:
    module = modules("world")
    record = await _record(tmp_path, module)
    others: list[Others] = []

    def make(store: BlobStore) -> Peers:
        others.append(Others(store, module if stored else None))
        return cast(Peers, others[0])

    async with fetching_replica(tmp_path / "us", metrics, peers=make) as replica:
        down = SourceUnavailable("registry down")
        replica.registry.failures["pin"] = replica.registry.failures["resolve"] = down
        if stored:
            assert await replica.fetcher.fetch(replica.request(record=record)) == record
            assert record.sha256 in replica.store
            assert not replica.registry.steps
        else:
            with pytest.raises(SourceUnavailable, match="registry down"):
                await replica.fetcher.fetch(replica.request(record=record))
        assert others[0].requests == [record.sha256]


async def test_a_source_is_never_resolved_through_a_peer(
    tmp_path: Path, metrics: Metrics, modules: Modules
) -> None:
    """Only the source can decide whether this credential may read the module (ADR 19)."""
    module = modules("world")
    others: list[Others] = []

    def make(store: BlobStore) -> Peers:
        others.append(Others(store, module))
        return cast(Peers, others[0])

    async with fetching_replica(tmp_path, metrics, peers=make) as replica:
        replica.registry.failures["resolve"] = SourceUnavailable("registry down")
        with pytest.raises(SourceUnavailable):
            await replica.fetcher.fetch(replica.request())
        assert others[0].requests == []
