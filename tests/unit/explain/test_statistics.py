"""Statistics of sidecars through the API server's proxy: which requests are sent, and what is concluded."""

from collections.abc import Mapping
from typing import Any, cast

from autowasm.controller.pods import envoystats
from autowasm.explain.gather import MAX_READ, StatisticsReader
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import Forbidden
from autowasm.limits import StatsLimits
from tests.fakes.sidecarstats import VMS, page
from tests.parts.explained import facts, pod


class Proxy:
    """An API server that passes requests on: `pages` by Pod; it has no connection to other Pods."""

    def __init__(self, pages: Mapping[str, bytes] | None = None) -> None:
        self.pages = pages or {}
        self.requests: list[str] = []
        self.options: dict[str, Any] = {}

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str], **options: Any
    ) -> bytes:
        assert (method, dict(query)) == ("GET", {"filter": envoystats.FILTER})
        self.requests.append(path)
        self.options = options
        name = path.split("/")[6].partition("%3A")[0]
        if name not in self.pages:
            raise Forbidden(f"GET {path}")
        return self.pages[name]


def reader(proxy: Proxy, *, generation: int = 1) -> StatisticsReader:
    live = dict(facts().live or {})
    live["metadata"] = {**live["metadata"], "generation": generation}
    return StatisticsReader(cast(KubeClient, proxy), live)


async def test_each_pod_is_read_and_one_that_cannot_be_read_is_absent() -> None:
    proxy = Proxy({"a": page(["test"], vms=VMS), "b": page(["test"], vms=0), "c": b"<html>"})
    found = await reader(proxy).read([pod(name) for name in ("a", "b", "c", "forbidden")])
    assert [(one.pod, one.state) for one in found] == [
        ("team/a", "Running"),
        ("team/b", "ConfigurationRefused"),
    ]
    assert set(proxy.requests) == {
        f"/api/v1/namespaces/team/pods/{name}%3A15090/proxy/stats/prometheus"
        for name in ("a", "b", "c", "forbidden")
    }
    limits = StatsLimits()
    assert proxy.options == {"timeout": limits.deadline, "most": limits.page_bytes}


async def test_same_name_after_a_change_is_not_called_running_by_one_look() -> None:
    proxy = Proxy({"a": page(["test"], vms=VMS)})
    (found,) = await reader(proxy, generation=2).read([pod("a")])
    assert found.state == "Unknown"


async def test_no_more_are_read_than_a_status_names() -> None:
    proxy = Proxy()
    await reader(proxy).read([pod(f"p{number}") for number in range(MAX_READ + 5)])
    assert len(proxy.requests) == MAX_READ
    proxy.requests.clear()
    await reader(proxy).read([pod("bare", proxy=False)])
    assert not proxy.requests
