"""BlobStore on a real directory."""

import asyncio
import concurrent.futures
import contextlib
import errno
import hashlib
import multiprocessing
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from autowasm.blobs import files
from autowasm.blobs.store import BlobStore
from autowasm.digest import HashedFile, Sha256Hex, Signature
from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import MIB, StoreLimits
from autowasm.net.pools import Pool, Pools
from autowasm.telemetry.metrics import Metrics

DATA = b"\0asm\1\0\0\0" + b"x" * 5000
OTHER = b"\0asm\1\0\0\0" + b"y" * 5000


def sha256(data: bytes) -> Sha256Hex:
    return Sha256Hex(hashlib.sha256(data).hexdigest())


def signature(path: Path) -> Signature:
    with path.open("rb") as file:
        return Signature.of(file.fileno())


@contextlib.asynccontextmanager
async def opened(
    directory: Path, *, limits: StoreLimits | None = None, metrics: Metrics | None = None
) -> AsyncIterator[BlobStore]:
    with Pools() as pools:
        store = BlobStore(directory, pools=pools, metrics=metrics or Metrics(), limits=limits)
        async with store:
            yield store


async def put(store: BlobStore, data: bytes) -> Sha256Hex:
    async with store.stage() as stage:
        stage.path.write_bytes(data)
        assert await store.commit(stage, sha256(data)) == len(data)
    return sha256(data)


async def content(store: BlobStore, digest: Sha256Hex) -> bytes | None:
    blob = await store.open(digest)
    return None if blob is None else os.pread(blob.fd, blob.size + 1, 0)


async def test_keeps_committed_blobs_over_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "made" / "here") as store:
        digest = await put(store, DATA)
        assert digest in store
        assert store.size(digest) == len(DATA)
        assert await content(store, digest) == DATA
        assert list((tmp_path / "made" / "here" / "staging").iterdir()) == []
    async with opened(tmp_path / "made" / "here") as store:
        assert store.digests() == {digest}
        assert await content(store, digest) == DATA


async def test_refuses_bytes_that_have_another_digest(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with store.stage() as stage:
            stage.path.write_bytes(DATA)
            with pytest.raises(ContentRejected, match=sha256(OTHER)) as caught:
                await store.commit(stage, sha256(OTHER))
        assert caught.value.reason == "DigestMismatch"
        assert not store.digests()
        assert list((tmp_path / "blobs").iterdir()) == []


async def test_commits_a_settled_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with store.stage() as stage:
            stage.path.write_bytes(DATA)
            settled = await store.settle(stage, sha256(DATA))
            await store.commit(stage, sha256(DATA), settled=settled)
        assert await content(store, sha256(DATA)) == DATA


async def test_settle_computes_the_digest_if_none_is_expected(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with store.stage() as stage:
            stage.path.write_bytes(DATA)
            settled = await store.settle(stage, None)
            assert settled.sha256 == sha256(DATA)
            await store.commit(stage, settled.sha256, settled=settled)
        assert await content(store, sha256(DATA)) == DATA


async def test_does_not_hash_a_file_again_that_was_hashed_while_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, store.stage() as stage:
        stage.path.write_bytes(DATA)
        told = HashedFile(
            sha256(OTHER), signature(stage.path)
        )  # a digest that reading would refute
        settled = await store.settle(stage, None, hashed=told)
        assert settled.sha256 == sha256(OTHER)
        with pytest.raises(ContentRejected, match=sha256(OTHER)):
            await store.settle(stage, sha256(DATA), hashed=told)


async def test_hashes_a_file_again_that_changed_since_it_was_hashed(tmp_path: Path) -> None:
    changed = DATA + b"x"  # of another size: within one clock tick the times are equal
    async with opened(tmp_path) as store, store.stage() as stage:
        stage.path.write_bytes(DATA)
        told = HashedFile(sha256(DATA), signature(stage.path))
        stage.path.write_bytes(changed)
        settled = await store.settle(stage, None, hashed=told)
        assert settled.sha256 == sha256(changed)
        with pytest.raises(ContentRejected, match=sha256(changed)):
            await store.settle(stage, sha256(DATA), hashed=told)


async def test_a_blob_may_be_collected_while_a_job_is_handed_to_a_pool(tmp_path: Path) -> None:
    """The collector runs in the middle of any code, also where concurrent.futures holds its lock."""
    with Pools() as pools:
        store = BlobStore(tmp_path, pools=pools, metrics=Metrics())
        async with store:
            digest = await put(store, DATA)
            blob = await store.open(digest)
            assert blob is not None
            fd = blob.fd
            await store.discard(digest)

        def collect() -> None:
            nonlocal blob
            with pools.disk.executor._shutdown_lock:
                blob = None

        collecting = threading.Thread(target=collect, daemon=True)
        collecting.start()
        await asyncio.to_thread(collecting.join, 30)
        assert not collecting.is_alive()
        while Path(f"/proc/self/fd/{fd}").exists():
            await asyncio.sleep(0.01)


async def test_refuses_to_commit_a_file_under_another_digest(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with store.stage() as stage:
            stage.path.write_bytes(DATA)
            settled = await store.settle(stage, None)
            with pytest.raises(ContentRejected, match=sha256(OTHER)) as caught:
                await store.commit(stage, sha256(OTHER), settled=settled)
        assert caught.value.reason == "DigestMismatch"
        assert not store.digests()


async def test_refuses_to_settle_bytes_that_have_another_digest(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, store.stage() as stage:
        stage.path.write_bytes(DATA)
        with pytest.raises(ContentRejected, match=sha256(OTHER)):
            await store.settle(stage, sha256(OTHER))


@pytest.mark.parametrize("how", ["written to", "replaced"])
async def test_refuses_a_file_that_changed_since_it_was_settled(tmp_path: Path, how: str) -> None:
    changed = DATA + b"x"  # of another size: within one clock tick the times are equal
    async with opened(tmp_path) as store:
        async with store.stage() as stage:
            stage.path.write_bytes(DATA)
            settled = await store.settle(stage, sha256(DATA))
            if how == "replaced":
                stage.path.unlink()
            stage.path.write_bytes(changed)
            with pytest.raises(ContentRejected, match=sha256(changed)):
                await store.commit(stage, sha256(DATA), settled=settled)
        assert not store.digests()


async def test_empties_staging_at_start_and_leaves_foreign_files_alone(tmp_path: Path) -> None:
    for folder in ("blobs", "staging/abandoned"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "staging/abandoned/module").write_bytes(b"half")
    (tmp_path / "staging/loose").write_bytes(b"half")
    (tmp_path / "blobs/README").write_bytes(b"a person's note")
    (tmp_path / "blobs" / ("A" * 64)).write_bytes(b"upper case")
    (tmp_path / "blobs" / ("b" * 64)).symlink_to("/etc/hostname")
    async with opened(tmp_path) as store:
        assert not store.digests()
    assert list((tmp_path / "staging").iterdir()) == []
    assert (tmp_path / "blobs/README").exists()


def _hold(directory: str, ready: "multiprocessing.synchronize.Event") -> None:
    async def hold() -> None:
        async with opened(Path(directory)):
            ready.set()
            await asyncio.sleep(60)

    asyncio.run(hold())


async def test_a_second_process_is_refused_with_the_name_of_the_holder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), ready), daemon=True)
    holder.start()
    try:
        while not ready.is_set():
            assert holder.is_alive()
            await asyncio.sleep(0.02)
        with pytest.raises(StorageError, match=str(holder.pid)) as caught:
            async with opened(tmp_path):
                pass
        assert caught.value.reason == "CacheDirectoryInUse"
        assert str(tmp_path) in str(caught.value)
    finally:
        holder.kill()
        holder.join()
    async with opened(tmp_path):  # the lock died with its holder
        pass


@pytest.mark.parametrize("when", ["before the first serve", "while it is open"])
async def test_damaged_bytes_are_never_handed_out(tmp_path: Path, when: str) -> None:
    metrics = Metrics()
    async with opened(tmp_path) as store:
        digest = await put(store, DATA)
    if when == "before the first serve":
        (tmp_path / "blobs" / digest).write_bytes(OTHER)
    async with opened(tmp_path, metrics=metrics) as store:
        if when == "while it is open":
            assert await content(store, digest) == DATA
            with (tmp_path / "blobs" / digest).open("r+b") as file:
                file.write(b"!")
        assert await store.open(digest) is None
        assert digest not in store
        assert (tmp_path / "damaged" / digest).exists()
        assert metrics.registry.get_sample_value("autowasm_blobs_damaged_total") == 1
        assert metrics.registry.get_sample_value("autowasm_blobs") == 0
        await put(store, DATA)
        assert await content(store, digest) == DATA


async def test_a_touched_file_is_checked_again_and_served(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, DATA)
        first = await store.open(digest)
        assert first is await store.open(digest)
        os.utime(tmp_path / "blobs" / digest)
        again = await store.open(digest)
        assert again is not None
        assert again is not first
        assert await content(store, digest) == DATA


async def test_a_removed_file_is_forgotten_and_a_replaced_one_reopened(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, DATA)
        held = await store.open(digest)
        assert held is not None
        copy = tmp_path / "copy"
        copy.write_bytes(DATA)
        copy.rename(tmp_path / "blobs" / digest)
        assert await content(store, digest) == DATA
        (tmp_path / "blobs" / digest).unlink()
        assert await store.open(digest) is None
        assert digest not in store
        assert os.pread(held.fd, len(DATA), 0) == DATA  # a send in flight continues


async def test_blob_replaced_by_a_non_file_is_set_aside(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for make in (
            lambda path: path.mkdir(),
            lambda path: path.symlink_to("/etc/hostname"),
            os.mkfifo,
        ):
            digest = await put(store, DATA)
            (tmp_path / "blobs" / digest).unlink()
            make(tmp_path / "blobs" / digest)
            assert await store.open(digest) is None
            aside = tmp_path / "damaged" / digest
            assert os.path.lexists(aside)
            aside.rmdir() if aside.is_dir() else aside.unlink()


async def test_keeps_a_bounded_number_of_damaged_files(tmp_path: Path) -> None:
    async with opened(tmp_path, limits=StoreLimits(damaged_kept=2)) as store:
        for number in range(5):
            digest = await put(store, b"%d" % number)
            (tmp_path / "blobs" / digest).write_bytes(b"?")
            assert await store.open(digest) is None
    assert len(list((tmp_path / "damaged").iterdir())) == 2


async def test_verify_all_finds_damage_without_a_request(tmp_path: Path) -> None:
    metrics = Metrics()
    async with opened(tmp_path) as store:
        good, bad, gone = [await put(store, text) for text in (b"good", b"bad", b"gone")]
    (tmp_path / "blobs" / bad).write_bytes(b"worse")
    async with opened(tmp_path, metrics=metrics, limits=StoreLimits(verify_pause=0)) as store:
        (tmp_path / "blobs" / gone).unlink()
        await store.verify_all()
        assert store.digests() == {good}
        assert metrics.registry.get_sample_value("autowasm_blobs_damaged_total") == 1


async def test_commit_wakes_waiters_for_a_blob(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, asyncio.timeout(30):
        async with asyncio.TaskGroup() as tasks:
            waiters = [tasks.create_task(store.wait_for(sha256(DATA))) for _ in range(3)]
            impatient = tasks.create_task(store.wait_for(sha256(OTHER)))
            await asyncio.sleep(0)
            await put(store, DATA)
            await asyncio.wait(waiters)
            impatient.cancel()
        await store.wait_for(sha256(DATA))
        assert not store._index._waiters


async def test_discard_removes_the_blob_and_keeps_open_descriptors_readable(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, DATA)
        held = await store.open(digest)
        assert held is not None
        await store.discard(digest)
        await store.discard(digest)
        assert not (tmp_path / "blobs" / digest).exists()
        assert await store.open(digest) is None
        assert os.pread(held.fd, len(DATA), 0) == DATA


async def test_many_at_once_share_one_descriptor(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, b"z" * MIB)
        blobs = await asyncio.gather(*(store.open(digest) for _ in range(50)))
        assert len({id(blob) for blob in blobs}) == 1


def _descriptors(path: Path) -> int:
    """How many descriptors of ours are open below `path`."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(path) in str(link.readlink())
    return count


async def test_closes_the_longest_unused_descriptor_and_leaks_none(tmp_path: Path) -> None:
    async with opened(tmp_path, limits=StoreLimits(open_files=3, cold_after=0)) as store:
        digests = [await put(store, b"%d" % number) for number in range(6)]
        for digest in digests * 3:  # cold each time: read ahead and opened afresh
            assert await store.open(digest) is not None
        async with asyncio.timeout(30):
            while _descriptors(tmp_path / "blobs") != 3:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(30):
        while _descriptors(tmp_path):
            await asyncio.sleep(0.01)


async def test_a_cancelled_open_or_commit_leaks_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, b"c" * 4 * MIB)
        for _ in range(20):
            os.utime(tmp_path / "blobs" / digest)
            task = asyncio.create_task(store.open(digest))
            await asyncio.sleep(0.001)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        async with store.stage() as stage:
            stage.path.write_bytes(DATA)
            commit = asyncio.create_task(store.commit(stage, sha256(DATA)))
            await asyncio.sleep(0)
            commit.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await commit
        async with asyncio.timeout(30):
            while (sha256(DATA) in store) != (tmp_path / "blobs" / sha256(DATA)).exists():
                await asyncio.sleep(0.01)
        del task
        assert await content(store, digest) == b"c" * 4 * MIB
        async with asyncio.timeout(30):
            while _descriptors(tmp_path / "blobs") > 2:
                await asyncio.sleep(0.01)


async def test_a_full_disk_is_distinguished_from_a_broken_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number, reason in (
            (errno.ENOSPC, "StorageFull"),
            (errno.EDQUOT, "StorageFull"),
            (errno.EIO, "StorageUnavailable"),
        ):
            with pytest.raises(StorageError) as caught:
                async with store.stage():
                    raise OSError(number, os.strerror(number))
            assert caught.value.reason == reason
            assert str(tmp_path) in str(caught.value)
        with pytest.raises(ConnectionResetError):  # not the disk's fault
            async with store.stage():
                raise ConnectionResetError
        assert list((tmp_path / "staging").iterdir()) == []


async def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        async with opened(tmp_path / "file"):
            pass


async def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "staging").write_bytes(b"")
    with pytest.raises(StorageError, match=f"opening it: {tmp_path}/staging: File exists;"):
        async with opened(tmp_path):
            pass


async def test_survives_a_directory_cleaned_up_under_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await put(store, DATA)
        for folder in ("blobs", "staging"):
            for path in (tmp_path / folder).iterdir():
                path.unlink()
            (tmp_path / folder).rmdir()
        assert await store.open(sha256(DATA)) is None
        await put(store, DATA)
        assert await content(store, sha256(DATA)) == DATA


async def test_directory_that_could_not_be_prepared_is_not_kept_locked(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_bytes(b"")
    with Pools() as pools:
        with pytest.raises(StorageError, match="File exists"):
            async with BlobStore(tmp_path, pools=pools, metrics=Metrics()):
                pass
        (tmp_path / "blobs").unlink()
        async with BlobStore(tmp_path, pools=pools, metrics=Metrics()) as store:
            assert await content(store, await put(store, DATA)) == DATA


async def test_lock_that_cannot_be_had_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system without locks."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(StorageError, match="No locks available"):
        async with opened(tmp_path):
            pass
    assert _descriptors(tmp_path) == 0


async def test_blob_that_cannot_be_removed_is_still_there(tmp_path: Path) -> None:
    metrics = Metrics()
    async with opened(tmp_path, metrics=metrics) as store:
        digest = await put(store, DATA)
        (tmp_path / "blobs" / digest).unlink()
        (tmp_path / "blobs" / digest).mkdir()
        with pytest.raises(StorageError):
            await store.discard(digest)
        assert digest in store
        assert metrics.registry.get_sample_value("autowasm_blobs") == 1


async def test_open_that_waits_while_its_blob_is_discarded_finds_none(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        digest = await put(store, DATA)
        first, removed, second = await asyncio.gather(
            store.open(digest), store.discard(digest), store.open(digest)
        )
        assert first is not None
        assert os.pread(first.fd, len(DATA), 0) == DATA
        assert removed == len(DATA)
        assert second is None


async def test_verify_all_continues_after_a_blob_with_a_read_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:
        digests = sorted([await put(store, text) for text in (b"one", b"two", b"three")])
    real = files.open_verified

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == digests[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *arguments, **options)

    monkeypatch.setattr(files, "open_verified", failing)
    (tmp_path / "blobs" / digests[1]).write_bytes(b"worse")
    with structlog.testing.capture_logs() as events:
        async with opened(tmp_path, limits=StoreLimits(verify_pause=0)) as store:
            await store.verify_all()
            assert store.digests() == {digests[0], digests[2]}
    (failed,) = (event for event in events if event["event"] == "blob not verified")
    assert failed["digest"] == digests[0]
    assert "Input/output error" in failed["error"]


@contextlib.contextmanager
def busy(pool: Pool) -> Iterator[None]:
    """All threads of the pool are occupied during the block."""
    release = threading.Event()
    held = [pool.submit(release.wait) for _ in range(pool.threads)]
    try:
        yield
    finally:
        release.set()
        concurrent.futures.wait(held)


async def no_folder_in(staging: Path) -> None:
    async with asyncio.timeout(60):
        while await asyncio.to_thread(os.listdir, staging):
            await asyncio.sleep(0.01)


async def test_stage_cancelled_while_its_folder_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, release, made = threading.Event(), threading.Event(), threading.Event()
    real = files.make_workspace

    def slow(staging: Path) -> Path:
        began.set()
        release.wait()
        folder = real(staging)
        made.set()
        return folder

    monkeypatch.setattr(files, "make_workspace", slow)
    async with opened(tmp_path) as store:
        staging = asyncio.create_task(store.stage().__aenter__())
        await asyncio.to_thread(began.wait)
        staging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await staging
        release.set()
        await asyncio.to_thread(made.wait)
        await no_folder_in(tmp_path / "staging")


async def test_stage_cancelled_while_its_folder_is_removed_leaves_none(tmp_path: Path) -> None:
    with Pools() as pools:
        store = BlobStore(tmp_path, pools=pools, metrics=Metrics())
        async with store:
            stage = store.stage()
            await stage.__aenter__()
            with busy(pools.disk):
                ending = asyncio.create_task(stage.__aexit__(None, None, None))
                await asyncio.sleep(0)
                ending.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await ending
            await no_folder_in(tmp_path / "staging")
