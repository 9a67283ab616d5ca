"""`python -m tests.bench.growing --autowasms N --pods M`: the state and the watches of a controller, in this process, without a network.

The controller's own informers, observers and indexes (`controller/cluster.py`) over an API server in memory, which creates
its answers on demand; the time for that is not counted. All AutoWasms are `Synced`, as after a restart: nothing is written.
One JSON line at the end.
"""

import argparse
import asyncio
import gc
import json
import re
import resource
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from autowasm.api import validation
from autowasm.api.envoyfilter import render
from autowasm.controller.cluster import ClusterMode
from autowasm.kube.errors import BadRequest
from autowasm.kube.leaderelection import AlwaysLeading
from autowasm.kube.reflector import NoMetrics
from autowasm.limits import KubeLimits
from autowasm.settings import Cluster, EnvoyFetch
from tests.bench import pods
from tests.fakes.autowasms import document, record

_EVENTS = 2000
_CHANGES = 100
_IDLE_SECONDS = 8
_KIND = re.compile(r"/(pods|autowasms|envoyfilters)$")
_GONE = (
    b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"old"}}\n'
)


class ApiServer:
    """The part of a KubeClient that the controller's watches use. `spent`: processor seconds for creating answers."""

    def __init__(self, autowasms: int, pods_count: int) -> None:
        self.limits = KubeLimits()
        self.spent = 0.0
        self.lists = 0
        """Lists that were read completely."""
        self._counts = {"autowasms": autowasms, "envoyfilters": autowasms, "pods": pods_count}
        self._applications = max(pods_count // pods.REPLICAS, 1)
        self._watches: dict[str, asyncio.Queue[bytes]] = {}

    def autowasm(self, number: int, *, version: int = 1, application: int | None = None) -> Any:
        """A published AutoWasm that selects one Deployment."""
        chosen = (number if application is None else application) % self._applications
        found = document(
            name=f"f{number}",
            namespace=pods.namespace_of(chosen * pods.REPLICAS),
            metadata={"uid": f"u{number}", "resourceVersion": f"{version}"},
            spec={"selector": {"matchLabels": {"app": pods.application(chosen * pods.REPLICAS)}}},
        )
        matched = min(pods.REPLICAS, self._counts["pods"])
        found["status"] = {
            "phase": "Synced",
            "observedGeneration": 1,
            "pods": {"matched": matched, "injected": matched},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Synced"}],
        }
        return found

    def _item(self, kind: str, number: int) -> str:
        if kind == "pods":
            return pods.text(number, version=1)
        autowasm = self.autowasm(number)
        if kind == "autowasms":
            return json.dumps(autowasm)
        envoyfilter = render(validation.parse(autowasm), record(), EnvoyFetch())
        envoyfilter["metadata"] |= {"uid": f"e{number}", "resourceVersion": "1"}
        return json.dumps(envoyfilter)

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, **_options: Any
    ) -> bytes:
        """A page of a list."""
        found = _KIND.search(path)
        if method != "GET" or found is None or query is None:
            raise BadRequest(f"nothing is written: {method} {path}", code=400)
        begun = time.process_time()
        kind, first = found[1], int(query.get("continue", "0"))
        end = min(first + int(query["limit"]), self._counts[kind])
        token = str(end) if end < self._counts[kind] else ""
        items = ",".join(self._item(kind, number) for number in range(first, end))
        metadata = json.dumps({"resourceVersion": "1", "continue": token})
        answer = f'{{"items":[{items}],"metadata":{metadata}}}'.encode()
        self.lists += not token
        self.spent += time.process_time() - begun
        return answer

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str], silence: float
    ) -> AsyncIterator["_Watch"]:
        """A watch; streaming lists are disabled."""
        if "sendInitialEvents" in query:
            raise BadRequest("no streaming lists", code=400)
        found = _KIND.search(path)
        assert found is not None
        queue = self._watches[found[1]] = asyncio.Queue()
        yield _Watch(queue)

    def send(self, kind: str, data: bytes) -> None:
        """Bytes for the open watch."""
        self._watches[kind].put_nowait(data)

    @property
    def are_watched(self) -> bool:
        """Whether all resources are listed."""
        return self._watches.keys() == self._counts.keys()


class _Watch:
    transport = None

    def __init__(self, queue: "asyncio.Queue[bytes]") -> None:
        self._queue = queue

    async def read(self, _n: int = -1) -> bytes:
        return await self._queue.get()


class _Metrics:
    def reflector(self, _name: str) -> NoMetrics:
        return NoMetrics()


async def measure(autowasms: int, pods_count: int) -> dict[str, float]:
    """Bytes, processor seconds, and microseconds for one event; `idle` as a share of a core."""
    server, changed = ApiServer(autowasms, pods_count), 0

    def count(_key: object) -> None:
        nonlocal changed
        changed += 1

    mode = ClusterMode(
        server,  # type: ignore[arg-type]
        cluster=Cluster(),
        record_event=lambda *_: None,
        metrics=_Metrics(),
        leadership=AlwaysLeading(),
    )
    gc.collect()
    found: dict[str, float] = {}
    before = _resident()
    async with asyncio.TaskGroup() as tasks:
        with _Processor(server) as used:
            await mode.start(tasks)
            running = tasks.create_task(mode.run(changed=count, secret_changed=count))
            await _until(lambda: server.lists == 3 and server.are_watched)
            await _until(lambda: all(one.has_synced for one in mode.informers))
        found["settle"] = used.seconds
        gc.collect()
        found["memory"] = _resident() - before
        await _idle(server)
        found["event"] = await _pod_events(server, mode, pods_count)
        await _idle(server)
        (of_autowasms,) = [one for one in mode.informers if one.name == "autowasms"]
        changed = 0
        numbers = [number % autowasms for number in range(_CHANGES)]
        lines = b"".join(
            _line("MODIFIED", server.autowasm(number, version=turn + 2, application=number + 1))
            for turn, number in enumerate(numbers)
        )
        with _Processor(server) as used:
            server.send("autowasms", lines)
            await _until(lambda: of_autowasms.position == str(_CHANGES + 1))
        assert changed >= min(_CHANGES, autowasms)
        found["change"] = 1e6 * used.seconds / _CHANGES
        with _Processor(server) as used:
            for kind in ("autowasms", "envoyfilters", "pods"):
                server.send(kind, _GONE)
            await _until(lambda: server.lists == 6)
            await asyncio.sleep(0.5)
        found["relist"] = used.seconds
        shares = []
        for _ in range(_IDLE_SECONDS):  # in the first ones, reports on Pods are still due
            with _Processor(server) as used:
                await asyncio.sleep(1)
            shares.append(used.seconds)
        found["idle"] = min(shares)
        running.cancel()
        for task in asyncio.all_tasks():
            if task.get_name().startswith("informer"):
                task.cancel()
    return found


async def _pod_events(server: ApiServer, mode: ClusterMode, pods_count: int) -> float:
    (informer,) = [one for one in mode.informers if one.name == "pods"]
    numbers = [number % pods_count for number in range(_EVENTS)]
    lines = b"".join(pods.events(numbers, kind="MODIFIED", label="v2", first=2))
    with _Processor(server) as used:
        server.send("pods", lines)
        await _until(lambda: informer.position == str(_EVENTS + 1))
    return 1e6 * used.seconds / _EVENTS


class _Processor:
    """Processor seconds of this process in a block, without those of the server."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self.seconds = 0.0

    def __enter__(self) -> "_Processor":
        self.seconds = self._server.spent - time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._server.spent


def _line(kind: str, item: object) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), json.dumps(item).encode())


async def _idle(server: ApiServer) -> None:
    """Wait for the reports on Pods that follow a list and changes: the next measurement would include them."""
    async with asyncio.timeout(300):
        while True:
            with _Processor(server) as used:
                await asyncio.sleep(0.2)
            if used.seconds < 0.01:
                return


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(300):
        while not condition():
            await asyncio.sleep(0.005)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Measure, print."""
    from autowasm.performance import eventloop  # noqa: PLC0415

    parser = argparse.ArgumentParser()
    parser.add_argument("--autowasms", type=int, required=True)
    parser.add_argument("--pods", type=int, required=True)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    eventloop.tune_gc()
    with asyncio.Runner(loop_factory=eventloop.TimedLoop) as runner:
        print(json.dumps(runner.run(measure(arguments.autowasms, arguments.pods))))


if __name__ == "__main__":
    main()
