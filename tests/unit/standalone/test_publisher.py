"""The content of --envoy-dir, over restarts and failures."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.typing import EventDict

from autowasm.errors import StorageError, UsageError
from autowasm.kube.resources import ObjectKey
from autowasm.net.pools import Pools
from autowasm.standalone.publisher import StandalonePublisher
from tests.fakes import autowasms
from tests.unit.standalone.lds import envoyfilter, listener, names

KEY = ObjectKey("default", "test")
STATUS = {"phase": "Synced", "at": "2021-10-27T10:00:36Z"}


class Place:
    """An --envoy-dir with its template."""

    def __init__(self, root: Path, pools: Pools) -> None:
        self.envoy = root / "envoy"
        self.template = root / "template.yaml"
        self.template.write_text(yaml.safe_dump({"resources": [listener(9080)]}, sort_keys=False))
        self._pools = pools

    async def open(self) -> StandalonePublisher:
        publisher = StandalonePublisher(self.envoy, template=self.template, pools=self._pools)
        await publisher.check()
        await publisher.load()
        return publisher

    def filters(self) -> list[str]:
        """Names in the listener file."""
        document = yaml.safe_load((self.envoy / "lds.yaml").read_text())
        return names(document["resources"][0]["filter_chains"][0])

    def files(self) -> dict[str, tuple[int, int, int]]:
        """Inode and times of every file."""
        return {
            str(path.relative_to(self.envoy)): (
                path.stat().st_ino,
                path.stat().st_mtime_ns,
                path.stat().st_ctime_ns,
            )
            for path in sorted(self.envoy.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def place(tmp_path: Path, pools: Pools) -> Place:
    return Place(tmp_path, pools)


async def fill(place: Place, *keys: ObjectKey) -> StandalonePublisher:
    publisher = await place.open()
    for key in keys:
        document = autowasms.document(name=key.name, namespace=key.namespace)
        await publisher.publish(key, document, envoyfilter(key.name, namespace=key.namespace))
        await publisher.write_status(key, document, STATUS)
    return publisher


async def test_listener_file_is_there_before_the_first_object(place: Place) -> None:
    publisher = await place.open()
    assert place.filters() == ["router"]
    assert publisher.published_keys() == frozenset()
    assert publisher.published(KEY) is None
    assert publisher.status(KEY) is None


async def test_publishes_the_filter_and_the_listener_file(place: Place) -> None:
    publisher = await place.open()
    wanted = envoyfilter("test", 9080)

    assert await publisher.publish(KEY, autowasms.document(), wanted)

    file = place.envoy / "envoyfilters" / "default.test.yaml"
    assert yaml.safe_load(file.read_text()) == wanted == publisher.published(KEY)
    assert place.filters() == ["default/test", "router"]
    assert publisher.published_keys() == {KEY}


async def test_unchanged_publish_and_status_write_nothing(place: Place) -> None:
    publisher = await fill(place, KEY)
    before = place.files()

    assert not await publisher.publish(KEY, autowasms.document(), envoyfilter())
    assert not await publisher.write_status(KEY, autowasms.document(), STATUS)

    assert place.files() == before


async def test_restart_without_a_change_touches_no_file(place: Place) -> None:
    await fill(place, KEY, ObjectKey("other", "a.b"))
    before = place.files()
    assert len(before) == 5

    publisher = await place.open()

    assert publisher.published_keys() == {KEY, ObjectKey("other", "a.b")}
    assert publisher.published(KEY) == envoyfilter()
    assert (publisher.status(KEY) or {})["status"] == STATUS  # timestamps are text still
    assert not await publisher.publish(KEY, autowasms.document(), envoyfilter())
    assert not await publisher.write_status(KEY, autowasms.document(), STATUS)
    assert place.files() == before


async def test_files_of_an_earlier_version_are_read_as_it_meant_them(place: Place) -> None:
    """PyYAML's own dumper left texts such as `y` without quotes: nothing is published again for them."""
    wanted = envoyfilter()
    wanted["spec"]["configPatches"][0]["patch"]["value"]["env"] = {"DEBUG": "y", "rate": "1e3"}
    await fill(place, KEY)
    old = yaml.safe_dump(wanted, sort_keys=False)
    assert "DEBUG: y\n" in old
    (place.envoy / "envoyfilters" / "default.test.yaml").write_text(old)

    publisher = await place.open()

    assert publisher.published(KEY) == wanted
    assert not await publisher.publish(KEY, {}, wanted)
    assert 'DEBUG: "y"\n' in (place.envoy / "lds.yaml").read_text()


async def test_status_file_is_the_whole_object(place: Place) -> None:
    publisher = await place.open()
    document = autowasms.document()

    assert await publisher.write_status(KEY, document, {"phase": "Pending"})
    assert await publisher.write_status(KEY, document, STATUS)

    file = place.envoy / "status" / "default.test.yaml"
    assert yaml.safe_load(file.read_text()) == {**document, "status": STATUS}
    assert publisher.status(KEY) == {**document, "status": STATUS}
    assert publisher.published_keys() == {KEY}


async def test_retract_takes_both_files_and_the_filter(place: Place) -> None:
    other = ObjectKey("default", "other")
    publisher = await fill(place, KEY, other)

    await publisher.retract(KEY)
    await publisher.retract(ObjectKey("default", "never-there"))

    assert place.filters() == ["default/other", "router"]
    assert publisher.published_keys() == {other}
    assert sorted(place.files()) == [
        "envoyfilters/default.other.yaml",
        "lds.yaml",
        "status/default.other.yaml",
    ]


async def test_namespace_ends_at_the_first_dot(place: Place) -> None:
    keys = {ObjectKey("a", "b.c"), ObjectKey("a", "b"), ObjectKey("b", "c")}
    await fill(place, *keys)
    assert (await place.open()).published_keys() == keys


async def test_changes_that_come_together_are_all_in_the_listener_file(place: Place) -> None:
    publisher = await place.open()
    keys = [ObjectKey("default", f"f{number}") for number in range(20)]

    async with asyncio.TaskGroup() as tasks:
        for key in keys:
            tasks.create_task(publisher.publish(key, {}, envoyfilter(key.name)))

    assert set(place.filters()) == {f"default/{key.name}" for key in keys} | {"router"}
    async with asyncio.TaskGroup() as tasks:
        for key in keys:
            tasks.create_task(publisher.retract(key))
    assert place.filters() == ["router"]


async def test_listener_file_that_could_not_be_written_is_written_at_the_next_call(
    place: Place,
) -> None:
    publisher = await place.open()
    lds = place.envoy / "lds.yaml"
    lds.unlink()
    lds.mkdir()
    with pytest.raises(StorageError, match=r"lds\.yaml"):
        await publisher.publish(KEY, {}, envoyfilter())
    lds.rmdir()

    assert not await publisher.publish(KEY, {}, envoyfilter())
    assert place.filters() == ["default/test", "router"]


async def test_retract_that_failed_is_completed_by_the_next(place: Place) -> None:
    publisher = await fill(place, KEY)
    lds = place.envoy / "lds.yaml"
    lds.unlink()
    lds.mkdir()
    with pytest.raises(StorageError):
        await publisher.retract(KEY)
    assert (place.envoy / "envoyfilters" / "default.test.yaml").exists()
    lds.rmdir()

    await publisher.retract(KEY)

    assert place.filters() == ["router"]
    assert list(place.files()) == ["lds.yaml"]


@pytest.mark.parametrize(
    "damage",
    [
        b"metadata: {}\n",
        b"metadata: {name: test, namespace: default}\n",
        b"kind: [",
        b"",
        b"text",
        b"\xff\xfe",
        b"a: !!bool x\n",
        b"metadata: {name: other, namespace: default}\nspec: {configPatches: []}\nstatus: {}\n",
    ],
)
@pytest.mark.parametrize("folder", ["envoyfilters", "status"])
async def test_damaged_file_is_set_aside_and_the_rest_is_read(
    place: Place, logs: list[EventDict], folder: str, damage: bytes
) -> None:
    other = ObjectKey("default", "other")
    await fill(place, KEY, other)
    file = place.envoy / folder / "default.test.yaml"
    file.write_bytes(damage)

    publisher = await place.open()

    held = publisher.published if folder == "envoyfilters" else publisher.status
    assert held(KEY) is None
    assert held(other) is not None
    assert file.with_name("default.test.yaml.broken").read_bytes() == damage
    assert [
        each["file"] for each in logs if each["event"] == "invalid file renamed to .broken"
    ] == [str(file)]
    await publisher.publish(KEY, {}, envoyfilter())
    assert place.filters() == ["default/other", "default/test", "router"]


async def test_half_written_files_of_a_killed_process_are_cleared(place: Place) -> None:
    await fill(place, KEY)
    kept = place.envoy / ".someone-elses.yaml"
    kept.write_text("x")
    for half in ("envoyfilters/.default.a.yaml.0123abcd", "status/.a.yaml.0123abcd", ".lds.yaml.ffffffff"):  # fmt: skip
        (place.envoy / half).write_text("half")

    await place.open()

    assert sorted(place.files()) == [
        ".someone-elses.yaml",
        "envoyfilters/default.test.yaml",
        "lds.yaml",
        "status/default.test.yaml",
    ]


async def test_without_a_template_there_is_no_listener_file(tmp_path: Path, pools: Pools) -> None:
    publisher = StandalonePublisher(tmp_path, template=None, pools=pools)
    await publisher.check()
    await publisher.load()
    assert await publisher.publish(KEY, {}, envoyfilter())
    assert not (tmp_path / "lds.yaml").exists()


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "No such file"),
        (b"a: [", "line 2, column 1: did not find expected node content"),
        (b"\xff", "utf-8"),
        (b"resources: []\n", "at least one"),
        (b"resources: [{}]\n", r"resources\[0\]: has no address"),
    ],
)
async def test_bad_template_is_a_usage_error_that_names_the_file(
    place: Place, template: bytes | None, sentence: str
) -> None:
    place.template.unlink()
    if template is not None:
        place.template.write_bytes(template)
    with pytest.raises(UsageError, match=sentence) as caught:
        await place.open()
    assert f"--listener-template {place.template}" in str(caught.value)


async def test_template_may_use_anchors_and_need_not_be_a_document(place: Place) -> None:
    one: dict[str, Any] = {**listener(9080), "stat_prefix": "2021-10-27"}
    text = yaml.safe_dump([one]).replace("stat_prefix: '2021-10-27'", "stat_prefix: 2021-10-27")
    text = text.replace("address: 127.0.0.1", "address: &here 127.0.0.1  # me")
    place.template.write_text(text)

    await place.open()

    assert (place.envoy / "lds.yaml").read_text() == f"resources:\n{text}"


async def test_directory_that_cannot_be_used_is_a_storage_error(place: Place) -> None:
    place.envoy.write_text("a file")
    with pytest.raises(StorageError, match="--envoy-dir"):
        await place.open()


async def test_directory_removed_by_hand_comes_back_with_the_next_change(place: Place) -> None:
    publisher = await fill(place, KEY)
    shutil.rmtree(place.envoy)
    await publisher.publish(ObjectKey("default", "other"), {}, envoyfilter("other"))
    assert place.filters() == ["default/other", "default/test", "router"]
