"""`python -m tests.instructions [--record]`: compares the bytecode instructions of fixed work with those in `tests/instructions.json`.

A guard against slower code on a machine with other load: the same code executes the same instructions, regardless of their
duration. The exit status is 1 if a kind of work exceeds the count in the file by more than a tenth; `--record` writes the
file. It counts on the Python of the image (`tests/parts/pythons.py`), with sys.monitoring, because each Python compiles to
different instructions.

Not counted: time in C code (decoding, hashing, copies, system calls), which `make bench` measures. Invariant: the counted part
uses one thread, no wall clock and no order of hashes, so two counts are equal.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any, Final

from tests.parts import cache, pythons

_ROOT = Path(__file__).parents[1]
RECORDED: Final = Path(__file__).with_suffix(".json")
MARGIN: Final = 1.1
"""More instructions than the record times this factor are a failure."""
_TIMES: Final = 100
"""How often each kind of work runs, after the same number of uncounted runs."""


class Counter:
    """Counts the instructions of all Python code while `counting`."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Add the instructions executed in the block."""
        tool, monitoring = 4, sys.monitoring  # type: ignore[attr-defined,unused-ignore]

        def executed(_code: CodeType, _offset: int) -> None:
            self.count += 1

        monitoring.use_tool_id(tool, "autowasm instructions")
        try:
            monitoring.register_callback(tool, monitoring.events.INSTRUCTION, executed)
            monitoring.set_events(tool, monitoring.events.INSTRUCTION)
            yield
        finally:
            monitoring.set_events(tool, 0)
            monitoring.free_tool_id(tool)


def _of(work: Callable[[], object]) -> float:
    for _ in range(_TIMES):
        work()
    counter = Counter()
    with counter.counting():
        for _ in range(_TIMES):
            work()
    return counter.count / _TIMES


def render() -> float:
    """One EnvoyFilter."""
    from autowasm.api.envoyfilter import render  # noqa: PLC0415
    from autowasm.settings import EnvoyFetch  # noqa: PLC0415
    from tests.fakes.autowasms import autowasm, record  # noqa: PLC0415

    parsed, resolved, settings = autowasm(), record(), EnvoyFetch()
    return _of(lambda: render(parsed, resolved, settings))


def parse() -> float:
    """One AutoWasm, from the document of the informer to values."""
    from tests.fakes.autowasms import document, validation  # noqa: PLC0415

    given = document()
    return _of(lambda: validation.parse(given))


def get() -> float:
    """One plain GET of a module over a kept connection, from the loop's call to the protocol."""
    from autowasm.blobs.files import Blob  # noqa: PLC0415
    from autowasm.digest import Sha256Hex, Signature  # noqa: PLC0415
    from autowasm.limits import ServeLimits  # noqa: PLC0415
    from autowasm.performance.fastpath import FastConnection  # noqa: PLC0415

    sha256, body, head = Sha256Hex("a" * 64), b"\0asm", b"HTTP/1.1 200 OK\r\n\r\n"
    request = f"GET /wasm/{sha256} HTTP/1.1\r\nhost: wasmer\r\nuser-agent: Envoy\r\n\r\n".encode()
    ours, client = socket.socketpair()
    with ours, client, tempfile.TemporaryFile() as file:
        file.write(body)
        file.flush()
        ours.setblocking(False)
        blob = Blob(sha256, file.fileno(), Signature.of(file.fileno()))
        loop = _StillLoop()
        owner = _Owner(blob, head)
        connection = FastConnection(
            ours, "10.0.0.1", owner=owner, loop=loop, limits=ServeLimits()  # type: ignore[arg-type]
        )  # fmt: skip
        counter = Counter()
        for turn in range(2 * _TIMES):
            client.sendall(request)
            with counter.counting() if turn >= _TIMES else contextlib.nullcontext():
                loop.read()
            assert client.recv(1000) == head + body
        assert owner.sent_count == 2 * _TIMES
        connection.force_close()
    return counter.count / _TIMES


class _StillLoop:
    """The part of a loop that a connection uses; its clock stands still."""

    def __init__(self) -> None:
        self.read: Callable[[], object] = lambda: None

    def time(self) -> float:
        return 1000.0

    def add_reader(self, _fd: int, call: Callable[..., object], *args: Any) -> None:
        self.read = lambda: call(*args)

    def remove_reader(self, _fd: int) -> None:
        pass

    def call_at(self, _when: float, _call: Callable[..., object], *_args: Any) -> "_Handle":
        return _Handle()

    def call_soon(self, call: Callable[..., object], *args: Any) -> "_Handle":
        call(*args)
        return _Handle()


class _Handle:
    def cancel(self) -> None:
        pass


@dataclass
class _Owner:
    blob: Any
    head: bytes
    is_stopping: bool = False
    sent_count: int = 0

    def ready(self, _sha256: str) -> tuple[Any, bytes]:
        return self.blob, self.head

    def began(self) -> None:
        pass

    def ended(self) -> None:
        pass

    def sent(self, *_args: Any, cut_for: str | None) -> None:
        assert cut_for is None
        self.sent_count += 1

    def closed(self, _connection: Any) -> None:
        pass


_PODS: Final = 200
_SELECTORS: Final = 1000


def pod_event() -> float:
    """One change of a Pod, from the bytes of the watch to the counts of 1 000 AutoWasms."""
    return asyncio.run(_pod_event())


async def _pod_event() -> float:
    from autowasm.controller.pods.podmatching import Pod, PodMatcher, PodSelector, pod_codec  # noqa: PLC0415
    from autowasm.kube.informer import Informer  # noqa: PLC0415
    from autowasm.kube.listwatch import ListWatch  # noqa: PLC0415
    from autowasm.kube.resources import PODS, ObjectKey  # noqa: PLC0415
    from autowasm.limits import KubeLimits  # noqa: PLC0415
    from tests.bench import pods  # noqa: PLC0415

    matcher = PodMatcher()
    for number in range(_SELECTORS):
        key = ObjectKey(pods.namespace_of(20 * number), f"filter-{number}")
        labels = (("app", pods.application(20 * number)),)
        matcher.set_selector(key, PodSelector(key.namespace, labels))

    class Handler:
        def on_add(self, _key: ObjectKey, new: Pod, /, *, initial: bool) -> None:
            matcher.pod_changed(None, new)

        def on_update(self, _key: ObjectKey, old: Pod, new: Pod, /) -> None:
            matcher.pod_changed(old, new)

        def on_delete(self, _key: ObjectKey, old: Pod, /) -> None:
            matcher.pod_changed(old, None)

    numbers = range(_PODS)
    server = _WatchServer(
        before=pods.events(numbers, kind="ADDED"),
        counted=pods.events(numbers, kind="MODIFIED", label="v2", first=_PODS + 1),
        limits=KubeLimits(loop_budget=1e9),  # the loop's share depends on the wall clock
    )
    informer = Informer(
        "pods",
        list_watch=ListWatch(server, PODS, pod_codec()),  # type: ignore[arg-type]
        limits=server.limits,
        streaming=False,
    )
    informer.add_handler(Handler())
    running = asyncio.create_task(informer.run())
    async with asyncio.timeout(60):
        await server.is_done.wait()
    running.cancel()
    assert len(informer.store) == _PODS
    assert {dict(pod.labels)["version"] for pod in informer.store.values()} == {"v2"}
    return server.counter.count / _PODS


@dataclass
class _WatchServer:
    """A KubeClient: an empty list, then a watch, whose second part is counted."""

    before: Sequence[bytes]
    counted: Sequence[bytes]
    limits: Any
    counter: Counter = field(default_factory=Counter)
    is_done: asyncio.Event = field(default_factory=asyncio.Event)
    transport: None = None

    async def request(self, *_args: Any, **_options: Any) -> bytes:
        return b'{"items":[],"metadata":{"resourceVersion":"1"}}'

    @asynccontextmanager
    async def stream(self, *_args: Any, **_options: Any) -> AsyncIterator["_WatchServer"]:
        self._chunks = self._bytes()
        yield self

    async def read(self, _n: int = -1) -> bytes:
        if (chunk := next(self._chunks, b"")) or not self.is_done.is_set():
            return chunk
        return await asyncio.Event().wait() and b""

    def _bytes(self) -> Iterator[bytes]:
        yield b"".join(self.before)
        with self.counter.counting():
            yield b"".join(self.counted)
        self.is_done.set()


def reconcile() -> float:
    """One reconcile of an AutoWasm whose module is published: nothing changes."""
    return asyncio.run(_reconcile())


async def _reconcile() -> float:
    from autowasm.controller.interfaces import Lookup  # noqa: PLC0415
    from tests.unit.controller.reconciling.cluster import KEY, ReconciledCluster  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as directory:
        cluster = ReconciledCluster(Path(directory))
        async with cluster.process() as process:
            await process.apply()
            assert cluster.status["phase"] == "Synced"
            cluster.publisher.writes.clear()
            found = Lookup(cluster.objects.documents[KEY])
            cluster.objects.lookup = lambda _: found  # type: ignore[method-assign]  # without a copy
            counter = Counter()
            for turn in range(2 * _TIMES):
                with counter.counting() if turn >= _TIMES else contextlib.nullcontext():
                    await process.reconciler.reconcile(KEY)
            assert not cluster.publisher.writes
    return counter.count / _TIMES


WORK: Final[Mapping[str, Callable[[], float]]] = {
    "one Pod event": pod_event,
    "a reconcile without a change": reconcile,
    "a plain GET": get,
    "one AutoWasm parsed": parse,
    "one EnvoyFilter rendered": render,
}


def slower(found: Mapping[str, float], recorded: Mapping[str, float]) -> list[str]:
    """A line for each kind of work that exceeds `MARGIN` times its recorded count, or is not recorded."""
    return [
        f"{name}: {count:.0f} instructions, {recorded.get(name, 0):.0f} recorded"
        for name, count in found.items()
        if count > MARGIN * recorded.get(name, 0)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if a count exceeds its record by more than a tenth."""
    parser = ArgumentParser(
        prog="python -m tests.instructions", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.name}")
    parser.add_argument("--here", action="store_true", help="count on this Python")
    given = parser.parse_args(arguments)
    if given.here:
        print(json.dumps({name: work() for name, work in WORK.items()}))
        return 0
    found = _count()
    if given.record:
        rounded = {name: round(count) for name, count in found.items()}
        RECORDED.write_text(json.dumps(rounded, indent=2) + "\n")
    recorded = json.loads(RECORDED.read_text())
    for name, count in found.items():
        print(f"{name}: {count:.0f} ({count / recorded.get(name, count) - 1:+.1%})")
    problems = slower(found, recorded)
    for problem in problems:
        print(f"More than {MARGIN - 1:.0%} more: {problem}", file=sys.stderr)
    if problems:
        print(
            "If it is meant: make instructions ARGS=--record, with the reason in the commit.",
            file=sys.stderr,
        )
    return bool(problems)


def _count() -> dict[str, float]:
    """Count in a process of its own, on the image's Python, with a fixed order of hashes. Raises PartError."""
    folder = _ROOT / "build" / f"python{pythons.IMAGE}"
    program = pythons.environment(pythons.IMAGE, folder, project=_ROOT)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")
    }
    done = subprocess.run(
        [program, "-m", "tests.instructions", "--here"],
        env={**environment, "PYTHONHASHSEED": "0"},
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        check=False,
        timeout=600,
    )
    if done.returncode != 0:
        raise cache.PartError("counting failed; its messages are above")
    counted: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return counted


if __name__ == "__main__":
    sys.exit(main())
