"""Writes: no unread version is overwritten, and no object that is being deleted is written."""

from pathlib import Path
from typing import Any

import pytest

from autowasm.kube import writes
from autowasm.kube.errors import AlreadyExists, Conflict
from autowasm.kube.resources import ObjectKey, ResourceType
from tests.unit.kube.wire import Wire, client_of, failure, json_answer

THINGS = ResourceType("example.com", "v1", "things", "Thing")
PATH = "/apis/example.com/v1/namespaces/ns/things"


def thing(**metadata: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": "a", **metadata}, "spec": {"x": 1}}


READ = thing(resourceVersion="7", uid="u1", generation=2)


async def test_create_posts_to_the_namespace(tmp_path: Path) -> None:
    wire = Wire(json_answer(READ, status=201), failure(409, "AlreadyExists"))
    async with client_of(wire, tmp_path) as client:
        assert await writes.create(client, THINGS, thing()) == READ
        with pytest.raises(AlreadyExists):
            await writes.create(client, THINGS, thing())
    request = wire.requests[0]
    assert (request.method, request.path, request.document) == ("POST", PATH, thing())


async def test_replace_is_conditional_on_the_version_read(tmp_path: Path) -> None:
    wire = Wire(json_answer(READ), failure(409, "Conflict"))
    async with client_of(wire, tmp_path) as client:
        await writes.update(client, THINGS, thing(labels={"a": "b"}), read=READ)
        with pytest.raises(Conflict):
            await writes.update(client, THINGS, thing(), read=READ)
    request = wire.requests[0]
    assert (request.method, request.path) == ("PUT", f"{PATH}/a")
    assert request.document == thing(labels={"a": "b"}, resourceVersion="7", uid="u1")


async def test_managed_fields_are_the_server_s(tmp_path: Path) -> None:
    """Those of an informer lack their field sets; an object without any keeps what the server has."""
    managed = [{"manager": "kubectl", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {}}}]
    wire = Wire(json_answer(thing(resourceVersion="8", uid="u1", managedFields=managed)))
    async with client_of(wire, tmp_path) as client:
        stored = await writes.update(client, THINGS, thing(managedFields=managed), read=READ)
    assert "managedFields" not in wire.requests[0].document["metadata"]
    assert stored is not None
    assert stored["metadata"]["managedFields"] == [
        {"manager": "kubectl", "time": "2026-01-01T00:00:00Z"}
    ]


async def test_a_status_is_put_alone_and_conditional_on_the_version_read(tmp_path: Path) -> None:
    wire = Wire(json_answer(READ))
    async with client_of(wire, tmp_path) as client:
        await writes.update_status(client, THINGS, {"phase": "Synced"}, read=READ)
    request = wire.requests[0]
    assert (request.method, request.path) == ("PUT", f"{PATH}/a/status")
    assert request.document == {
        "apiVersion": "example.com/v1",
        "kind": "Thing",
        "metadata": {"namespace": "ns", "name": "a", "resourceVersion": "7", "uid": "u1"},
        "status": {"phase": "Synced"},
    }


async def test_nothing_is_written_to_an_object_that_is_being_deleted(tmp_path: Path) -> None:
    going = thing(resourceVersion="7", uid="u1", deletionTimestamp="2026-01-01T00:00:00Z")
    wire = Wire()
    async with client_of(wire, tmp_path) as client:
        assert await writes.update(client, THINGS, thing(), read=going) is None
        assert await writes.update_status(client, THINGS, {}, read=going) is None
    assert wire.requests == []


async def test_a_merge_patch_says_that_it_is_one(tmp_path: Path) -> None:
    wire = Wire(json_answer(READ))
    async with client_of(wire, tmp_path) as client:
        await writes.merge_patch(client, THINGS, ObjectKey("ns", "a"), {"count": 2})
    request = wire.requests[0]
    assert (request.method, request.headers["content-type"]) == (
        "PATCH",
        "application/merge-patch+json",
    )
