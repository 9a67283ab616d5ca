"""An Envoy that runs filters from local files, one listener for each, and the log lines that each filter wrote.

Values that differ from run to run (dates, request ids, addresses, durations) are masked in the lines. Invariant: the
lines of a filter are those of the thread that serves its requests; Envoy also starts each filter in its main thread.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from autowasm.sandbox.headers import unpack
from autowasm.sandbox.plugin import FailurePolicy, Plugin
from tests.parts import ports, provision
from tests.parts.process import PORT_ATTEMPTS, Process, ProcessError

LOG = "envoy.log"
MASK = "(masked)"
NODE: dict[str, Any] = {"id": "test-proxy", "cluster": "test", "metadata": {"NAME": "details"}}
DEADLINE = 90.0
_NOTHING_SEEN_SECONDS = 0.3
_HTTP_OPTIONS = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


_IDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DATES = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} GMT")


_OF_THE_MACHINE = re.compile(
    r"(property (?:connection.id|connection_id|upstream.local_address|upstream.address|upstream.port|source.address|"
    r"source.port|destination.address|destination.port|request.time|request.duration|response.backend_latency|"
    r"upstream.cx_pool_ready_duration|response.total_size) -> 0 ).*"
)


_PAIRS = re.compile(r"( pairs \d -> 0 )(.+)\Z", re.DOTALL)


def _readable(found: re.Match[str]) -> str:
    """A header map that the filter got, as text, without the service's response time."""
    data = re.sub(
        rb"%([0-9A-F]{2})", lambda code: bytes.fromhex(code[1].decode()), found[2].encode()
    )
    shown = [
        f"{name.decode()}={MASK if name == _DURATION else value.decode(errors='replace')}"
        for name, value in unpack(data)
    ]
    return found[1] + ", ".join(shown)


_DURATION = b"x-envoy-upstream-service-time"


def masked_line(line: str) -> str:
    line = _PAIRS.sub(_readable, line)
    line = _OF_THE_MACHINE.sub(r"\1(value)", line)
    return _DATES.sub("(date)", _IDS.sub("(id)", line))


class Pacer:
    """Writes to Envoy piece by piece, and waits until Envoy has handled a piece before it writes the next.

    Envoy traces each callback of a filter in its log, so a piece is handled once the log has grown and stopped growing. An Envoy that
    waits for a processor has not read it yet: two pieces that wait in its socket would be one for the filter.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.envoy: Process | None = None
        """Set it once it runs."""

    async def write(self, writer: asyncio.StreamWriter, data: bytes, *, end: bool = False) -> None:
        """Write and wait; only for a moment if the log does not grow because the filter holds a stream and gets no callback."""
        before = seen = self._size()
        writer.write(data)
        await writer.drain()
        if end:
            writer.write_eof()
        await self.until_idle()
        with suppress(TimeoutError):
            async with asyncio.timeout(_NOTHING_SEEN_SECONDS):
                while seen == before:
                    await asyncio.sleep(0.01)
                    seen = self._size()
        while True:
            await asyncio.sleep(0.05)
            await self.until_idle()
            if seen == (seen := self._size()):
                return

    async def until_idle(self) -> None:
        """Return once all threads of Envoy wait for input. Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE):
            while self.envoy is not None and self.envoy.alive and _is_busy(self.envoy.pid):
                await asyncio.sleep(0.01)

    def _size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0


def _is_busy(process_id: int) -> bool:
    """Whether a thread of the process runs, waits for a processor, or is stopped: it does not wait for input."""
    for file in Path(f"/proc/{process_id}/task").glob("*/stat"):
        with suppress(OSError):  # the thread has ended
            if file.read_text().rpartition(")")[2].split()[0] != "S":
                return True
    return False


class Unpaced(Pacer):
    """Does not wait."""

    async def write(self, writer: asyncio.StreamWriter, data: bytes, *, end: bool = False) -> None:
        """Write at once."""
        writer.write(data)
        await writer.drain()


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a listener of an Envoy that has just started: its workers open them one by one."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await asyncio.open_connection(ports.LOOPBACK, port, limit=1024 * 1024)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)


async def started(
    version: str, count: int, configuration: Callable[[Sequence[int]], str], directory: Path
) -> tuple[Process, list[int]]:
    """A running Envoy with `count` listeners, and their ports; `configuration` returns its bootstrap for these ports.

    If another process takes one of the ports in between, it tries again.
    """
    program = await asyncio.to_thread(provision.envoy, version)
    bootstrap, log = directory / "envoy.json", directory / LOG
    command: list[str | Path] = [program, "-c", bootstrap, "--concurrency", "1"]
    command += ["--disable-hot-restart", "--log-level", "info"]
    command += ["--component-log-level", "wasm:trace", "--log-format", "@@%t|%l|%n|%v"]
    for attempt in range(PORT_ATTEMPTS):
        used = ports.free_ports(count)
        bootstrap.write_text(configuration(used))
        log.unlink(missing_ok=True)
        process = Process(f"envoy {version}", command, log=log)
        try:
            # Envoy compiles a module for each listener: minutes on a busy machine. Its log grows with each call of a filter.
            await process.start(
                ready=_is_up(log), timeout=DEADLINE, progress=lambda: log.stat().st_size
            )
        except ProcessError as error:
            if not error.port_taken or attempt == PORT_ATTEMPTS - 1:
                raise
        else:
            return process, used
    raise AssertionError("unreachable")


def _is_up(log: Path) -> Callable[[], Awaitable[bool]]:
    """Returns whether Envoy has started its workers. Reads only new text: the log has a line for each call of a filter."""
    wanted, size = b"starting workers", 0

    def is_found() -> bool:
        nonlocal size
        with log.open("rb") as file:
            file.seek(max(0, size - len(wanted)))
            text = file.read()
            size = file.tell()
        return wanted in text

    async def is_up() -> bool:
        return await asyncio.to_thread(is_found)

    return is_up


async def awaited_lines(log: Path, wanted: Mapping[str, int]) -> dict[str, list[str]]:
    """The lines of the filters by name, once there are as many as wanted, or those present at the deadline."""
    size = -1
    with suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE):
            while True:
                if size != (size := log.stat().st_size):
                    text = await asyncio.to_thread(log.read_text, errors="surrogateescape")
                    lines = log_lines(text, list(wanted))
                    if all(len(lines[name]) >= count for name, count in wanted.items()):
                        break
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)  # there may be too many
    text = await asyncio.to_thread(log.read_text, errors="surrogateescape")
    return log_lines(text, list(wanted))


_LINE = re.compile(r"\|wasm log(?P<prefix>( [^ :]+)*?): (?P<text>.*)\Z", re.DOTALL)


def log_lines(text: str, names: Sequence[str]) -> dict[str, list[str]]:
    """The lines of each filter on the thread that served requests, which configured the filter for itself."""
    entries = []
    main_thread = text[2:].partition("|")[
        0
    ]  # the thread that starts Envoy, and the filters' canary VMs
    for each in text.split("@@"):
        thread, _, rest = each.rstrip("\n").partition("|")
        level, _, rest = rest.partition("|")
        if found := _LINE.search(f"|{rest.partition('|')[2]}"):
            entries.append((thread, level, found["prefix"], found["text"]))
    lines: dict[str, list[str]] = {}
    for name in names:
        mine = [each for each in entries if each[2].endswith(f" vm-{name}")]
        lines[name] = [
            masked_line(f"{level}{prefix}: {message}")
            for thread, level, prefix, message in mine
            if thread != main_thread
        ]
    return lines


def bootstrap_of(
    listeners: Sequence[Mapping[str, Any]], clusters: Mapping[str, str]
) -> dict[str, Any]:
    """Envoy's bootstrap with these listeners, and clusters by name and `address:port`."""
    return {
        "node": NODE,
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
