"""Runs the same filter with the same requests in a real Envoy and in the sandbox, and compares the results.

Envoy runs once for many cases, with a listener, a service and a VM for each. The service and the client are raw sockets, so
that headers are compared as they are on the wire, in order. Invariant: an `Observed` does not depend on the machine: values
that differ from run to run (dates, request ids, durations) are masked on both sides.
"""

import asyncio
import atexit
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from difflib import unified_diff
from pathlib import Path
from pprint import pformat
from typing import Any, Protocol, TypeVar

from autowasm.envoyversion import envoy_version
from autowasm.sandbox import attributes
from autowasm.sandbox.clusteranswers import Answering, HttpAnswer
from autowasm.sandbox.engine import Compiled, make_engine
from autowasm.sandbox.engine import compile_module as compile_bytes
from autowasm.sandbox.http import Exchange, exchange
from autowasm.sandbox.message import Message, Request, Response
from autowasm.sandbox.plugin import FailurePolicy, Plugin, SandboxLimits
from autowasm.sandbox.protocol import LogLevel
from autowasm.sandbox.state import LogLine
from autowasm.sandbox.vm import StartFailure, Vm
from tests.parts import ports
from tests.parts.filteringenvoy import (
    DEADLINE,
    LOG,
    MASK,
    NODE,
    Pacer,
    Unpaced,
    address_of,
    awaited_lines,
    bootstrap_of,
    connect,
    masked_line,
    plugin_of,
    started,
)

IDLE_SECONDS = 1.0
"""Seconds that a filter may hold a stream in these comparisons, on both sides."""
_HTTP = "type.googleapis.com/envoy.extensions.filters"
_PACE = 0.05
"""Seconds between the pieces of a body in the sandbox: long enough for callouts to be answered in between."""

_CASES = 24
"""Number of cases that one Envoy runs, one after another."""

Pair = tuple[str, str]


class Named(Protocol):
    """A case of any kind."""

    @property
    def name(self) -> str:
        """Another one for each case."""


_C = TypeVar("_C", bound=Named)
_O = TypeVar("_O")


@dataclass(frozen=True)
class Case:
    """A filter, its configuration, and the requests that it gets, one after another.

    `clusters` are those that the filter may call: the answers in the sandbox, and the response of a real server for Envoy.
    """

    name: str
    module: bytes
    configuration: str = ""
    requests: Sequence[Request] = (Request(),)
    response: Response = field(
        default_factory=lambda: Response(200, (("content-length", "2"),), (b"ok",))
    )
    clusters: Mapping[str, Answering] = field(default_factory=dict)
    root_id: str = ""
    vm_configuration: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    failure_policy: FailurePolicy = FailurePolicy.CLOSED
    allow_on_headers_stop_iteration: bool = False
    body_limit: int = 1024 * 1024

    @property
    def plugin(self) -> Plugin:
        """The plugin in the form of the sandbox."""
        return Plugin(
            name=self.name,
            root_id=self.root_id,
            vm_id=f"vm-{self.name}",
            configuration=self.configuration.encode() if self.configuration else None,
            vm_configuration=self.vm_configuration.encode() if self.vm_configuration else None,
            environment=self.environment,
            failure_policy=self.failure_policy,
            allow_on_headers_stop_iteration=self.allow_on_headers_stop_iteration,
        )


@dataclass(frozen=True)
class Passed:
    """One message on the wire: the first line's parts, headers in order, body, trailers."""

    first: tuple[str, ...]
    headers: tuple[Pair, ...]
    body: bytes
    trailers: tuple[Pair, ...] = ()
    is_complete: bool = True


@dataclass(frozen=True)
class Observed:
    """The result of a case: the requests that the service received in full, the response to each, and the filter's log."""

    forwarded: tuple[Passed, ...]
    answers: tuple[Passed | None, ...]
    log: tuple[str, ...]


# --- common to both

MASKED = {
    "x-request-id": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "date": re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} GMT"),
    "x-envoy-upstream-service-time": re.compile(r"\d+"),
}
_OF_THE_CODEC = frozenset({"transfer-encoding", "connection"})
"""Headers that the HTTP/1 codec writes for a message, which the sandbox does not encode."""


def _masked(headers: Sequence[Pair]) -> tuple[Pair, ...]:
    return tuple(
        (name, MASK if name in MASKED and MASKED[name].fullmatch(value) else value)
        for name, value in headers
        if name not in _OF_THE_CODEC and (name, value) != ("content-length", "0")
    )


def line_of(line: LogLine) -> str:
    """A log line of the sandbox, in the form of Envoy's in `log_lines`."""
    message = line.message.decode("utf-8", "surrogateescape")
    return masked_line(f"{line.level.name.lower()}{line.prefix}: {message}")


# --- the sandbox

_compiled: dict[bytes, Compiled] = {}
atexit.register(_compiled.clear)  # wasmtime reports objects that are left when the interpreter ends


def compiled(module: bytes) -> Compiled:
    """The module, compiled once in this process."""
    if module not in _compiled:
        _compiled[module] = compile_bytes(make_engine(), module)
    return _compiled[module]


def in_sandbox(case: Case, version: str) -> Observed:
    """Run a case in the sandbox, as the Envoy of this version. Raises AssertionError if it does not start."""
    vm = Vm(
        compiled(case.module),
        case.plugin,
        limits=SandboxLimits(body_bytes=case.body_limit),
        envoy=envoy_version(version),
        clusters=case.clusters,
        properties={"xds": {"node": NODE}},
        log_level=LogLevel.TRACE,
    )
    started = vm.start()
    assert not isinstance(started, StartFailure), started
    exchanges = [
        exchange(
            vm,
            replace(request, pace=_PACE),
            replace(case.response, pace=_PACE),
            idle_seconds=IDLE_SECONDS,
            properties={"xds": _chain(case)},
        )
        for request in case.requests
    ]
    return Observed(
        tuple(each for each in map(_forwarded, exchanges) if each is not None),
        tuple(_answered(each) for each in exchanges),
        tuple(line_of(each) for each in vm.log.since(0)),
    )


def _chain(case: Case) -> dict[str, Any]:
    return {"cluster_name": f"{attributes.CLUSTER}-{case.name}", "virtual_host_name": "all"}


def _forwarded(each: Exchange) -> Passed | None:
    if each.request is None or not each.request.is_complete:
        return None
    first = tuple(next(iter(each.request.values(name)), "") for name in (":method", ":path"))
    headers = [
        ("host" if name == ":authority" else name, value)
        for name, value in each.request.headers
        if name == ":authority" or not name.startswith(":")
    ]
    return _passed(each.request, first, headers)


def _answered(each: Exchange) -> Passed | None:
    if each.response is None:
        return None
    headers = [pair for pair in each.response.headers if not pair[0].startswith(":")]
    return _passed(each.response, (str(each.response.status),), headers)


def _passed(message: Message, first: tuple[str, ...], headers: Sequence[Pair]) -> Passed:
    return Passed(first, _masked(headers), message.body, message.trailers, message.is_complete)


# --- Envoy


@dataclass
class _Service:
    """A server on a raw socket, which answers every request with `response` and records the requests."""

    response: Response
    pacer: Pacer
    delay: float = 0.0
    got: list[Passed] = field(default_factory=list)
    host: str = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["_Service"]:
        server = await asyncio.start_server(self._serve, ports.LOOPBACK, 0)
        self.host = f"{ports.LOOPBACK}:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (message := await _read(reader, is_request=True)) is not None:
                if message.is_complete:
                    self.got.append(message)
                await asyncio.sleep(self.delay)
                is_head = message.first[0] == "HEAD"
                await _write(writer, self.response, self.pacer, is_head=is_head)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _read(
    reader: asyncio.StreamReader, *, is_request: bool, is_head: bool = False
) -> Passed | None:
    """A message from the wire; None at the end of the connection. A truncated message is marked as not complete."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("utf-8", "surrogateescape")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    line, *rest = head[:-4].split("\r\n")
    parts = line.split(" ", 2)
    headers = [_pair(each) for each in rest]
    found = dict(headers)
    body, complete = b"", True
    trailers: tuple[Pair, ...] = ()
    try:
        if "chunked" in found.get("transfer-encoding", ""):
            body, trailers, complete = await _read_chunks(reader)
        elif int(found.get("content-length", 0)) and not is_head:
            body = await reader.readexactly(int(found["content-length"]))
        elif not is_request and "content-length" not in found and parts[1] not in ("204", "304"):
            body = await reader.read()
    except asyncio.IncompleteReadError as error:
        body, complete = error.partial, False
    first = (parts[0], parts[1]) if is_request else (parts[1],)
    return Passed(first, _masked(headers), body, trailers, complete)


async def _read_chunks(reader: asyncio.StreamReader) -> tuple[bytes, tuple[Pair, ...], bool]:
    body = bytearray()
    try:
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        trailers = []
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            trailers.append(_pair(line[:-2].decode("utf-8", "surrogateescape")))
    except (asyncio.IncompleteReadError, ConnectionError):
        return bytes(body), (), False
    return bytes(body), tuple(trailers), True


def _pair(line: str) -> Pair:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


async def _write(
    writer: asyncio.StreamWriter, response: Response, pacer: Pacer, *, is_head: bool
) -> None:
    head = f"HTTP/1.1 {response.status} X\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in response.headers)
    await pacer.write(writer, f"{head}\r\n".encode("utf-8", "surrogateescape"))
    if not is_head:
        await _write_body(writer, response, pacer)


async def _write_body(
    writer: asyncio.StreamWriter, message: Request | Response, pacer: Pacer
) -> None:
    is_chunked = any(name == "transfer-encoding" for name, _ in message.headers)
    for piece in message.body:
        await pacer.write(writer, b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
    if is_chunked:
        trailers = "".join(f"{name}: {value}\r\n" for name, value in message.trailers)
        writer.write(f"0\r\n{trailers}\r\n".encode("utf-8", "surrogateescape"))
    await writer.drain()


async def _ask(port: int, request: Request, pacer: Pacer) -> Passed | None:
    reader, writer = await connect(port)
    head = f"{request.method} {request.path} HTTP/1.1\r\nhost: {request.authority}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request.headers)
    try:
        with suppress(ConnectionError):  # Envoy may answer early, and close
            await pacer.write(writer, f"{head}\r\n".encode("utf-8", "surrogateescape"))
            await _write_body(writer, request, pacer)
        async with asyncio.timeout(DEADLINE):
            return await _read(reader, is_request=False, is_head=request.method == "HEAD")
    finally:
        writer.close()


async def in_envoy(
    version: str, cases: Sequence[Case], expected: Mapping[str, Observed], directory: Path
) -> dict[str, Observed]:
    """Run all cases in one Envoy of this version.

    Waits for as many log lines as `expected` has; some of them come after the answer.
    """
    pacer = Pacer(directory / LOG)
    directory.mkdir(parents=True, exist_ok=True)
    for case in cases:
        (directory / f"{case.name}.wasm").write_bytes(case.module)
    async with AsyncExitStack() as stack:
        services = {}
        for case in cases:
            services[case.name] = await stack.enter_async_context(
                _Service(case.response, pacer).running()
            )
        clusters = {f"{attributes.CLUSTER}-{name}": each.host for name, each in services.items()}
        for name, answer in _answers(cases).items():
            body = (answer.body,) if answer.body else ()
            response = Response(answer.status, answer.headers, body, answer.trailers)
            service = _Service(response, Unpaced(pacer.log), delay=answer.delay)
            server = await stack.enter_async_context(service.running())
            clusters[name] = server.host

        def bootstrap(used: Sequence[int]) -> str:
            listeners = [
                _listener(case, port, directory) for case, port in zip(cases, used, strict=True)
            ]
            return json.dumps(bootstrap_of(listeners, clusters))

        process, used = await started(version, len(cases), bootstrap, directory)
        pacer.envoy = process
        async with process:
            answers: dict[str, list[Passed | None]] = {}
            for case, port in zip(cases, used, strict=True):
                await process.check()  # a filter can crash Envoy
                answers[case.name] = [await _ask(port, each, pacer) for each in case.requests]
            wanted = {name: len(each.log) for name, each in expected.items()}
            lines = await awaited_lines(process.log, wanted)
    return {
        case.name: Observed(
            tuple(services[case.name].got),
            tuple(answers[case.name]),
            tuple(lines[case.name]),
        )
        for case in cases
    }


def _answers(cases: Sequence[Case]) -> dict[str, HttpAnswer]:
    """The answers of the clusters of all cases."""
    found: dict[str, HttpAnswer] = {}
    for case in cases:
        for name, answer in case.clusters.items():
            assert name not in found, "a cluster of its own for each case"
            assert isinstance(answer, HttpAnswer), "one answer for each cluster here"
            found[name] = answer
    return found


def _listener(case: Case, port: int, directory: Path) -> dict[str, Any]:
    plugin = plugin_of(case.plugin, directory / f"{case.name}.wasm")
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": f"{attributes.CLUSTER}-{case.name}"},
    }
    manager = {
        "@type": f"{_HTTP}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": case.name,
        "stream_idle_timeout": f"{IDLE_SECONDS}s",
        "http_protocol_options": {"enable_trailers": True},
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}],
        },
        "http_filters": [
            {
                "name": "wasm",
                "typed_config": {"@type": f"{_HTTP}.http.wasm.v3.Wasm", "config": plugin},
            },
            {"name": "router", "typed_config": {"@type": f"{_HTTP}.http.router.v3.Router"}},
        ],
    }
    return {
        "name": case.name,
        "address": address_of(f"{ports.LOOPBACK}:{port}"),
        "per_connection_buffer_limit_bytes": case.body_limit,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }


def difference(real: object, ours: object) -> str:
    """The differences between two observations, as a diff; empty if there are none."""
    before, after = (pformat(each, width=150).splitlines() for each in (real, ours))
    return "\n".join(unified_diff(before, after, "envoy", "sandbox", lineterm="", n=1))


async def differences(
    cases: Mapping[str, Sequence[_C]],
    directory: Path,
    *,
    in_sandbox: Callable[[_C, str], _O],
    in_envoy: Callable[
        [str, Sequence[_C], Mapping[str, _O], Path], Coroutine[None, None, dict[str, _O]]
    ],
) -> str:
    """The differences between the sandbox and Envoy for all cases, in each version of `cases`; empty if there are none.

    Several Envoys run side by side, each with some of the cases: most of the time passes while filters hold streams.
    """
    # All cases run in the sandbox first: it blocks the event loop, and idle streams in Envoy would time out.
    ours = {
        version: {each.name: in_sandbox(each, version) for each in given}
        for version, given in cases.items()
    }
    assert all(len(ours[version]) == len(given) for version, given in cases.items())
    running: list[tuple[str, asyncio.Task[dict[str, _O]]]] = []
    async with asyncio.TaskGroup() as group:
        for version, given in cases.items():
            for name, some in _portions(version, given):
                expected = {each.name: ours[version][each.name] for each in some}
                work = in_envoy(version, some, expected, directory / name)
                running.append((version, group.create_task(work)))
    real: dict[str, dict[str, _O]] = {version: {} for version in cases}
    for version, task in running:
        real[version].update(task.result())
    return "\n".join(
        f"{version} {name}\n{text}"
        for version, found in ours.items()
        for name, each in found.items()
        if (text := difference(real[version][name], each))
    )


def _portions(version: str, cases: Sequence[_C]) -> Iterator[tuple[str, Sequence[_C]]]:
    """The cases of each Envoy, and its name."""
    for first in range(0, len(cases), _CASES):
        yield f"{version}-{first}", cases[first : first + _CASES]


async def http_differences(cases: Mapping[str, Sequence[Case]], directory: Path) -> str:
    """`differences` of HTTP filters."""
    return await differences(cases, directory, in_sandbox=in_sandbox, in_envoy=in_envoy)
