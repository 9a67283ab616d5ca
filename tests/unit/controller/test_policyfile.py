"""The policy file: read at the start, followed, never half."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import watchfiles
from structlog.typing import EventDict

from autowasm.controller.sourcepolicy import PolicyFile
from autowasm.errors import SpecError, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from tests.fakes.autowasms import autowasm

OPEN, CLOSED = b"namespaces: {'*': {}}", b"namespaces: {'*': {registries: []}}"


@asynccontextmanager
async def followed(path: Path, changes: list[None]) -> AsyncIterator[PolicyFile]:
    with Pools() as pools:
        policy = PolicyFile(path, limits=Limits(spec_bytes=1000), pools=pools)
        await policy.load()
        task = asyncio.create_task(policy.run(lambda: changes.append(None)), name="policy")
        await asyncio.sleep(0.1)
        try:
            yield policy
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.02)


def allows(policy: PolicyFile) -> bool:
    try:
        policy.check(autowasm())
    except SpecError:
        return False
    return True


async def test_without_a_file_everything_is_allowed() -> None:
    with Pools() as pools:
        policy = PolicyFile(None, limits=Limits(), pools=pools)
        await policy.load()
        await policy.run(lambda: None)
        assert allows(policy)
        assert policy.object_hosts("default") is None


@pytest.mark.parametrize("content", [None, b"", b"x" * 2000])
async def test_a_start_without_a_good_file_is_refused(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "policy.yaml"
    if content is not None:
        path.write_bytes(content)
    with Pools() as pools:
        policy = PolicyFile(path, limits=Limits(spec_bytes=1000), pools=pools)
        with pytest.raises(UsageError, match="--policy-file"):
            await policy.load()


async def test_a_change_is_taken_and_a_bad_one_is_not(tmp_path: Path) -> None:
    path, changes = tmp_path / "policy.yaml", list[None]()
    path.write_bytes(OPEN)
    async with followed(path, changes) as policy:
        assert allows(policy)
        path.write_bytes(CLOSED)
        await until(lambda: changes)
        assert not allows(policy)

        path.write_bytes(b"namespaces: {")
        await asyncio.sleep(0.7)
        assert not allows(policy)
        path.unlink()
        await asyncio.sleep(0.5)
        assert not allows(policy)
        assert len(changes) == 1

        path.write_bytes(OPEN)
        await until(lambda: len(changes) == 2)
        assert allows(policy)


async def test_a_config_map_that_is_swapped_is_followed(tmp_path: Path) -> None:
    """As kubelet does it: policy.yaml ▶ ..data/policy.yaml, ..data ▶ ..2026_1."""
    for name, content in (("..1", OPEN), ("..2", CLOSED)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.yaml").write_bytes(content)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "policy.yaml").symlink_to("..data/policy.yaml")
    changes = list[None]()
    async with followed(tmp_path / "policy.yaml", changes) as policy:
        assert allows(policy)
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        await until(lambda: changes)
        assert not allows(policy)


async def test_policy_holds_while_its_directory_cannot_be_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: list[EventDict]
) -> None:
    """As when the machine has no inotify instances left."""
    real, failures = watchfiles.awatch, [OSError(24, "Too many open files")] * 2

    def awatch(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(watchfiles, "awatch", awatch)
    path, changes = tmp_path / "policy.yaml", list[None]()
    path.write_bytes(OPEN)
    async with followed(path, changes) as policy:
        await until(lambda: not failures)
        assert allows(policy)
        errors = [event for event in logs if event["event"].startswith("policy file rejected")]
        assert len(errors) == 1, "the same error is logged once"
        assert "Too many open files" in errors[0]["error"]
        path.write_bytes(CLOSED)
        await until(lambda: changes)
        assert not allows(policy)
