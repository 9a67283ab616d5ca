"""Runs the same filter with the same TCP connection in a real Envoy, before its TCP proxy, and in the sandbox.

Like `comparison.py`, for network filters: compares the data that each side got, and the log of the filter.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autowasm.envoyversion import envoy_version
from autowasm.sandbox.plugin import FailurePolicy, Plugin
from autowasm.sandbox.tcp import Sent, Side, converse
from autowasm.sandbox.vm import StartFailure, Vm
from tests.parts import comparison, ports
from tests.parts.filteringenvoy import (
    LOG,
    NODE,
    Pacer,
    address_of,
    awaited_lines,
    bootstrap_of,
    connect,
    plugin_of,
    started,
)

_PACE = 0.15
_NETWORK = "type.googleapis.com/envoy.extensions.filters.network"


@dataclass(frozen=True)
class TcpCase:
    """A filter, its configuration, and the data that both sides send, in order; then the client closes."""

    name: str
    module: bytes
    configuration: str = ""
    sent: Sequence[Sent] = (Sent(Side.CLIENT, b"hello"), Sent(Side.SERVICE, b"world"))
    failure_policy: FailurePolicy = FailurePolicy.CLOSED

    @property
    def plugin(self) -> Plugin:
        """The plugin in the form of the sandbox."""
        return Plugin(
            name=self.name,
            vm_id=f"vm-{self.name}",
            configuration=self.configuration.encode() if self.configuration else None,
            failure_policy=self.failure_policy,
        )


@dataclass(frozen=True)
class TcpObserved:
    """The data that each side got, whether the client saw the end, and the filter's log."""

    to_service: bytes
    to_client: bytes
    log: tuple[str, ...]


def in_sandbox(case: TcpCase, version: str) -> TcpObserved:
    """Run a case in the sandbox. Raises AssertionError if the filter does not start."""
    vm = Vm(
        comparison.compiled(case.module),
        case.plugin,
        envoy=envoy_version(version),
        properties={"xds": {"node": NODE}},
    )
    started = vm.start()
    assert not isinstance(started, StartFailure), started
    found = converse(
        vm,
        [replace(each, delay=_PACE) for each in case.sent],
        properties={"xds": {"cluster_name": case.name}},
    )
    return TcpObserved(
        found.to_service,
        found.to_client,
        tuple(comparison.line_of(each) for each in vm.log.since(0)),
    )


@dataclass
class _Service:
    got: bytearray = field(default_factory=bytearray)
    writer: asyncio.StreamWriter | None = None
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.connected.set()
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                self.got += data
        self.ended.set()


async def in_envoy(
    version: str, cases: Sequence[TcpCase], expected: Mapping[str, TcpObserved], directory: Path
) -> dict[str, TcpObserved]:
    """Run all cases in one Envoy of this version. Waits for as many log lines as `expected` has."""
    pacer = Pacer(directory / LOG)
    directory.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[bytes, bytes]] = {}
    async with AsyncExitStack() as stack:
        services: dict[str, _Service] = {}
        clusters = {}
        for case in cases:
            (directory / f"{case.name}.wasm").write_bytes(case.module)
            service = services[case.name] = _Service()
            server = await asyncio.start_server(service.serve, ports.LOOPBACK, 0)
            stack.callback(server.close)
            clusters[case.name] = f"{ports.LOOPBACK}:{server.sockets[0].getsockname()[1]}"

        def bootstrap(used: Sequence[int]) -> str:
            listeners = [
                _listener(case, port, directory) for case, port in zip(cases, used, strict=True)
            ]
            return json.dumps(bootstrap_of(listeners, clusters))

        process, used = await started(version, len(cases), bootstrap, directory)
        pacer.envoy = process
        async with process:
            for case, port in zip(cases, used, strict=True):
                client = await _converse(port, case.sent, services[case.name], pacer)
                found[case.name] = (bytes(services[case.name].got), client)
            wanted = {name: len(each.log) for name, each in expected.items()}
            lines = await awaited_lines(process.log, wanted)
    return {case.name: TcpObserved(*found[case.name], tuple(lines[case.name])) for case in cases}


async def _converse(port: int, sent: Sequence[Sent], service: _Service, pacer: Pacer) -> bytes:
    reader, writer = await connect(port)
    with suppress(OSError):
        await pacer.write(writer, b"")
    got = bytearray()

    async def collect() -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                got.extend(data)

    collecting = asyncio.create_task(collect())
    try:
        with suppress(OSError):  # a filter may close the connection at any time
            for each in sent:
                out = writer
                if each.side is Side.SERVICE:
                    async with asyncio.timeout(5):
                        await service.connected.wait()
                    assert service.writer is not None
                    out = service.writer
                await pacer.write(out, each.data, end=each.end)
            if not any(each.end and each.side is Side.CLIENT for each in sent):
                writer.write_eof()
            await pacer.until_idle()
            async with asyncio.timeout(1):  # a filter may hold the connection for good
                await service.ended.wait()
                if service.writer is not None:
                    service.writer.close()
                await asyncio.shield(collecting)
    finally:
        writer.close()
        collecting.cancel()
        if service.writer is not None:
            service.writer.close()
    return bytes(got)


def _listener(case: TcpCase, port: int, directory: Path) -> dict[str, Any]:
    plugin = plugin_of(case.plugin, directory / f"{case.name}.wasm")
    proxy = {
        "@type": f"{_NETWORK}.tcp_proxy.v3.TcpProxy",
        "stat_prefix": case.name,
        "cluster": case.name,
    }
    return {
        "name": case.name,
        "address": address_of(f"{ports.LOOPBACK}:{port}"),
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "wasm",
                        "typed_config": {"@type": f"{_NETWORK}.wasm.v3.Wasm", "config": plugin},
                    },
                    {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy},
                ]
            }
        ],
    }
