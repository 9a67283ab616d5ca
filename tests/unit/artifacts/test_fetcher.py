"""The fetcher over a fake registry and a real store."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest
import structlog

from autowasm.api.record import Record
from autowasm.errors import (
    ContentRejected,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    SpecError,
)
from tests.fakes.autowasms import IMAGE, digest
from tests.fakes.modulesource import sha256_of
from tests.parts import wat
from tests.unit.artifacts.conftest import Bench

Modules = Callable[[str], bytes]
BAD = b"\0asm\1\0\0\0"
OTHER = "registry.example/team/filter:v2"
FILTER = """(module {} (memory (export "memory") 1)
(func (export "proxy_abi_version_0_2_1"))
(func (export "malloc") (param i32) (result i32) (i32.const 0)))"""
DOWN = SourceUnavailable("connection refused", reason="RegistryUnavailable")


async def test_stores_the_module_and_says_what_the_tag_named(
    bench: Bench, modules: Modules
) -> None:
    data = modules("world")
    pinned = bench.registry.add(IMAGE, data)
    assert await bench.fetcher.fetch(bench.request()) == Record(
        source=f"registry:{IMAGE}",
        sha256=sha256_of(data),
        size=len(data),
        abi="0.2.1",
        image=pinned,
    )
    assert sha256_of(data) in bench.store
    value = bench.metrics.registry.get_sample_value
    labels = {"kind": "registry", "reason": "Success"}
    assert value("autowasm_fetches_total", labels) == 1
    assert value("autowasm_fetched_bytes_total", {"kind": "registry"}) == len(data)


async def test_same_content_under_another_tag_is_not_downloaded_again(
    bench: Bench, modules: Modules
) -> None:
    for image in (IMAGE, OTHER):
        bench.registry.add(image, modules("world"))
        await bench.fetcher.fetch(bench.request(image))
    assert (bench.registry.count("resolve"), bench.registry.count("fetch")) == (2, 1)


async def test_content_whose_digest_the_manifest_tells_is_not_downloaded_after_a_restart(
    bench: Bench, modules: Modules
) -> None:
    data = modules("world")
    bench.registry.layer_is_module = True
    async with bench.store.stage() as stage:
        await asyncio.to_thread(stage.path.write_bytes, data)
        await bench.store.commit(stage, sha256_of(data))
    bench.registry.add(IMAGE, data)
    record = await bench.fetcher.fetch(bench.request())
    assert (record.sha256, record.abi) == (sha256_of(data), "0.2.1")
    assert bench.registry.count("fetch") == 0


async def test_many_who_want_one_image_cost_one_download(bench: Bench, modules: Modules) -> None:
    bench.registry.add(IMAGE, modules("world"))
    requests = [bench.request(namespace=f"ns{n}") for n in range(100)]
    records = await asyncio.gather(*(bench.fetcher.fetch(request) for request in requests))
    assert len(set(records)) == 1
    assert (bench.registry.count("resolve"), bench.registry.count("fetch")) == (1, 1)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"no module", "NotWasm"), (BAD, "AbiMissing"), (b"\0asm", "Truncated")]
)
async def test_refused_module_is_not_stored_nor_fetched_again(
    bench: Bench, data: bytes, reason: str
) -> None:
    bench.registry.add(IMAGE, data)
    for _ in range(3):
        with pytest.raises(ContentRejected) as caught:
            await bench.fetcher.fetch(bench.request())
        assert caught.value.reason == reason
    assert bench.registry.count("fetch") == 1
    assert not bench.store.digests()
    labels = {"kind": "registry", "reason": reason}
    assert bench.metrics.registry.get_sample_value("autowasm_fetches_total", labels) == 3


async def test_a_refused_module_is_forgotten_after_ten_thousand_others(bench: Bench) -> None:
    bench.registry.add(IMAGE, BAD)

    async def fetches() -> int:
        with pytest.raises(ContentRejected):
            await bench.fetcher.fetch(bench.request())
        return bench.registry.count("fetch")

    assert await fetches() == 1
    for number in range(9_999):
        bench.fetcher._refused[str(number)] = ContentRejected("another")
    assert await fetches() == 1
    bench.fetcher._refused["one more"] = ContentRejected("another")
    assert await fetches() == 2


async def test_tag_that_was_moved_to_a_good_module_is_taken(bench: Bench, modules: Modules) -> None:
    bench.registry.add(IMAGE, BAD)
    with pytest.raises(ContentRejected):
        await bench.fetcher.fetch(bench.request())
    bench.registry.add(IMAGE, modules("world"))
    assert (await bench.fetcher.fetch(bench.request())).sha256 == sha256_of(modules("world"))


@pytest.mark.parametrize("reason", ["DigestMismatch", "SizeMismatch"])
async def test_bytes_damaged_on_the_way_are_fetched_again(
    bench: Bench, modules: Modules, reason: str
) -> None:
    bench.registry.add(IMAGE, modules("world"))
    bench.registry.failures["fetch"] = ContentRejected("a proxy changed them", reason=reason)
    with pytest.raises(ContentRejected):
        await bench.fetcher.fetch(bench.request())
    bench.registry.failures.clear()
    assert (await bench.fetcher.fetch(bench.request())).sha256 in bench.store


async def test_record_is_fetched_by_digest_whatever_the_tag_names_now(
    bench: Bench, modules: Modules
) -> None:
    bench.registry.add(IMAGE, modules("world"))
    record = await bench.fetcher.fetch(bench.request())
    await _remove(bench, record)
    bench.registry.add(IMAGE, modules("earth"))
    assert await bench.fetcher.fetch(bench.request(record=record)) == record
    assert record.sha256 in bench.store
    assert bench.registry.count("resolve") == 1


async def _remove(bench: Bench, record: Record) -> None:
    bench.store.path(record.sha256).unlink()
    assert await bench.store.open(record.sha256) is None


async def test_record_whose_module_is_stored_asks_nobody(bench: Bench, modules: Modules) -> None:
    bench.registry.add(IMAGE, modules("world"))
    record = await bench.fetcher.fetch(bench.request())
    bench.registry.steps.clear()
    bench.registry.failures["pin"] = bench.registry.failures["resolve"] = DOWN
    assert await bench.fetcher.fetch(bench.request(record=record)) == record
    assert not bench.registry.steps


async def test_record_that_does_not_hold_is_an_error_and_harms_nobody_else(
    bench: Bench, modules: Modules
) -> None:
    """It may be forged: a later fetch of the same image must get the module."""
    bench.registry.add(IMAGE, modules("world"))
    good = await bench.fetcher.fetch(bench.request())
    await _remove(bench, good)
    forged = msgspec.structs.replace(good, sha256=digest("f"))
    for _ in range(2):
        with pytest.raises(ContentRejected, match="when it was published") as caught:
            await bench.fetcher.fetch(bench.request(record=forged))
        assert caught.value.reason == "DigestMismatch"
    assert await bench.fetcher.fetch(bench.request()) == good
    assert await bench.fetcher.fetch(bench.request(record=good)) == good


async def test_fetches_of_records_keep_the_limits_too(bench: Bench, modules: Modules) -> None:
    records = []
    for number in range(20):
        image = f"registry.example/team/filter{number}:v1"
        bench.registry.add(image, modules(str(number)))
        records.append((image, await bench.fetcher.fetch(bench.request(image))))
    for _, record in records:
        await _remove(bench, record)
    bench.registry.most_running = 0
    async with asyncio.TaskGroup() as tasks:
        for image, record in records:
            tasks.create_task(bench.fetcher.fetch(bench.request(image, record=record)))
    assert bench.registry.most_running <= 2


async def test_expected_digest_that_differs_is_refused_for_this_object_only(
    bench: Bench, modules: Modules
) -> None:
    bench.registry.add(IMAGE, modules("world"))
    with pytest.raises(ContentRejected, match=r"spec\.filter\.sha256") as caught:
        await bench.fetcher.fetch(bench.request(expected=digest("0")))
    assert caught.value.reason == "Sha256Mismatch"
    right = bench.request(expected=sha256_of(modules("world")))
    assert (await bench.fetcher.fetch(right)).sha256 == right.expected


async def test_cached_module_is_given_out_only_after_the_own_secret_resolved_it(
    bench: Bench, modules: Modules
) -> None:
    bench.secrets.login("a", "pull", "alice", host="registry.example")
    bench.secrets.login("b", "pull", "bob", host="registry.example")
    bench.registry.add(IMAGE, modules("world"))
    bench.registry.failures["resolve bob"] = SourceDenied("bob may not")
    bench.registry.failures["resolve anonymous"] = SourceDenied("nobody may")
    await bench.fetcher.fetch(bench.request(namespace="a", secret="pull"))
    with pytest.raises(SourceDenied, match="bob may not"):
        await bench.fetcher.fetch(bench.request(namespace="b", secret="pull"))
    with pytest.raises(SourceDenied, match="nobody may"):
        await bench.fetcher.fetch(bench.request(namespace="c"))
    del bench.registry.failures["resolve bob"]
    await bench.fetcher.fetch(bench.request(namespace="b", secret="pull"))
    assert bench.registry.count("fetch") == 1


async def test_failure_of_one_credential_is_not_anothers(bench: Bench, modules: Modules) -> None:
    bench.secrets.login("a", "pull", "alice", host="registry.example")
    bench.secrets.login("b", "pull", "bob", host="registry.example")
    bench.registry.add(IMAGE, modules("world"))
    bench.registry.failures["fetch bob"] = SourceDenied("bob may not have the layer")
    bench.registry.gates["fetch"] = asyncio.Event()
    bob = asyncio.create_task(bench.fetcher.fetch(bench.request(namespace="b", secret="pull")))
    alice = asyncio.create_task(bench.fetcher.fetch(bench.request(namespace="a", secret="pull")))
    async with asyncio.timeout(10):
        while bench.registry.count("fetch") < 2:
            await asyncio.sleep(0.001)
    bench.registry.gates["fetch"].set()
    with pytest.raises(SourceDenied, match="bob"):
        await bob
    assert (await alice).sha256 in bench.store


async def test_breaker_opens_even_where_manifests_come_and_layers_do_not(
    bench: Bench, modules: Modules
) -> None:
    bench.registry.add(IMAGE, modules("world"))
    bench.registry.failures["fetch"] = DOWN
    for _ in range(2):
        with pytest.raises(SourceUnavailable, match="refused"):
            await bench.fetcher.fetch(bench.request())
    with pytest.raises(SourceUnavailable) as caught:
        await bench.fetcher.fetch(bench.request())
    assert caught.value.reason == "BackingOff"
    assert bench.registry.count("fetch") == 2


async def test_only_failures_in_a_row_open_the_breaker(bench: Bench, modules: Modules) -> None:
    bench.registry.add(IMAGE, modules("world"))
    for _ in range(3):
        bench.registry.failures["resolve"] = DOWN
        with pytest.raises(SourceUnavailable, match="refused"):
            await bench.fetcher.fetch(bench.request())
        bench.registry.failures.clear()
        await bench.fetcher.fetch(bench.request())


async def test_a_look_that_sends_no_request_closes_no_breaker(
    bench: Bench, modules: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an object only a fetch shows whether it changed."""

    async def unknown(*_: object, **__: object) -> None:
        pass

    bench.registry.add(IMAGE, modules("world"))
    record = await bench.fetcher.fetch(bench.request())
    monkeypatch.setattr(bench.registry, "has_moved", unknown)
    bench.registry.failures["resolve"] = DOWN
    for _ in range(2):
        assert await bench.fetcher.has_moved(bench.request(), record) is None
        with pytest.raises(SourceUnavailable, match="refused"):
            await bench.fetcher.fetch(bench.request())
    with pytest.raises(SourceUnavailable) as caught:
        await bench.fetcher.fetch(bench.request())
    assert caught.value.reason == "BackingOff"


async def test_breaker_of_one_credential_lets_the_other_through(
    bench: Bench, modules: Modules
) -> None:
    bench.secrets.login("b", "pull", "bob", host="registry.example")
    bench.registry.add(IMAGE, modules("world"))
    bench.registry.failures["resolve bob"] = SourceDenied("wrong password")
    for _ in range(5):
        with pytest.raises((SourceDenied, SourceUnavailable)):
            await bench.fetcher.fetch(bench.request(namespace="b", secret="pull"))
    assert bench.registry.count("resolve") == 2
    assert (await bench.fetcher.fetch(bench.request())).sha256 in bench.store


async def test_hanging_fetches_of_one_namespace_delay_no_other(
    bench: Bench, modules: Modules
) -> None:
    bench.secrets.login("bad", "pull", "mallory", host="registry.example")
    bench.registry.gates["resolve mallory"] = asyncio.Event()
    bench.registry.add(IMAGE, modules("world"))
    async with asyncio.TaskGroup() as tasks:
        hanging = [
            tasks.create_task(
                bench.fetcher.fetch(
                    bench.request(f"registry.example/bad/{n}:v1", namespace="bad", secret="pull")
                )
            )
            for n in range(100)
        ]
        async with asyncio.timeout(10):
            record = await bench.fetcher.fetch(bench.request())
        for task in hanging:
            task.cancel()
    assert record.sha256 in bench.store


async def test_missing_image_and_missing_secret_keep_their_reasons(bench: Bench) -> None:
    with pytest.raises(SourceNotFound, match="is not there"):
        await bench.fetcher.fetch(bench.request())
    with pytest.raises(SourceDenied, match="no Secret pull in namespace default"):
        await bench.fetcher.fetch(bench.request(secret="pull"))


async def test_secret_is_read_at_each_attempt(bench: Bench, modules: Modules) -> None:
    bench.registry.add(IMAGE, modules("world"))
    bench.registry.failures["resolve alice"] = SourceDenied("old password")
    bench.secrets.login("default", "pull", "alice", host="registry.example")
    with pytest.raises(SourceDenied):
        await bench.fetcher.fetch(bench.request(secret="pull"))
    bench.secrets.login("default", "pull", "bob", host="registry.example")
    await bench.fetcher.fetch(bench.request(secret="pull"))
    assert bench.secrets.reads.total() == 2


async def test_denied_with_a_secret_for_another_registry_says_so(bench: Bench) -> None:
    bench.secrets.login("default", "pull", "alice", host="other.example")
    bench.registry.failures["resolve"] = SourceDenied("401")
    with pytest.raises(SourceDenied, match=r"pull has no entry for registry\.example.*anonymously"):
        await bench.fetcher.fetch(bench.request(secret="pull"))


async def test_broken_secret_asks_no_registry(bench: Bench, modules: Modules) -> None:
    bench.registry.add(IMAGE, modules("world"))
    bench.secrets.login("default", "pull", "a:b", host="registry.example")
    with pytest.raises(SpecError, match=r"spec\.secret"):
        await bench.fetcher.fetch(bench.request(secret="pull"))
    assert not bench.registry.steps


async def test_cancelled_fetch_leaves_nothing_staged(bench: Bench, modules: Modules) -> None:
    bench.registry.add(IMAGE, modules("world"))
    bench.registry.gates["fetch"] = asyncio.Event()
    task = asyncio.create_task(bench.fetcher.fetch(bench.request()))
    async with asyncio.timeout(10):
        while not bench.registry.count("fetch"):
            await asyncio.sleep(0.001)
        task.cancel()
        while bench.registry.running:
            await asyncio.sleep(0.001)
        while await asyncio.to_thread(_staged, bench):
            await asyncio.sleep(0.001)
    assert task.cancelled()


def _staged(bench: Bench) -> bool:
    staging = bench.store.path(digest("0")).parents[1] / "staging"
    return any(staging.iterdir())


async def test_module_that_another_login_brought_meanwhile_is_not_downloaded_again(
    bench: Bench, modules: Modules
) -> None:
    users = ("alice", "bob", "carol")
    for user in users:
        bench.secrets.login("a", user, user, host="registry.example")
    bench.registry.layer_is_module = True
    bench.registry.add(IMAGE, modules("world"))
    bench.registry.gates["fetch"] = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        fetches = [
            tasks.create_task(bench.fetcher.fetch(bench.request(namespace="a", secret=user)))
            for user in users
        ]
        # A namespace has two slots for one host: the third login waits for one of them.
        while bench.registry.count("resolve") < 3 or bench.registry.count("fetch") < 2:
            await asyncio.sleep(0.001)
        bench.registry.gates["fetch"].set()
    assert len({fetch.result().sha256 for fetch in fetches}) == 1
    assert bench.registry.count("fetch") == 2


async def test_what_was_not_checked_of_a_module_is_in_the_log(bench: Bench) -> None:
    body = "(tag $t) (func (try (do (throw $t)) (catch_all)))"
    bench.registry.add(IMAGE, wat.compile_text(FILTER.format(body)))
    with structlog.testing.capture_logs() as events:
        record = await bench.fetcher.fetch(bench.request())
    assert record.sha256 in bench.store
    (warning,) = (event for event in events if event["event"] == "module not fully checked")
    assert warning["unchecked"].startswith("1 of 3 function bodies were not validated")
