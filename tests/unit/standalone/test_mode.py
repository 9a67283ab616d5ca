"""The directory as the reconciler sees it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from autowasm.kube.resources import ObjectKey
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.standalone.directory import ConfigDirectory
from autowasm.standalone.mode import StandaloneMode
from autowasm.standalone.publisher import StandalonePublisher
from tests.fakes import autowasms
from tests.unit.standalone.lds import envoyfilter

KEY = ObjectKey("default", "test")


class Place:
    """A --config and an --envoy-dir, and the state of a new process with them."""

    def __init__(self, root: Path, pools: Pools) -> None:
        self.config = root / "config"
        self.config.mkdir()
        self._root = root
        self._pools = pools

    def apply(self, file: str = "test.yaml", /, **fields: Any) -> None:
        document = autowasms.document(**fields)
        del document["metadata"]["generation"]
        (self.config / file).write_text(yaml.safe_dump(document))

    async def open(self) -> StandaloneMode:
        directory = ConfigDirectory(self.config, limits=Limits(), pools=self._pools)
        publisher = StandalonePublisher(self._root / "envoy", template=None, pools=self._pools)
        mode = StandaloneMode(directory, publisher)
        async with asyncio.TaskGroup() as tasks:
            await mode.start(tasks)
        return mode


@pytest.fixture
def place(tmp_path: Path, pools: Pools) -> Place:
    return Place(tmp_path, pools)


async def test_object_gets_the_generation_and_status_that_a_server_would_keep(place: Place) -> None:
    place.apply()
    mode = await place.open()
    found = mode.lookup(KEY)
    assert found is not None
    assert found.problem is None
    assert found.document["metadata"]["generation"] == 1
    assert found.document["status"] == {}
    await mode.publisher.write_status(KEY, found.document, {"phase": "Synced"})

    again = (await place.open()).lookup(KEY)
    assert again is not None
    assert again.document["metadata"]["generation"] == 1
    assert again.document["status"] == {"phase": "Synced"}

    place.apply(rootID="other")
    changed = (await place.open()).lookup(KEY)
    assert changed is not None
    assert changed.document["metadata"]["generation"] == 2


async def test_object_defined_twice_has_a_problem_that_names_the_files(place: Place) -> None:
    place.apply("a.yaml")
    place.apply("b.yaml")
    found = (await place.open()).lookup(KEY)
    assert found is not None
    assert found.problem is not None
    assert found.problem.reason == "DuplicateObject"
    assert "a.yaml and " in str(found.problem)
    assert "b.yaml" in str(found.problem)


async def test_published_object_in_no_file_is_gone(place: Place) -> None:
    place.apply()
    mode = await place.open()
    await mode.publisher.publish(KEY, {}, envoyfilter())
    (place.config / "test.yaml").unlink()
    again = await place.open()
    assert again.keys() == {KEY}
    assert again.lookup(KEY) is None


async def test_published_object_that_may_be_in_an_unreadable_file_is_kept(place: Place) -> None:
    place.apply()
    mode = await place.open()
    await mode.publisher.publish(KEY, {}, envoyfilter())
    (place.config / "test.yaml").write_text("apiVersion: wasm")
    found = (await place.open()).lookup(KEY)
    assert found is not None
    assert found.problem is not None
    assert found.problem.reason == "FileInvalid"
    assert "test.yaml" in str(found.problem)
    assert (await place.open()).lookup(ObjectKey("default", "never-published")) is None


async def test_secrets_are_read_and_their_users_known(place: Place) -> None:
    place.apply(spec={"secret": "pull"})
    place.apply("other.yaml", name="other")
    for file in ("twice.yaml", "again.yaml"):
        place.apply(file, name="twice", spec={"secret": "pull"})
    place.apply("far.yaml", name="far", namespace="far", spec={"secret": "pull"})
    (place.config / "secret.yaml").write_text(
        "apiVersion: v1\nkind: Secret\ntype: t\nmetadata: {name: pull}\nstringData: {p: x}\n"
    )
    mode = await place.open()
    found = await mode.read("default", "pull")
    assert found is not None
    assert (found.type, found.data) == ("t", {"p": b"x"})
    assert await mode.read("far", "pull") is None
    assert list(mode.users(ObjectKey("default", "pull"))) == [KEY]


async def test_changes_of_files_and_secrets_are_reported_as_keys_of_autowasms(place: Place) -> None:
    place.apply(spec={"secret": "pull"})
    mode = await place.open()
    changed: list[ObjectKey] = []
    because_of_secret: list[ObjectKey] = []
    following = asyncio.create_task(
        mode.run(changed=changed.append, secret_changed=because_of_secret.append)
    )
    try:
        (place.config / "secret.yaml").write_text(
            "apiVersion: v1\nkind: Secret\nmetadata: {name: pull}\nstringData: {p: x}\n"
        )
        place.apply("other.yaml", name="other")
        async with asyncio.timeout(20):
            while not (changed and because_of_secret):
                await asyncio.sleep(0.01)
        assert because_of_secret == [KEY]
        assert changed == [ObjectKey("default", "other")]
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
