"""Objects over a real fetcher: archives, conditional requests, allowed redirects."""

import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import ObjectSource, Source
from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.object import HttpObjectSource
from autowasm.artifacts.source import FetchRequest
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.errors import AddressBlocked, ContentRejected
from autowasm.net.addresspolicy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.net.session import ObjectSession
from autowasm.settings import Outgoing, Settings
from autowasm.telemetry.metrics import Metrics
from tests.fakes.pullsecrets import FakeSecrets
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts import wat
from tests.unit.wasm.archives import tar

MODULE = wat.header_filter("world")
OTHER = wat.header_filter("earth")


def sha256(data: bytes) -> Sha256Hex:
    return Sha256Hex(hashlib.sha256(data).hexdigest())


@dataclass
class Storage:
    """One object with validators, that answers conditional requests by RFC 9110."""

    body: bytes = MODULE
    etag: str = '"1"'
    last_modified: str = ""
    answers: list[int] = field(default_factory=list)

    async def __call__(self, exchange: Exchange) -> None:
        asked = exchange.request.headers
        headers = {"ETag": self.etag} if self.etag else {}
        if self.last_modified:
            headers["Last-Modified"] = self.last_modified
        same = (self.etag and asked.get("if-none-match") == self.etag) or (
            "if-none-match" not in asked
            and self.last_modified
            and asked.get("if-modified-since") == self.last_modified
        )
        self.answers.append(304 if same else 200)
        await exchange.send(304 if same else 200, body=b"" if same else self.body, headers=headers)


@dataclass
class Fetching:
    fetcher: ArtifactFetcher
    store: BlobStore
    hosts: dict[str, tuple[str, ...]]

    async def fetch(
        self,
        url: str,
        *,
        known: Record | None = None,
        namespace: str = "default",
        expected: Sha256Hex | None = None,
    ) -> Record:
        source = Source(object=ObjectSource(url=url))
        return await self.fetcher.fetch(
            FetchRequest(namespace=namespace, source=source, known=known, expected=expected)
        )


@pytest.fixture
async def fetching(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Fetching]:
    async with opened(tmp_path, metrics) as fetching:
        yield fetching


@asynccontextmanager
async def opened(directory: Path, metrics: Metrics) -> AsyncIterator[Fetching]:
    settings = Settings(cache_dir=directory)
    hosts: dict[str, tuple[str, ...]] = {}
    with Pools() as pools:
        policy = AddressPolicy(allow=["127.0.0.0/8"])
        async with (
            BlobStore(directory, pools=pools, metrics=metrics) as store,
            ObjectSession(
                outgoing=Outgoing(), limits=settings.limits, pools=pools, policy=policy
            ) as session,
            asyncio.TaskGroup() as tasks,
        ):
            source = HttpObjectSource(session, limits=settings.limits, pools=pools)
            fetcher = ArtifactFetcher(
                settings=settings,
                store=store,
                sources={"object": source},
                secrets=FakeSecrets(),
                pools=pools,
                metrics=metrics,
                tasks=tasks,
                object_hosts=hosts.get,
            )
            yield Fetching(fetcher, store, hosts)


def plugin(data: bytes) -> bytes:
    return tar({"plugin.wasm": data})


@pytest.mark.parametrize(
    "pack",
    [bytes, gzip.compress, plugin, lambda data: gzip.compress(plugin(data))],
    ids=["raw", "gzip", "tar", "tar.gz"],
)
async def test_packing_is_detected_from_the_bytes(
    fetching: Fetching, pack: Callable[[bytes], bytes]
) -> None:
    async with ScriptedServer(Storage(body=pack(MODULE))) as server:
        record = await fetching.fetch(f"{server.url}/x.bin", expected=sha256(MODULE))
        assert (record.sha256, record.etag) == (sha256(MODULE), '"1"')
        assert record.sha256 in fetching.store
        with pytest.raises(ContentRejected) as caught:
            await fetching.fetch(f"{server.url}/x.bin", expected=sha256(b"other"))
        assert caught.value.reason == "Sha256Mismatch"


@pytest.mark.parametrize(
    "storage",
    [
        Storage(),
        Storage(etag="", last_modified="Mon, 01 Jan 2024 00:00:00 GMT"),
        Storage(last_modified="Mon, 01 Jan 2024 00:00:00 GMT"),
    ],
    ids=["etag", "last-modified", "both"],
)
async def test_an_unchanged_object_gives_the_same_record_without_its_bytes(
    fetching: Fetching, storage: Storage
) -> None:
    async with ScriptedServer(storage) as server:
        url = f"{server.url}/filter.wasm?X-Signature=s3cret"
        first = await fetching.fetch(url)
        assert await fetching.fetch(url, known=first) == first
        storage.body, storage.etag, storage.last_modified = OTHER, '"2"', ""
        moved = await fetching.fetch(url, known=first)
    assert storage.answers == [200, 304, 200]
    assert (moved.sha256, moved.etag) == (sha256(OTHER), '"2"')


async def test_a_module_that_is_no_longer_stored_is_fetched_whole(fetching: Fetching) -> None:
    storage = Storage()
    async with ScriptedServer(storage) as server:
        first = await fetching.fetch(server.url)
        fetching.store.path(first.sha256).unlink()
        assert await fetching.store.open(first.sha256) is None
        assert await fetching.fetch(server.url, known=first) == first
    assert storage.answers == [200, 200]


async def test_a_record_of_another_source_or_without_validators_is_fetched_whole(
    fetching: Fetching,
) -> None:
    storage = Storage()
    async with ScriptedServer(storage) as server:
        first = await fetching.fetch(f"{server.url}/a")
        await fetching.fetch(f"{server.url}/b", known=first)
        bare = msgspec.structs.replace(first, etag="")
        await fetching.fetch(f"{server.url}/a", known=bare)
    assert storage.answers == [200, 200, 200]


async def test_redirects_stay_within_the_namespaces_hosts(fetching: Fetching) -> None:
    async with ScriptedServer(Storage()) as far:

        async def script(exchange: Exchange) -> None:
            await exchange.send(302, headers={"Location": f"{far.url}/end?s3cret"})

        async with ScriptedServer(script) as near:
            fetching.hosts["narrow"] = (near.host,)
            fetching.hosts["wide"] = (near.host, far.host)
            assert (await fetching.fetch(near.url, namespace="wide")).sha256 == sha256(MODULE)
            for _ in range(2):  # the record of another namespace is not used either
                with pytest.raises(AddressBlocked, match="policy") as caught:
                    await fetching.fetch(near.url, namespace="narrow")
                assert caught.value.reason == "PolicyDenied"
                assert "s3cret" not in str(caught.value)
            assert len(far.requests) == 1


async def test_module_that_goes_while_the_object_is_asked_for_is_fetched_whole(
    fetching: Fetching,
) -> None:
    class Evicting(Storage):
        async def __call__(self, exchange: Exchange) -> None:
            if "if-none-match" in exchange.request.headers:
                await fetching.store.discard(sha256(MODULE))
            await super().__call__(exchange)

    storage = Evicting()
    async with ScriptedServer(storage) as server:
        first = await fetching.fetch(server.url)
        assert await fetching.fetch(server.url, known=first) == first
    assert storage.answers == [200, 304, 200]
    assert first.sha256 in fetching.store


async def test_lost_module_of_a_record_is_fetched_from_the_url_of_the_record(
    fetching: Fetching,
) -> None:
    storage = Storage()
    async with ScriptedServer(storage) as server:
        first = await fetching.fetch(server.url)
        await fetching.store.discard(first.sha256)
        source = Source(object=ObjectSource(url=server.url))
        request = FetchRequest(namespace="default", source=source, record=first)
        assert (await fetching.fetcher.fetch(request)).sha256 == first.sha256
        assert first.sha256 in fetching.store
        await fetching.store.discard(first.sha256)
        storage.body = OTHER
        with pytest.raises(ContentRejected) as caught:
            await fetching.fetcher.fetch(request)
    assert caught.value.reason == "DigestMismatch"
    assert first.sha256 not in fetching.store
