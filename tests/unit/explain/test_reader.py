"""Reads from a cluster for an explanation: in pages, with a limit, and with the reason of what could not be read."""

import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from autowasm.explain.gather import MAX_OBJECTS, ObjectReader
from autowasm.explain.objects import Named
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import Forbidden, NotFound, ServerError
from autowasm.kube.resources import ResourceType

PODS = ResourceType("", "v1", "pods", "Pod")


class Cluster:
    """`count` Pods in each namespace, or an error."""

    def __init__(self, count: int = 0, error: Exception | None = None) -> None:
        self.count = count
        self.error = error
        self.requests: list[tuple[str, dict[str, str]]] = []

    async def request(self, method: str, path: str, *, query: Mapping[str, str]) -> bytes:
        self.requests.append((path, dict(query)))
        if self.error is not None:
            raise self.error
        begin = int(query.get("continue", "0"))
        end = min(begin + int(query["limit"]), self.count)
        items: list[dict[str, Any]] = [{"metadata": {"name": f"p{n}"}} for n in range(begin, end)]
        token = str(end) if end < self.count else ""
        return json.dumps({"items": items, "metadata": {"continue": token}}).encode()


def reader(cluster: Cluster) -> ObjectReader:
    return ObjectReader(cast(KubeClient, cluster))


async def test_all_pages_of_all_namespaces_are_read() -> None:
    cluster = Cluster(700)
    made = reader(cluster)
    found = await made.list_all(PODS, ["a", "b"], Named, what="pods", labels="app=x")
    assert len(found) == 1400
    assert (made.unread, made.cut) == ({}, {})
    assert len(cluster.requests) == 4
    assert {query["labelSelector"] for _, query in cluster.requests} == {"app=x"}


async def test_reader_stops_at_the_object_limit_and_reports_it() -> None:
    cluster = Cluster(MAX_OBJECTS + 1)
    made = reader(cluster)
    found = await made.list_all(PODS, ["a", "b"], Named, what="pods")
    assert len(found) == MAX_OBJECTS
    assert made.cut == {"pods": MAX_OBJECTS}
    assert {path for path, _ in cluster.requests} == {"/api/v1/namespaces/a/pods"}


@pytest.mark.parametrize(
    ("error", "unread"),
    [
        (NotFound("no such kind", code=404), {}),
        (Forbidden("no", code=403), {"pods": "your account may not read them (RBAC)"}),
        (ServerError("etcd is down", code=500), {"pods": "etcd is down"}),
    ],
)
async def test_failed_list_is_recorded_unless_the_kind_is_unknown(
    error: Exception, unread: dict[str, str]
) -> None:
    made = reader(Cluster(error=error))
    assert await made.list_all(PODS, ["a"], Named, what="pods") == ()
    assert made.unread == unread
