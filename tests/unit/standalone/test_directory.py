"""ConfigDirectory on a real directory, followed by the real inotify."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.typing import EventDict

from autowasm.errors import UsageError
from autowasm.kube.resources import ObjectKey
from autowasm.limits import Limits
from autowasm.net.pools import Pool, Pools
from autowasm.standalone import directory as scan
from autowasm.standalone.directory import ConfigDirectory, Defined, DuplicateObject

ONE, TWO = ObjectKey("default", "one"), ObjectKey("default", "two")
PULL = ObjectKey("default", "pull")


def autowasm(name: str, *, value: str = "a") -> str:
    return (
        "apiVersion: wasm.tcm.io/v1alpha1\nkind: AutoWasm\n"
        f"metadata: {{name: {name}}}\nspec: {{value: {value}}}\n"
    )


def secret(value: str) -> str:
    return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: pull}}\nstringData: {{p: {value}}}\n"


class Handler:
    """A ChangeHandler that records changes."""

    def __init__(self) -> None:
        self.keys: list[ObjectKey] = []
        self.secrets: list[ObjectKey] = []
        self.rereads = 0

    def changed(self, key: ObjectKey) -> None:
        self.keys.append(key)

    def secret_changed(self, key: ObjectKey) -> None:
        self.secrets.append(key)

    def reread(self) -> None:
        self.rereads += 1


async def until(condition: Callable[[], bool], *, timeout: float = 20) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.mkdir()
    return path


@pytest.fixture
def directory(config: Path, pools: Pools) -> ConfigDirectory:
    return ConfigDirectory(config, limits=Limits(), pools=pools)


@asynccontextmanager
async def followed(directory: ConfigDirectory) -> AsyncIterator[Handler]:
    handler = Handler()
    task = asyncio.create_task(directory.run(handler))
    try:
        yield handler
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def value(directory: ConfigDirectory, key: ObjectKey) -> str | None:
    found = directory.get(key)
    return found.object["spec"]["value"] if isinstance(found, Defined) else None


def problem_of(directory: ConfigDirectory, key: ObjectKey) -> str | None:
    found = directory.get(key)
    return found.problem if isinstance(found, Defined) else None


async def test_loads_config_files_of_the_directory_only(
    config: Path, directory: ConfigDirectory
) -> None:
    (config / "b.yaml").write_text(autowasm("one"))
    (config / "a.yml").write_text(autowasm("two") + "---\n" + secret("x"))
    (config / "c.json").write_text(
        '{"apiVersion": "wasm.tcm.io/v1alpha1", "kind": "AutoWasm",\n\t"metadata": {"name": "three"}}'
    )
    for name in (".hidden.yaml", "..data.yaml", "d.txt", "e.yaml~", "f.yaml.swp"):
        (config / name).write_text(autowasm("ignored"))
    (config / "folder.yaml").mkdir()
    (config / "folder.yaml" / "g.yaml").write_text(autowasm("ignored"))
    (config / "dangling.yaml").symlink_to("nowhere")

    await directory.load()

    assert set(directory.keys()) == {ONE, TWO, ObjectKey("default", "three")}
    assert directory.get(ONE) == Defined(
        {
            "apiVersion": "wasm.tcm.io/v1alpha1",
            "kind": "AutoWasm",
            "metadata": {"name": "one"},
            "spec": {"value": "a"},
        },
        config / "b.yaml",
    )
    found = directory.secret(PULL)
    assert found is not None
    assert found.data == {"p": b"x"}
    assert directory.get(ObjectKey("default", "ignored")) is None
    assert directory.never_read() == {}


@pytest.mark.parametrize("wrong", ["missing", "a file"])
async def test_directory_that_cannot_be_read_at_the_start_is_a_usage_error(
    config: Path, directory: ConfigDirectory, wrong: str
) -> None:
    config.rmdir()
    if wrong == "a file":
        config.write_text(autowasm("one"))
    with pytest.raises(UsageError, match=f"--config {config}: cannot be read"):
        await directory.load()


async def test_more_files_than_are_read_is_an_error_and_not_a_shorter_list(
    config: Path, directory: ConfigDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "MAX_FILES", 100)
    for number in range(scan.MAX_FILES + 1):
        (config / f"{number}.yaml").touch()
    with pytest.raises(UsageError, match=f"more than {scan.MAX_FILES} config files"):
        await directory.load()


async def test_tells_of_files_that_come_change_and_go(
    config: Path, directory: ConfigDirectory
) -> None:
    await directory.load()
    async with followed(directory) as handler:
        file = config / "a.yaml"
        file.write_text(autowasm("one") + "---\n" + secret("x"))
        await until(lambda: handler.keys == [ONE] and handler.secrets == [PULL])
        file.write_text(autowasm("one", value="b") + "---\n" + secret("x"))
        await until(lambda: value(directory, ONE) == "b")
        file.write_text(autowasm("one", value="b") + "---\n" + secret("z"))
        await until(lambda: len(handler.secrets) == 2)
        assert handler.keys == [ONE] * 2
        file.unlink()
        await until(lambda: directory.get(ONE) is None)
        assert directory.secret(PULL) is None
        assert handler.keys == [ONE] * 3
        assert handler.secrets == [PULL] * 3
        assert handler.rereads == 0


async def test_changes_between_load_and_run_are_not_missed(
    config: Path, directory: ConfigDirectory
) -> None:
    await directory.load()
    (config / "a.yaml").write_text(autowasm("one"))
    async with followed(directory) as handler:
        await until(lambda: handler.keys == [ONE], timeout=3)  # before the first rescan


async def test_files_with_unchanged_content_cause_no_event(
    config: Path, directory: ConfigDirectory
) -> None:
    (config / "a.yaml").write_text(autowasm("one"))
    await directory.load()
    async with followed(directory) as handler:
        (config / "b.yaml").write_text(autowasm("two"))
        (config / "a.yaml").touch()
        await until(lambda: TWO in handler.keys)
        assert handler.keys == [TWO]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("apiVersion: wasm.tcm.io/v1alpha1\nkind: Aut", "(line 1): this version supports AutoWasm"),
        (autowasm("one") + "---\nmetadata: {na", "line"),
        ("", "the file is empty"),
        ("# later\n", "the file is empty"),
        ("\xff", "byte 0 is not UTF-8"),
        ("a: 1\n" * 2_000_000, "larger than"),
    ],
    ids=["half", "half second", "empty", "comment", "bytes", "huge"],
)
async def test_invalid_file_keeps_its_previous_objects(
    config: Path, directory: ConfigDirectory, logs: list[EventDict], content: str, problem: str
) -> None:
    file = config / "a.yaml"
    file.write_text(autowasm("one") + "---\n" + secret("x"))
    await directory.load()
    async with followed(directory) as handler:
        file.write_text(content, encoding="latin-1")
        await until(lambda: problem_of(directory, ONE) is not None)
        (config / "b.yaml").write_text(autowasm("two"))  # causes another scan of the broken one
        await until(lambda: TWO in handler.keys)

        assert value(directory, ONE) == "a"
        assert directory.secret(PULL) is not None
        assert handler.keys == [ONE, TWO]  # the first has a problem now
        assert problem in (problem_of(directory, ONE) or "")
        assert directory.never_read() == {}
        assert [each["file"] for each in logs if each["event"] == "problem in config file"] == [
            "a.yaml"
        ]

        file.write_text(autowasm("one", value="b"))
        await until(lambda: value(directory, ONE) == "b")
        assert problem_of(directory, ONE) is None
        assert directory.secret(PULL) is None


async def test_file_that_was_never_read_is_named_until_it_is(
    config: Path, directory: ConfigDirectory
) -> None:
    file = config / "a.yaml"
    file.write_text("half: [")
    await directory.load()
    assert set(directory.never_read()) == {file}
    async with followed(directory) as handler:
        file.write_text(autowasm("one"))
        await until(lambda: handler.rereads == 1)
        assert handler.keys == [ONE]
        assert directory.never_read() == {}


async def test_file_that_was_never_read_and_is_removed_is_reported(
    config: Path, directory: ConfigDirectory
) -> None:
    (config / "a.yaml").write_text("half: [")
    await directory.load()
    async with followed(directory) as handler:
        (config / "a.yaml").unlink()
        await until(lambda: handler.rereads == 1)


async def test_object_defined_twice_is_ambiguous_until_it_is_not(
    config: Path, directory: ConfigDirectory
) -> None:
    first, second = config / "a.yaml", config / "b.yaml"
    first.write_text(autowasm("one") + "---\n" + autowasm("two") + "---\n" + autowasm("two"))
    second.write_text(autowasm("one", value="b"))
    await directory.load()
    assert directory.get(ONE) == DuplicateObject((first, second))
    assert directory.get(TWO) == DuplicateObject((first, first))
    assert set(directory.keys()) == {ONE, TWO}
    async with followed(directory) as handler:
        first.unlink()
        await until(lambda: set(handler.keys) == {ONE, TWO})
        assert value(directory, ONE) == "b"
        assert directory.get(TWO) is None


async def test_secret_defined_twice_is_the_last_and_is_reported(
    config: Path, directory: ConfigDirectory, logs: list[EventDict]
) -> None:
    (config / "a.yaml").write_text(secret("first"))
    (config / "b.yaml").write_text(secret("last"))
    await directory.load()
    found = directory.secret(PULL)
    assert found is not None
    assert found.data == {"p": b"last"}
    assert [each["counts"] for each in logs if "secret" in each["event"]] == ["b.yaml"]


class DiskThatSeesNothing(Pool):
    """After the first scan without the file, `then` is written, as by an editor between two scans."""

    def __init__(self, file: Path, then: str) -> None:
        super().__init__("disk", threads=1)
        self.scans: list[int] = []
        self._file = file
        self._then = then

    async def run(self, function, *args, **kwargs):  # type: ignore[no-untyped-def]
        result = await super().run(function, *args, **kwargs)
        if function is scan.scan:
            self.scans.append(len(result))
            if not result:
                await super().run(self._file.write_text, self._then)
        return result


@pytest.mark.parametrize(
    ("then", "told_of", "expected"),
    [(autowasm("one", value="b"), [ONE], "b"), ("apiVersion: wasm", [ONE], "a")],
    ids=["whole", "half-written"],
)
async def test_file_that_is_away_for_a_moment_takes_nothing_along(
    config: Path, pools: Pools, then: str, told_of: list[ObjectKey], expected: str
) -> None:
    """As editors write: the old file moved away, a new one of its name made later."""
    file = config / "a.yaml"
    file.write_text(autowasm("one"))
    os.utime(file, (1, 1))  # long ago: one scan is enough at the start
    pools.disk.close()
    disk = pools.disk = DiskThatSeesNothing(file, then)
    directory = ConfigDirectory(config, limits=Limits(), pools=pools)
    await directory.load()
    file.unlink()
    async with followed(directory) as handler:
        await until(lambda: value(directory, ONE) == "b" or bool(problem_of(directory, ONE)))
        assert disk.scans[:3] == [1, 0, 1]
        assert handler.keys == told_of
        assert value(directory, ONE) == expected
        assert directory.never_read() == {}


async def test_change_that_shows_in_neither_size_nor_time_is_seen(
    config: Path, directory: ConfigDirectory
) -> None:
    """Two writes in one step of the file system's clock, the second after our scan."""
    file = config / "a.yaml"
    file.write_text(autowasm("one", value="a"))
    await directory.load()
    times = file.stat()
    file.write_text(autowasm("one", value="b"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    async with followed(directory):
        await until(lambda: value(directory, ONE) == "b", timeout=3)


def test_settled_files_are_not_read_again(config: Path) -> None:
    file = config / "a.yaml"
    file.write_text(autowasm("one"))
    os.utime(file, (1, 1))
    first = scan.scan(config, {}, limits=Limits())
    assert scan.scan(config, first, limits=Limits())[file] is first[file]
    file.write_text(autowasm("one", value="b"))
    assert scan.scan(config, first, limits=Limits())[file] is not first[file]


async def test_configmap_mount_is_followed_through_its_symbolic_links(
    config: Path, directory: ConfigDirectory
) -> None:
    def publish(version: str) -> None:
        data = config / f"..{version}"
        data.mkdir()
        (data / "a.yaml").write_text(autowasm("one", value=version))
        (config / "..data_tmp").symlink_to(data.name)
        (config / "..data_tmp").rename(config / "..data")

    publish("v1")
    (config / "a.yaml").symlink_to("..data/a.yaml")
    await directory.load()
    assert value(directory, ONE) == "v1"
    async with followed(directory) as handler:
        publish("v2")
        await until(lambda: value(directory, ONE) == "v2")
        assert handler.keys == [ONE]


async def test_directory_that_vanishes_keeps_everything_and_is_followed_when_it_is_back(
    config: Path, directory: ConfigDirectory, logs: list[EventDict]
) -> None:
    (config / "a.yaml").write_text(autowasm("one"))
    await directory.load()
    async with followed(directory) as handler:
        shutil.rmtree(config)
        await until(
            lambda: any(each["event"] == "config directory cannot be watched" for each in logs)
        )
        await asyncio.sleep(0.5)  # more tries: none logs it again or drops an object
        assert value(directory, ONE) == "a"
        assert handler.keys == []
        assert sum(each["event"] == "config directory cannot be watched" for each in logs) == 1

        config.mkdir()
        (config / "a.yaml").write_text(autowasm("one", value="b"))
        await until(lambda: value(directory, ONE) == "b")
        (config / "a.yaml").write_text(autowasm("one", value="c"))
        await until(lambda: value(directory, ONE) == "c")


async def test_directory_that_is_replaced_is_followed_at_once(
    config: Path, directory: ConfigDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_RESCAN_MS", 600_000)  # only inotify reports changes in time
    (config / "a.yaml").write_text(autowasm("one"))
    await directory.load()
    async with followed(directory):
        for step in ("x", "z"):  # the second is seen by inotify only: this directory is followed
            (config / "a.yaml").write_text(autowasm("one", value=step))
            await until(lambda step=step: value(directory, ONE) == step)  # type: ignore[misc]
        other = config.with_name("other")
        other.mkdir()
        (other / "a.yaml").write_text(autowasm("one", value="b"))
        config.rename(config.with_name("old"))
        other.rename(config)
        await until(lambda: value(directory, ONE) == "b")
        (config / "a.yaml").write_text(autowasm("one", value="c"))
        await until(lambda: value(directory, ONE) == "c")


async def test_following_ends_when_it_is_cancelled(directory: ConfigDirectory) -> None:
    await directory.load()
    task = asyncio.create_task(directory.run(Handler()))
    await asyncio.sleep(0.2)
    task.cancel()
    async with asyncio.timeout(3):
        with pytest.raises(asyncio.CancelledError):
            await task
