"""Files that are scanned during a write."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from autowasm.kube.resources import ObjectKey
from autowasm.limits import Limits
from autowasm.net.pools import Pool, Pools
from autowasm.standalone import directory as scan
from autowasm.standalone.directory import ConfigDirectory, Defined

KEY = ObjectKey("default", "test-filter")
OLD = "apiVersion: wasm.tcm.io/v1alpha1\nkind: AutoWasm\nmetadata: {name: test-filter}\nspec: {}\n"
NEW = """\
apiVersion: wasm.tcm.io/v1alpha1
kind: AutoWasm
metadata:
  name: test-filter
spec:
  image: registry.example/team/filter:v1.2.3
---
apiVersion: wasm.tcm.io/v1alpha1
kind: AutoWasm
metadata:
  name: second
spec:
  image: b
"""


class Handler:
    """A ChangeHandler that records the definition at each change."""

    def __init__(self, directory: ConfigDirectory) -> None:
        self._directory = directory
        self.definitions: list[tuple[str, object]] = []

    def changed(self, key: ObjectKey) -> None:
        found = self._directory.get(key)
        spec = found.object.get("spec") if isinstance(found, Defined) else found
        self.definitions.append((key.name, spec))

    def secret_changed(self, key: ObjectKey) -> None:
        raise AssertionError(key)

    def reread(self) -> None:
        raise AssertionError


class DiskWithAWriter(Pool):
    """After each scan `write` continues, so no two scans are equal until it is done."""

    def __init__(self, write: Callable[[int], None]) -> None:
        super().__init__("disk", threads=1)
        self._write = write
        self.scans = 0

    async def run(self, function, *args, **kwargs):  # type: ignore[no-untyped-def]
        result = await super().run(function, *args, **kwargs)
        if function is scan.scan:
            await super().run(self._write, self.scans)
            self.scans += 1
        return result


def made(config: Path, pools: Pools, write: Callable[[int], None]) -> ConfigDirectory:
    pools.disk.close()
    pools.disk = DiskWithAWriter(write)
    return ConfigDirectory(config, limits=Limits(), pools=pools)


async def follow(directory: ConfigDirectory, done: Callable[[Handler], bool]) -> Handler:
    handler = Handler(directory)
    task = asyncio.create_task(directory.run(handler))
    try:
        async with asyncio.timeout(20):
            while not done(handler):
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return handler


def cuts(content: str, *after: str) -> list[str]:
    """`content` up to and with each of `after`, then all of it."""
    return [content[: content.index(each) + len(each)] for each in after] + [content]


async def test_prefixes_that_are_good_yaml_never_count(tmp_path: Path, pools: Pools) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(OLD)
    os.utime(file, (1, 1))
    parts = cuts(NEW, "  name: test", "team/filter", "filter:v1", "v1.2.3\n---\n", "name: sec")

    def write(scan_number: int) -> None:
        if scan_number < len(parts):  # the first scan is that of `load`
            file.write_text(parts[scan_number])

    directory = made(tmp_path, pools, write)
    await directory.load()
    handler = await follow(directory, lambda handler: len(handler.definitions) >= 2)

    assert handler.definitions == [
        ("second", {"image": "b"}),
        ("test-filter", {"image": "registry.example/team/filter:v1.2.3"}),
    ]


async def test_file_that_is_being_written_at_the_start_is_waited_for(
    tmp_path: Path, pools: Pools
) -> None:
    file = tmp_path / "a.yaml"
    parts = cuts(NEW, "  name: test", "filter:v1")
    file.write_text(parts[0])

    def write(scan_number: int) -> None:
        if scan_number + 1 < len(parts):
            file.write_text(parts[scan_number + 1])

    directory = made(tmp_path, pools, write)
    await directory.load()

    assert set(directory.keys()) == {KEY, ObjectKey("default", "second")}
    found = directory.get(KEY)
    assert isinstance(found, Defined)
    assert found.object["spec"] == {"image": "registry.example/team/filter:v1.2.3"}


async def test_file_that_never_rests_does_not_hold_up_the_others(
    tmp_path: Path, pools: Pools
) -> None:
    busy, other = tmp_path / "busy.yaml", tmp_path / "other.yaml"
    text = OLD.replace("test-filter", "busy")
    busy.write_text(text)
    os.utime(busy, (1, 1))

    def write(scan_number: int) -> None:
        busy.write_text(text.replace("spec: {}", f"spec: {{look: {scan_number}}}"))
        if scan_number == 1:
            other.write_text(OLD)

    directory = made(tmp_path, pools, write)
    await directory.load()
    await follow(directory, lambda _: directory.get(KEY) is not None)


async def test_file_that_cannot_be_looked_at_is_a_problem_and_not_a_missing_file(
    tmp_path: Path, pools: Pools
) -> None:
    loop, good = tmp_path / "a.yaml", tmp_path / "b.yaml"
    loop.symlink_to(loop)
    good.write_text(OLD)
    directory = ConfigDirectory(tmp_path, limits=Limits(), pools=pools)

    await directory.load()

    assert directory.keys() == [KEY]
    assert set(directory.never_read()) == {loop}
    assert "symbolic links" in directory.never_read()[loop][0]
