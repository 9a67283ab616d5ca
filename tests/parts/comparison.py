"""The same filter with the same requests in a real Envoy and in the sandbox, and what each of them did.

Envoy runs once for many cases, with a listener, a service and a VM for each. The service and the client are raw sockets, so
that headers are compared as they are on the wire, in order. Invariant: an `Observed` has nothing of the machine in it: what
differs from run to run (dates, request ids, durations) is masked in both.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autowasm.envoyversion import envoy_version
from autowasm.sandbox import attributes
from autowasm.sandbox.callouts import Answering, HttpAnswer
from autowasm.sandbox.engine import Compiled, make_engine
from autowasm.sandbox.engine import compile_module as compile_bytes
from autowasm.sandbox.http import Exchange, exchange
from autowasm.sandbox.logs import LogLine
from autowasm.sandbox.message import Message, Request, Response
from autowasm.sandbox.plugin import FailurePolicy, Plugin, SandboxLimits
from autowasm.sandbox.protocol import LogLevel
from autowasm.sandbox.vm import StartFailure, Vm
from tests.parts import ports, provision
from tests.parts.process import PORT_ATTEMPTS, Process, ProcessError

IDLE_SECONDS = 1.0
"""How long a filter may hold a stream in these comparisons, in both."""
_HTTP = "type.googleapis.com/envoy.extensions.filters"
_HTTP_OPTIONS = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_DEADLINE = 30.0
_PACE = 0.05
"""Seconds between the pieces of a body."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """A filter, its configuration, and requests that it gets one after another.

    `clusters` are those that the filter may call: the answers in the sandbox, and the response of a real server there.
    `fails_at_start` marks a filter that both must refuse.
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
        """As the sandbox has it."""
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
    """What became of a case: the requests that the service got whole, what the client got for each, and the filter's log."""

    forwarded: tuple[Passed, ...]
    answers: tuple[Passed | None, ...]
    log: tuple[str, ...]


# --- what both have in common

_MASKED = {
    "x-request-id": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "date": re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} GMT"),
    "x-envoy-upstream-service-time": re.compile(r"\d+"),
}
_MASK = "(masked)"
_OF_THE_CODEC = frozenset({"transfer-encoding", "connection"})
"""Headers that the HTTP/1 codec writes for a message, which the sandbox does not encode."""


def _masked(headers: Sequence[Pair]) -> tuple[Pair, ...]:
    return tuple(
        (name, _MASK if name in _MASKED and _MASKED[name].fullmatch(value) else value)
        for name, value in headers
        if name not in _OF_THE_CODEC and (name, value) != ("content-length", "0")
    )


_IDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DATES = re.compile(r"[A-Z][a-z]{2},%20\d\d%20[A-Z][a-z]{2}%20\d{4}%20[\d:]{8}%20GMT")


_OF_THE_MACHINE = re.compile(
    r"(property (?:connection.id|connection_id|upstream.local_address|upstream.address|upstream.port|source.address|"
    r"source.port|destination.address|destination.port|request.time|request.duration|response.backend_latency|"
    r"upstream.cx_pool_ready_duration) -> 0 ).*"
)


def _masked_line(line: str) -> str:
    line = _OF_THE_MACHINE.sub(r"\1(value)", line)
    return _DATES.sub("(date)", _IDS.sub("(id)", line))


def line_of(line: LogLine) -> str:
    """A line of the sandbox as `log_lines` has those of Envoy."""
    message = line.message.decode("utf-8", "surrogateescape")
    return _masked_line(f"{line.level.name.lower()}{line.prefix}: {message}")


# --- the sandbox

_engines: dict[str, Any] = {}
_compiled: dict[bytes, Compiled] = {}


def compiled(module: bytes) -> Compiled:
    """The module, compiled once in this process."""
    if module not in _compiled:
        engine = _engines.setdefault("engine", make_engine())
        _compiled[module] = compile_bytes(engine, module)
    return _compiled[module]


def in_sandbox(case: Case, version: str) -> Observed:
    """Run a case in the sandbox, as the Envoy of this version. Raises AssertionError if it does not start."""
    vm = Vm(
        compiled(case.module),
        case.plugin,
        limits=SandboxLimits(body_bytes=case.body_limit),
        envoy=envoy_version(version),
        clusters=case.clusters,
        properties={"xds": {"node": _NODE}},
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


_NODE: dict[str, Any] = {"id": "test-proxy", "cluster": "test", "metadata": {"NAME": "details"}}


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
    """A server on a raw socket, which answers every request with `response` and keeps what it got."""

    response: Response
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
                await _write(writer, self.response, is_head=message.first[0] == "HEAD")
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _read(
    reader: asyncio.StreamReader, *, is_request: bool, is_head: bool = False
) -> Passed | None:
    """A message from the wire; None at the end of the connection. What breaks off is not complete."""
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


async def _write(writer: asyncio.StreamWriter, response: Response, *, is_head: bool) -> None:
    head = f"HTTP/1.1 {response.status} X\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in response.headers)
    writer.write(f"{head}\r\n".encode("utf-8", "surrogateescape"))
    if not is_head:
        await _write_body(writer, response)


async def _write_body(writer: asyncio.StreamWriter, message: Request | Response) -> None:
    is_chunked = any(name == "transfer-encoding" for name, _ in message.headers)
    for piece in message.body:
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
        await writer.drain()
        await asyncio.sleep(_PACE)  # so that Envoy reads the pieces one by one
    if is_chunked:
        trailers = "".join(f"{name}: {value}\r\n" for name, value in message.trailers)
        writer.write(f"0\r\n{trailers}\r\n".encode("utf-8", "surrogateescape"))
    await writer.drain()


async def _ask(port: int, request: Request) -> Passed | None:
    reader, writer = await asyncio.open_connection(ports.LOOPBACK, port, limit=1024 * 1024)
    head = f"{request.method} {request.path} HTTP/1.1\r\nhost: {request.authority}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request.headers)
    writer.write(f"{head}\r\n".encode("utf-8", "surrogateescape"))
    try:
        with suppress(ConnectionError):  # Envoy may answer before it has all, and close
            await _write_body(writer, request)
        async with asyncio.timeout(_DEADLINE):
            return await _read(reader, is_request=False, is_head=request.method == "HEAD")
    finally:
        writer.close()


async def in_envoy(version: str, cases: Sequence[Case], directory: Path) -> dict[str, Observed]:
    """Run all cases in one Envoy of this version."""
    directory.mkdir(parents=True, exist_ok=True)
    for case in cases:
        (directory / f"{case.name}.wasm").write_bytes(case.module)
    async with AsyncExitStack() as stack:
        services = {}
        for case in cases:
            services[case.name] = await stack.enter_async_context(_Service(case.response).running())
        clusters = {f"{attributes.CLUSTER}-{name}": each.host for name, each in services.items()}
        for name, response in _callout_servers(cases).items():
            server = await stack.enter_async_context(_Service(response).running())
            clusters[name] = server.host

        def bootstrap(used: Sequence[int]) -> str:
            listeners = [
                _listener(case, port, directory) for case, port in zip(cases, used, strict=True)
            ]
            return json.dumps(bootstrap_of(listeners, clusters))

        process, used = await started(version, len(cases), bootstrap, directory)
        async with process:
            answers: dict[str, list[Passed | None]] = {}
            for case, port in zip(cases, used, strict=True):
                answers[case.name] = [await _ask(port, each) for each in case.requests]
            await asyncio.sleep(0.3)  # the log callback runs after the answer
            log = process.log.read_text(errors="surrogateescape")
    lines = log_lines(log, [case.name for case in cases])
    return {
        case.name: Observed(
            tuple(services[case.name].got),
            tuple(answers[case.name]),
            tuple(lines[case.name]),
        )
        for case in cases
    }


async def started(
    version: str, count: int, configuration: Callable[[Sequence[int]], str], directory: Path
) -> tuple[Process, list[int]]:
    """An Envoy that runs with `count` listeners, and their ports, for which `configuration` writes its bootstrap.

    Others may take a port in between: it is tried again then.
    """
    program = await asyncio.to_thread(provision.envoy, version)
    bootstrap, log = directory / "envoy.json", directory / "envoy.log"
    command: list[str | Path] = [program, "-c", bootstrap, "--concurrency", "1"]
    command += ["--disable-hot-restart", "--log-level", "info"]
    command += ["--component-log-level", "wasm:trace", "--log-format", "@@%t|%l|%n|%v"]
    for attempt in range(PORT_ATTEMPTS):
        used = ports.free_ports(count)
        bootstrap.write_text(configuration(used))
        log.unlink(missing_ok=True)
        process = Process(f"envoy {version}", command, log=log)

        async def up() -> bool:
            return "starting main dispatch loop" in await asyncio.to_thread(
                log.read_text, errors="replace"
            )

        try:
            await process.start(ready=up, timeout=_DEADLINE)
        except ProcessError as error:
            if not error.port_taken or attempt == PORT_ATTEMPTS - 1:
                raise
        else:
            return process, used
    raise AssertionError("unreachable")


def _callout_servers(cases: Sequence[Case]) -> dict[str, Response]:
    found: dict[str, Response] = {}
    for case in cases:
        for name, answer in case.clusters.items():
            assert name not in found, "a cluster of its own for each case"
            assert isinstance(answer, HttpAnswer), "one answer for each cluster here"
            body = (answer.body,) if answer.body else ()
            found[name] = Response(answer.status, answer.headers, body, answer.trailers)
    return found


_LINE = re.compile(r"\|wasm log(?P<prefix>( [^ ]+)*?): (?P<text>.*)\Z", re.DOTALL)


def log_lines(text: str, names: Sequence[str]) -> dict[str, list[str]]:
    """The lines of each filter on the thread that served requests, which configured the filter for itself."""
    entries = []
    for each in text.split("@@"):
        thread, _, rest = each.rstrip("\n").partition("|")
        level, _, rest = rest.partition("|")
        if found := _LINE.search(f"|{rest.partition('|')[2]}"):
            entries.append((thread, level, found["prefix"], found["text"]))
    lines: dict[str, list[str]] = {}
    for name in names:
        mine = [each for each in entries if each[2].endswith(f" vm-{name}")]
        main = mine[0][0] if mine else ""
        lines[name] = [
            _masked_line(f"{level}{prefix}: {message}")
            for thread, level, prefix, message in mine
            if thread != main
        ]
    return lines


def bootstrap_of(
    listeners: Sequence[Mapping[str, Any]], clusters: Mapping[str, str]
) -> dict[str, Any]:
    """Envoy's bootstrap with these listeners, and clusters by name and `address:port`."""
    return {
        "node": _NODE,
        "admin": {"address": address_of(f"{ports.LOOPBACK}:0")},
        "static_resources": {
            "listeners": listeners,
            "clusters": [_cluster(name, host) for name, host in clusters.items()],
        },
    }


def plugin_of(plugin: Plugin, module: Path) -> dict[str, Any]:
    """The `PluginConfig` of a plugin whose module is in a local file."""
    vm: dict[str, Any] = {
        "vm_id": plugin.vm_id,
        "runtime": "envoy.wasm.runtime.v8",
        "code": {"local": {"filename": str(module)}},
    }
    if plugin.vm_configuration:
        vm["configuration"] = _string(plugin.vm_configuration)
    if plugin.environment:
        vm["environment_variables"] = {"key_values": dict(plugin.environment)}
    found: dict[str, Any] = {"name": plugin.name, "root_id": plugin.root_id, "vm_config": vm}
    if plugin.failure_policy is FailurePolicy.DEPRECATED_OPEN:
        found["fail_open"] = True
    else:
        found["failure_policy"] = plugin.failure_policy.value
    if plugin.configuration:
        found["configuration"] = _string(plugin.configuration)
    if plugin.allow_on_headers_stop_iteration:
        found["allow_on_headers_stop_iteration"] = True
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


def _string(value: bytes) -> dict[str, str]:
    return {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": value.decode()}


def _cluster(name: str, host: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address_of(host)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _HTTP_OPTIONS,
                "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}},
            }
        },
    }


def address_of(host: str) -> dict[str, Any]:
    """`address:port` as Envoy has it."""
    address, _, port = host.rpartition(":")
    return {"socket_address": {"address": address, "port_value": int(port)}}
