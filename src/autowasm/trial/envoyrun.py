"""The same filter and requests in a real Envoy on this machine: its bootstrap, its process, and its results.

Envoy runs for some requests, one after the other, with a service and clusters that give the user's answers. Invariants:
every socket is on the loopback address, with given ports or ports that the kernel chooses; each wait has a deadline; the
process and its files are removed afterwards.

A module is a local file here, so a filter that does not start makes Envoy refuse its configuration and end: with a module from
wasmer it would continue and answer 503.
"""

import asyncio
import base64
import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from autowasm.errors import AutoWasmError
from autowasm.sandbox.clusteranswers import Answer, Answering, GrpcAnswer, HttpAnswer
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.plugin import FailurePolicy, Plugin
from autowasm.sandbox.protocol import LogLevel
from autowasm.text import shown
from autowasm.trial import http1
from autowasm.trial.http1 import Wire
from autowasm.trial.inputs import with_length
from autowasm.trial.trial import identified

START_SECONDS: Final = 60.0
"""Time until Envoy listens. Compiling a large module takes seconds."""
REQUEST_SECONDS: Final = 30.0
IDLE_SECONDS: Final = 5.0
"""How long the filter may hold the stream."""
_STOP_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.03
_MAX_LOG: Final = 16 * 1024 * 1024
_VERSION: Final = re.compile(r"/(\d+\.\d+\.\d+)[-/]")
_REFUSED: Final = re.compile(r"[Ww]asm|plugin")
LOOPBACK: Final = "127.0.0.1"
SERVICE: Final = "service"
_EXTENSIONS: Final = "type.googleapis.com/envoy.extensions"
_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class EnvoyFailed(AutoWasmError):
    """Envoy could not be run, for a reason that the filter did not cause."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The input of a run. `exchanges`: the requests, each with the response of the service."""

    module: bytes = field(repr=False)
    plugin: Plugin
    exchanges: Sequence[tuple[Request, Response]]
    clusters: Mapping[str, Answering]
    log_level: LogLevel


@dataclass(frozen=True, slots=True)
class Passed:
    """One completed request: `request` as the service received it in full, `response` as the client received it."""

    request: Wire | None
    response: Wire | None


@dataclass(frozen=True, slots=True)
class Observed:
    """The results of Envoy. `refusal`: its message if it refuses the filter; then nothing else is set.

    `exchanges` are in the order of `Setup.exchanges`. `log`: level and text of all lines of the filter.
    """

    version: str
    refusal: str = ""
    exchanges: tuple[Passed, ...] = ()
    log: tuple[tuple[str, str], ...] = ()


async def version_of(program: Path) -> str:
    """The version, such as 1.36.4. Raises EnvoyFailed if the program is not Envoy."""
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise EnvoyFailed(f"{program} cannot be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            output, complaint = await process.communicate()
    except TimeoutError as error:
        raise EnvoyFailed(f"{program} --version did not exit in time") from error
    finally:
        await _stop(process)
    found = _VERSION.search(output.decode(errors="replace"))
    if found is None:
        last = (complaint.decode(errors="replace").strip().splitlines() or [""])[-1]
        said = f": {shown(last, most=200)}" if last else ""
        raise EnvoyFailed(f"{program} --version did not report a release of Envoy{said}")
    return found[1]


def impossible(clusters: Mapping[str, Answering]) -> tuple[str, str] | None:
    """A cluster whose answers only the sandbox can give, and why; None: Envoy can also give all answers."""
    for name, answering in clusters.items():
        if name == SERVICE:
            return name, "--engine envoy uses this name for the service"
        if any(isinstance(each, GrpcAnswer) for each in _answers(answering)):
            return name, "--engine envoy cannot answer gRPC"
    return None


async def run(program: Path, version: str, setup: Setup) -> Observed:
    """Run Envoy for the requests of the setup. Raises EnvoyFailed."""
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(_folder())
        service = _Server([])
        ports = {SERVICE: await stack.enter_async_context(service.listening())}
        for name, answering in setup.clusters.items():
            server = _Server(_answers(answering))
            ports[name] = await stack.enter_async_context(server.listening())
        document = bootstrap(setup.plugin, folder / "module.wasm", ports, idle_seconds=IDLE_SECONDS)
        await asyncio.to_thread((folder / "module.wasm").write_bytes, setup.module)
        await asyncio.to_thread((folder / "envoy.json").write_text, json.dumps(document))
        envoy = _Envoy(program, folder, setup.log_level)
        await stack.enter_async_context(envoy.running())
        port = await envoy.port()
        if port is None:
            return Observed(version, refusal=await envoy.refusal())
        exchanges = []
        for request, response in setup.exchanges:
            service.begin([response])
            got = await _ask(port, identified(with_length(request)))
            await envoy.drain()
            forwarded = next((each for each in service.got if each.is_complete), None)
            exchanges.append(Passed(forwarded, got))
        lines = _lines(await envoy.text(), setup.plugin)
        return Observed(version, "", tuple(exchanges), lines)


@asynccontextmanager
async def _folder() -> AsyncIterator[Path]:
    """A temporary folder."""
    path = await asyncio.to_thread(tempfile.mkdtemp, prefix="wasmc-envoy-")
    try:
        yield Path(path)
    finally:
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


class _Envoy:
    """The process."""

    def __init__(self, program: Path, folder: Path, level: LogLevel) -> None:
        self._command = [
            *(str(program), "-c", str(folder / "envoy.json"), "--concurrency", "1"),
            *("--disable-hot-restart", "--log-level", "info", "--log-format", "@@%t|%l|%v"),
            *("--component-log-level", f"wasm:{level.name.lower()}"),
            *("--admin-address-path", str(folder / "admin")),
        ]
        self._admin = folder / "admin"
        self._log = folder / "log"
        self._process: asyncio.subprocess.Process | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        log = await asyncio.to_thread(self._log.open, "wb")
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise EnvoyFailed(f"{self._command[0]}: {error.strerror}") from error
        finally:
            log.close()
        try:
            yield
        finally:
            await _stop(self._process)

    async def port(self) -> int | None:
        """The address on which it listens; None if it has ended."""
        process = self._process
        try:
            async with asyncio.timeout(START_SECONDS):
                while process is not None and process.returncode is None:
                    if "starting main dispatch loop" in await self.text():
                        return await self._listener()
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise EnvoyFailed(f"Envoy was not listening after {START_SECONDS:g} s") from error
        return None

    async def _listener(self) -> int:
        document = json.loads(await self._get("/listeners?format=json"))
        address = document["listener_statuses"][0]["local_address"]["socket_address"]
        return int(address["port_value"])

    async def _get(self, path: str) -> bytes:
        host, _, port = (await asyncio.to_thread(self._admin.read_text)).rpartition(":")
        answer = await _exchange(int(port), f"GET {path} HTTP/1.1", [("host", host)])
        return answer.body if answer is not None else b""

    async def drain(self) -> None:
        """Wait for the log callback to reach the file: a thread of Envoy writes it after the response."""
        last = -1
        for _ in range(20):
            size = (await asyncio.to_thread(self._log.stat)).st_size
            active = b"http.wasmc.downstream_rq_active: 0" in await self._get(
                "/stats?filter=http.wasmc.downstream_rq_active"
            )
            if active and size == last:
                return
            last = size
            await asyncio.sleep(_POLL_SECONDS)

    async def text(self) -> str:
        """The log so far."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> str:
        with self._log.open("rb") as file:
            return file.read(_MAX_LOG).decode("utf-8", "surrogateescape")

    async def refusal(self) -> str:
        """The reason why it ended. Raises EnvoyFailed if the filter did not cause it."""
        text = await self.text()
        entries = [each.split("|", 2) for each in text.split("@@")]
        errors = [each[2].strip() for each in entries if len(each) == 3 and each[1] in _SEVERE]
        said = next((each for each in reversed(errors) if _REFUSED.search(each)), "")
        if not said:
            last = errors[-1] if errors else text[-300:]
            raise EnvoyFailed(f"Envoy does not start: {shown(last, most=300)}")
        return shown(said, most=300)


_SEVERE: Final = frozenset({"error", "critical"})


async def _stop(process: asyncio.subprocess.Process | None) -> None:
    if process is None or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class _Server:
    """A service or a cluster: answers requests in order, repeats the last answer, and records the requests."""

    def __init__(self, answers: Sequence[Response | Answer]) -> None:
        self.begin(answers)

    def begin(self, answers: Sequence[Response | Answer]) -> None:
        """Answer the next requests with these; the last is repeated."""
        self._answers = list(answers)
        self._given = 0
        self.got: list[Wire] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Its port."""
        server = await asyncio.start_server(self._serve, LOOPBACK, 0, limit=http1.MAX_HEAD)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (message := await http1.read(reader, is_request=True)) is not None:
                self.got.append(message)
                answer = self._answers[min(self._given, len(self._answers) - 1)]
                self._given += 1
                if not await _write(writer, answer, is_head=message.first[0] == "HEAD"):
                    break
        except (OSError, ValueError):
            pass  # Envoy closed the connection, or sent a message that is too large
        finally:
            writer.close()


async def _write(writer: asyncio.StreamWriter, answer: Response | Answer, *, is_head: bool) -> bool:
    """Whether the connection stays open."""
    if isinstance(answer, HttpAnswer):
        await asyncio.sleep(min(answer.delay, REQUEST_SECONDS))
        body = (answer.body,) if answer.body else ()
        response = with_length(Response(answer.status, answer.headers, body, answer.trailers))
    elif isinstance(answer, Response):
        response = answer
    else:
        return False
    pieces = () if is_head else response.body
    data = http1.encode(
        f"HTTP/1.1 {response.status} Status", response.headers, pieces, response.trailers
    )
    writer.write(data)
    await writer.drain()
    return any(name in {"content-length", "transfer-encoding"} for name, _ in response.headers)


def _answers(answering: Answering) -> list[Answer]:
    if isinstance(answering, Sequence):
        return list(answering)
    return [] if callable(answering) else [answering]


async def _ask(port: int, request: Request) -> Wire | None:
    line = f"{request.method} {request.path} HTTP/1.1"
    headers = [("host", request.authority), *request.headers]
    return await _exchange(
        port,
        line,
        headers,
        request.body,
        trailers=request.trailers,
        is_head=request.method == "HEAD",
    )


async def _exchange(
    port: int,
    line: str,
    headers: Sequence[tuple[str, str]],
    pieces: Sequence[bytes] = (),
    *,
    trailers: Sequence[tuple[str, str]] = (),
    is_head: bool = False,
) -> Wire | None:
    """A request on a connection of its own; None if it is closed without a response. Raises EnvoyFailed."""
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            reader, writer = await asyncio.open_connection(LOOPBACK, port, limit=http1.MAX_HEAD)
            try:
                writer.write(http1.encode(line, headers, pieces, trailers))
                with contextlib.suppress(ConnectionError):  # it may answer early, and close
                    await writer.drain()
                return await http1.read(reader, is_request=False, is_head=is_head)
            finally:
                writer.close()
    except TimeoutError as error:
        raise EnvoyFailed(f"no response from Envoy after {REQUEST_SECONDS:g} s") from error
    except (OSError, ValueError) as error:
        raise EnvoyFailed(f"cannot send the request to Envoy: {error}") from error


def _lines(text: str, plugin: Plugin) -> tuple[tuple[str, str], ...]:
    """The lines of the filter on the thread that served the request; Envoy starts the filter on its main thread, too."""
    prefixes = [f"wasm log{each}: " for each in (plugin.log_prefix, plugin.root_log_prefix)]
    found = []
    for entry in text.split("@@"):
        thread, _, rest = entry.partition("|")
        level, _, message = rest.partition("|")
        prefix = next((each for each in prefixes if message.startswith(each)), None)
        if prefix is not None:
            found.append((thread, level, message[len(prefix) :].removesuffix("\n")))
    main = found[0][0] if found else ""
    return tuple((level, message) for thread, level, message in found if thread != main)


def bootstrap(
    plugin: Plugin, module: Path, clusters: Mapping[str, int], *, idle_seconds: float
) -> dict[str, Any]:
    """`clusters`: ports by name, with one for SERVICE. `idle_seconds`: how long the filter may hold a stream."""
    manager = {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "wasmc",
        "stream_idle_timeout": f"{idle_seconds}s",
        "http_protocol_options": {"enable_trailers": True},
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": SERVICE}}],
                }
            ],
        },
        "http_filters": [
            {
                "name": "wasm",
                "typed_config": {
                    "@type": f"{_EXTENSIONS}.filters.http.wasm.v3.Wasm",
                    "config": plugin_config(plugin, module),
                },
            },
            {
                "name": "router",
                "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"},
            },
        ],
    }
    filter_ = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    }
    listener = {
        "name": "wasmc",
        "address": _address(0),
        "filter_chains": [{"filters": [filter_]}],
    }
    return {
        "node": {"id": "wasmc", "cluster": "wasmc"},
        "admin": {"address": _address(0)},
        "static_resources": {
            "listeners": [listener],
            "clusters": [_cluster(name, port) for name, port in clusters.items()],
        },
    }


def plugin_config(plugin: Plugin, module: Path) -> dict[str, Any]:
    """The `PluginConfig` of a plugin whose module is in a local file."""
    vm: dict[str, Any] = {
        "vm_id": plugin.vm_id,
        "runtime": "envoy.wasm.runtime.v8",
        "code": {"local": {"filename": str(module)}},
    }
    if plugin.vm_configuration is not None:
        vm["configuration"] = _bytes(plugin.vm_configuration)
    if plugin.environment:
        vm["environment_variables"] = {"key_values": dict(plugin.environment)}
    found: dict[str, Any] = {"name": plugin.name, "root_id": plugin.root_id, "vm_config": vm}
    if plugin.failure_policy is FailurePolicy.DEPRECATED_OPEN:
        found["fail_open"] = True
    else:
        found["failure_policy"] = plugin.failure_policy.value
    if plugin.configuration is not None:
        found["configuration"] = _bytes(plugin.configuration)
    return found


def _bytes(value: bytes) -> dict[str, str]:
    """Envoy unwraps a BytesValue as it does a StringValue, and a file may hold any bytes."""
    encoded = base64.b64encode(value).decode()
    return {"@type": "type.googleapis.com/google.protobuf.BytesValue", "value": encoded}


def _cluster(name: str, port: int) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            _OPTIONS: {
                "@type": f"type.googleapis.com/{_OPTIONS}",
                "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}},
            }
        },
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}
