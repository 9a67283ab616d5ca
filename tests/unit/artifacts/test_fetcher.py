"""The fetcher over a fake registry and a real store."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from autowasm.api.record import Record
from autowasm.artifacts import fetcher
from autowasm.errors import (
    ContentRejected,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    SpecError,
)
from autowasm.wasm.module import ModuleInfo, inspect_module
from tests.fakes.autowasms import IMAGE, digest
from tests.fakes.modulesource import sha256_of
from tests.parts import wat
from tests.unit.artifacts.conftest import FetchingReplica

Modules = Callable[[str], bytes]
BAD = b"\0asm\1\0\0\0"
OTHER = "registry.example/team/filter:v2"
FILTER = """(module {} (memory (export "memory") 1)
(func (export "proxy_abi_version_0_2_1"))
(func (export "malloc") (param i32) (result i32) (i32.const 0)))"""
DOWN = SourceUnavailable("connection refused", reason="RegistryUnavailable")


async def test_stores_the_module_and_records_the_digest_of_the_tag(
    replica: FetchingReplica, modules: Modules
) -> None:
    data = modules("world")
    pinned = replica.registry.add(IMAGE, data)
    assert await replica.fetcher.fetch(replica.request()) == Record(
        source=f"registry:{IMAGE}",
        sha256=sha256_of(data),
        size=len(data),
        abi="0.2.1",
        image=pinned,
    )
    assert sha256_of(data) in replica.store
    value = replica.metrics.registry.get_sample_value
    labels = {"kind": "registry", "reason": "Success"}
    assert value("autowasm_fetches_total", labels) == 1
    assert value("autowasm_fetched_bytes_total", {"kind": "registry"}) == len(data)


async def test_same_content_under_another_tag_is_not_downloaded_again(
    replica: FetchingReplica, modules: Modules
) -> None:
    for image in (IMAGE, OTHER):
        replica.registry.add(image, modules("world"))
        await replica.fetcher.fetch(replica.request(image))
    assert (replica.registry.count("resolve"), replica.registry.count("fetch")) == (2, 1)


async def _push_stored(replica: FetchingReplica, data: bytes) -> None:
    """The image's manifest has the digest of a module that the replica has stored, but not read since its start."""
    replica.registry.layer_is_module = True
    async with replica.store.stage() as stage:
        await asyncio.to_thread(stage.path.write_bytes, data)
        await replica.store.commit(stage, sha256_of(data))
    replica.registry.add(IMAGE, data)


async def test_content_whose_digest_the_manifest_tells_is_not_downloaded_after_a_restart(
    replica: FetchingReplica, modules: Modules
) -> None:
    data = modules("world")
    await _push_stored(replica, data)
    record = await replica.fetcher.fetch(replica.request())
    assert (record.sha256, record.abi) == (sha256_of(data), "0.2.1")
    assert replica.registry.count("fetch") == 0


async def test_a_stored_module_is_read_once_for_concurrent_requests(
    replica: FetchingReplica, modules: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = modules("world")
    await _push_stored(replica, data)
    inspections: list[Path] = []

    def inspect(path: Path, **options: Any) -> ModuleInfo:
        inspections.append(path)
        return inspect_module(path, **options)

    monkeypatch.setattr(fetcher, "inspect_module", inspect)
    requests = [replica.request(namespace=f"ns{n}") for n in range(100)]
    records = await asyncio.gather(*(replica.fetcher.fetch(request) for request in requests))
    assert {record.sha256 for record in records} == {sha256_of(data)}
    assert inspections == [replica.store.path(sha256_of(data))]


async def test_many_requests_for_one_image_cost_one_download(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.registry.add(IMAGE, modules("world"))
    requests = [replica.request(namespace=f"ns{n}") for n in range(100)]
    records = await asyncio.gather(*(replica.fetcher.fetch(request) for request in requests))
    assert len(set(records)) == 1
    assert (replica.registry.count("resolve"), replica.registry.count("fetch")) == (1, 1)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"no module", "NotWasm"), (BAD, "AbiMissing"), (b"\0asm", "Truncated")]
)
async def test_refused_module_is_not_stored_nor_fetched_again(
    replica: FetchingReplica, data: bytes, reason: str
) -> None:
    replica.registry.add(IMAGE, data)
    for _ in range(3):
        with pytest.raises(ContentRejected) as caught:
            await replica.fetcher.fetch(replica.request())
        assert caught.value.reason == reason
    assert replica.registry.count("fetch") == 1
    assert not replica.store.digests()
    labels = {"kind": "registry", "reason": reason}
    assert replica.metrics.registry.get_sample_value("autowasm_fetches_total", labels) == 3


async def test_a_refused_module_is_forgotten_after_ten_thousand_others(
    replica: FetchingReplica,
) -> None:
    replica.registry.add(IMAGE, BAD)

    async def fetches() -> int:
        with pytest.raises(ContentRejected):
            await replica.fetcher.fetch(replica.request())
        return replica.registry.count("fetch")

    assert await fetches() == 1
    for number in range(9_999):
        replica.fetcher._refused[str(number)] = ContentRejected("another")
    assert await fetches() == 1
    replica.fetcher._refused["one more"] = ContentRejected("another")
    assert await fetches() == 2


async def test_tag_that_was_moved_to_a_good_module_is_taken(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.registry.add(IMAGE, BAD)
    with pytest.raises(ContentRejected):
        await replica.fetcher.fetch(replica.request())
    replica.registry.add(IMAGE, modules("world"))
    assert (await replica.fetcher.fetch(replica.request())).sha256 == sha256_of(modules("world"))


@pytest.mark.parametrize("reason", ["DigestMismatch", "SizeMismatch"])
async def test_bytes_damaged_on_the_way_are_fetched_again(
    replica: FetchingReplica, modules: Modules, reason: str
) -> None:
    replica.registry.add(IMAGE, modules("world"))
    replica.registry.failures["fetch"] = ContentRejected("a proxy changed them", reason=reason)
    with pytest.raises(ContentRejected):
        await replica.fetcher.fetch(replica.request())
    replica.registry.failures.clear()
    assert (await replica.fetcher.fetch(replica.request())).sha256 in replica.store


async def test_record_is_fetched_by_digest_after_its_tag_moved(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.registry.add(IMAGE, modules("world"))
    record = await replica.fetcher.fetch(replica.request())
    await _remove(replica, record)
    replica.registry.add(IMAGE, modules("earth"))
    assert await replica.fetcher.fetch(replica.request(record=record)) == record
    assert record.sha256 in replica.store
    assert replica.registry.count("resolve") == 1


async def _remove(replica: FetchingReplica, record: Record) -> None:
    replica.store.path(record.sha256).unlink()
    assert await replica.store.open(record.sha256) is None


async def test_record_of_a_stored_module_sends_no_request(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.registry.add(IMAGE, modules("world"))
    record = await replica.fetcher.fetch(replica.request())
    replica.registry.steps.clear()
    replica.registry.failures["pin"] = replica.registry.failures["resolve"] = DOWN
    assert await replica.fetcher.fetch(replica.request(record=record)) == record
    assert not replica.registry.steps


async def test_forged_record_is_an_error_and_does_not_affect_later_fetches(
    replica: FetchingReplica, modules: Modules
) -> None:
    """It may be forged: a later fetch of the same image must get the module."""
    replica.registry.add(IMAGE, modules("world"))
    good = await replica.fetcher.fetch(replica.request())
    await _remove(replica, good)
    forged = msgspec.structs.replace(good, sha256=digest("f"))
    for _ in range(2):
        with pytest.raises(ContentRejected, match="when it was published") as caught:
            await replica.fetcher.fetch(replica.request(record=forged))
        assert caught.value.reason == "DigestMismatch"
    assert await replica.fetcher.fetch(replica.request()) == good
    assert await replica.fetcher.fetch(replica.request(record=good)) == good


async def test_fetches_of_records_keep_the_limits_too(
    replica: FetchingReplica, modules: Modules
) -> None:
    records = []
    for number in range(20):
        image = f"registry.example/team/filter{number}:v1"
        replica.registry.add(image, modules(str(number)))
        records.append((image, await replica.fetcher.fetch(replica.request(image))))
    for _, record in records:
        await _remove(replica, record)
    replica.registry.most_running = 0
    async with asyncio.TaskGroup() as tasks:
        for image, record in records:
            tasks.create_task(replica.fetcher.fetch(replica.request(image, record=record)))
    assert replica.registry.most_running <= 2


async def test_expected_digest_that_differs_is_refused_for_this_object_only(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.registry.add(IMAGE, modules("world"))
    with pytest.raises(ContentRejected, match=r"spec\.filter\.sha256") as caught:
        await replica.fetcher.fetch(replica.request(expected=digest("0")))
    assert caught.value.reason == "Sha256Mismatch"
    right = replica.request(expected=sha256_of(modules("world")))
    assert (await replica.fetcher.fetch(right)).sha256 == right.expected


async def test_cached_module_is_given_out_only_after_the_own_secret_resolved_it(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.secrets.login("a", "pull", "alice", host="registry.example")
    replica.secrets.login("b", "pull", "bob", host="registry.example")
    replica.registry.add(IMAGE, modules("world"))
    replica.registry.failures["resolve bob"] = SourceDenied("bob may not")
    replica.registry.failures["resolve anonymous"] = SourceDenied("nobody may")
    await replica.fetcher.fetch(replica.request(namespace="a", secret="pull"))
    with pytest.raises(SourceDenied, match="bob may not"):
        await replica.fetcher.fetch(replica.request(namespace="b", secret="pull"))
    with pytest.raises(SourceDenied, match="nobody may"):
        await replica.fetcher.fetch(replica.request(namespace="c"))
    del replica.registry.failures["resolve bob"]
    await replica.fetcher.fetch(replica.request(namespace="b", secret="pull"))
    assert replica.registry.count("fetch") == 1


async def test_fetch_failure_of_one_credential_does_not_fail_another(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.secrets.login("a", "pull", "alice", host="registry.example")
    replica.secrets.login("b", "pull", "bob", host="registry.example")
    replica.registry.add(IMAGE, modules("world"))
    replica.registry.failures["fetch bob"] = SourceDenied("bob may not have the layer")
    replica.registry.gates["fetch"] = asyncio.Event()
    bob = asyncio.create_task(replica.fetcher.fetch(replica.request(namespace="b", secret="pull")))
    alice = asyncio.create_task(
        replica.fetcher.fetch(replica.request(namespace="a", secret="pull"))
    )
    async with asyncio.timeout(10):
        while replica.registry.count("fetch") < 2:
            await asyncio.sleep(0.001)
    replica.registry.gates["fetch"].set()
    with pytest.raises(SourceDenied, match="bob"):
        await bob
    assert (await alice).sha256 in replica.store


async def test_breaker_opens_even_where_manifests_come_and_layers_do_not(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.registry.add(IMAGE, modules("world"))
    replica.registry.failures["fetch"] = DOWN
    for _ in range(2):
        with pytest.raises(SourceUnavailable, match="refused"):
            await replica.fetcher.fetch(replica.request())
    with pytest.raises(SourceUnavailable) as caught:
        await replica.fetcher.fetch(replica.request())
    assert caught.value.reason == "BackingOff"
    assert replica.registry.count("fetch") == 2


async def test_only_failures_in_a_row_open_the_breaker(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.registry.add(IMAGE, modules("world"))
    for _ in range(3):
        replica.registry.failures["resolve"] = DOWN
        with pytest.raises(SourceUnavailable, match="refused"):
            await replica.fetcher.fetch(replica.request())
        replica.registry.failures.clear()
        await replica.fetcher.fetch(replica.request())


async def test_poll_without_a_request_does_not_close_the_circuit_breaker(
    replica: FetchingReplica, modules: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an object only a fetch shows whether it changed."""

    async def unknown(*_: object, **__: object) -> None:
        pass

    replica.registry.add(IMAGE, modules("world"))
    record = await replica.fetcher.fetch(replica.request())
    monkeypatch.setattr(replica.registry, "has_moved", unknown)
    replica.registry.failures["resolve"] = DOWN
    for _ in range(2):
        assert await replica.fetcher.has_moved(replica.request(), record) is None
        with pytest.raises(SourceUnavailable, match="refused"):
            await replica.fetcher.fetch(replica.request())
    with pytest.raises(SourceUnavailable) as caught:
        await replica.fetcher.fetch(replica.request())
    assert caught.value.reason == "BackingOff"


async def test_breaker_of_one_credential_lets_the_other_through(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.secrets.login("b", "pull", "bob", host="registry.example")
    replica.registry.add(IMAGE, modules("world"))
    replica.registry.failures["resolve bob"] = SourceDenied("wrong password")
    for _ in range(5):
        with pytest.raises((SourceDenied, SourceUnavailable)):
            await replica.fetcher.fetch(replica.request(namespace="b", secret="pull"))
    assert replica.registry.count("resolve") == 2
    assert (await replica.fetcher.fetch(replica.request())).sha256 in replica.store


async def test_hanging_fetches_of_one_namespace_delay_no_other(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.secrets.login("bad", "pull", "mallory", host="registry.example")
    replica.registry.gates["resolve mallory"] = asyncio.Event()
    replica.registry.add(IMAGE, modules("world"))
    async with asyncio.TaskGroup() as tasks:
        hanging = [
            tasks.create_task(
                replica.fetcher.fetch(
                    replica.request(f"registry.example/bad/{n}:v1", namespace="bad", secret="pull")
                )
            )
            for n in range(100)
        ]
        async with asyncio.timeout(10):
            record = await replica.fetcher.fetch(replica.request())
        for task in hanging:
            task.cancel()
    assert record.sha256 in replica.store


async def test_missing_image_and_missing_secret_keep_their_reasons(
    replica: FetchingReplica,
) -> None:
    with pytest.raises(SourceNotFound, match="is not there"):
        await replica.fetcher.fetch(replica.request())
    with pytest.raises(SourceDenied, match="no Secret pull in namespace default"):
        await replica.fetcher.fetch(replica.request(secret="pull"))


async def test_secret_is_read_at_each_attempt(replica: FetchingReplica, modules: Modules) -> None:
    replica.registry.add(IMAGE, modules("world"))
    replica.registry.failures["resolve alice"] = SourceDenied("old password")
    replica.secrets.login("default", "pull", "alice", host="registry.example")
    with pytest.raises(SourceDenied):
        await replica.fetcher.fetch(replica.request(secret="pull"))
    replica.secrets.login("default", "pull", "bob", host="registry.example")
    await replica.fetcher.fetch(replica.request(secret="pull"))
    assert replica.secrets.reads.total() == 2


async def test_denied_message_names_a_pull_secret_without_an_entry_for_the_registry(
    replica: FetchingReplica,
) -> None:
    replica.secrets.login("default", "pull", "alice", host="other.example")
    replica.registry.failures["resolve"] = SourceDenied("401")
    with pytest.raises(SourceDenied, match=r"pull has no entry for registry\.example.*anonymously"):
        await replica.fetcher.fetch(replica.request(secret="pull"))


async def test_invalid_secret_causes_no_request_to_the_registry(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.registry.add(IMAGE, modules("world"))
    replica.secrets.login("default", "pull", "a:b", host="registry.example")
    with pytest.raises(SpecError, match=r"spec\.secret"):
        await replica.fetcher.fetch(replica.request(secret="pull"))
    assert not replica.registry.steps


async def test_cancelled_fetch_leaves_nothing_staged(
    replica: FetchingReplica, modules: Modules
) -> None:
    replica.registry.add(IMAGE, modules("world"))
    replica.registry.gates["fetch"] = asyncio.Event()
    task = asyncio.create_task(replica.fetcher.fetch(replica.request()))
    async with asyncio.timeout(10):
        while not replica.registry.count("fetch"):
            await asyncio.sleep(0.001)
        task.cancel()
        while replica.registry.running:
            await asyncio.sleep(0.001)
        while await asyncio.to_thread(_staged, replica):
            await asyncio.sleep(0.001)
    assert task.cancelled()


def _staged(replica: FetchingReplica) -> bool:
    staging = replica.store.path(digest("0")).parents[1] / "staging"
    return any(staging.iterdir())


async def test_module_that_another_login_brought_meanwhile_is_not_downloaded_again(
    replica: FetchingReplica, modules: Modules
) -> None:
    users = ("alice", "bob", "carol")
    for user in users:
        replica.secrets.login("a", user, user, host="registry.example")
    replica.registry.layer_is_module = True
    replica.registry.add(IMAGE, modules("world"))
    replica.registry.gates["fetch"] = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        fetches = [
            tasks.create_task(replica.fetcher.fetch(replica.request(namespace="a", secret=user)))
            for user in users
        ]
        # A namespace has two slots for one host: the third login waits for one of them.
        while replica.registry.count("resolve") < 3 or replica.registry.count("fetch") < 2:
            await asyncio.sleep(0.001)
        replica.registry.gates["fetch"].set()
    assert len({fetch.result().sha256 for fetch in fetches}) == 1
    assert replica.registry.count("fetch") == 2


async def test_unchecked_parts_of_a_module_are_logged(replica: FetchingReplica) -> None:
    body = "(tag $t) (func (try (do (throw $t)) (catch_all)))"
    replica.registry.add(IMAGE, wat.compile_text(FILTER.format(body)))
    with structlog.testing.capture_logs() as events:
        record = await replica.fetcher.fetch(replica.request())
    assert record.sha256 in replica.store
    (warning,) = (event for event in events if event["event"] == "module not fully checked")
    assert warning["unchecked"].startswith("1 of 3 function bodies were not validated")
