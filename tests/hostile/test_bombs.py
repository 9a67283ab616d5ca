"""Eight bombs of each kind at once, through real fetches of a real process: its memory stays below its limit."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile import inputs
from tests.hostile.conftest import autowasm
from tests.hostile.origin import Origin, chunked, endless_headers
from tests.parts import wat
from tests.parts.wasmer import Wasmer

MIB = 1024 * 1024
AT_ONCE = 8
BOUND = AT_ONCE * 32 * MIB + 96 * MIB

KINDS: dict[str, Callable[[], bytes]] = {
    "gzip": inputs.gzip_bomb,
    "zstd": inputs.zstd_bomb,
    "zstd window": inputs.zstd_window_bomb,
    "tar": inputs.tar_bomb,
    "nested": inputs.nested_bomb,
    "8 EiB": inputs.tar_with_claimed_size,
    "million entries": inputs.million_entries,
    "name section of 100 MB": lambda: inputs.with_names(1, size=100 * MIB),
    "a million names": lambda: inputs.with_names(1_200_000, size=30 * MIB),
    "half a million functions": lambda: inputs.with_functions(500_000) + b"\0",
    "zeros": lambda: wat.padded(inputs.hello(), size=32 * MIB + 1),
}


def memory(process: int) -> tuple[int, int]:
    """Current and peak memory, in bytes."""
    found = {}
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(rest.split()[0]) * 1024
    return found["VmRSS"], found["VmHWM"]


async def refused(server: Wasmer, names: list[str]) -> list[str]:
    """The statuses once all have failed."""
    reasons = []
    for name in names:
        async with asyncio.timeout(150):
            while True:
                status = await asyncio.to_thread(server.status, name, namespace=name)
                if status.get("phase") == "Failed":
                    break
                await server.process.check()
                await asyncio.sleep(0.05)
        reasons.append(status["message"])
    return reasons


async def arrive(server: Wasmer, hosts: list[Origin], kind: str) -> tuple[list[str], int]:
    """Eight AutoWasms of eight namespaces, two on each host: the messages, and the memory used above idle."""
    process = server.process.pid
    # /proc/PID/clear_refs 5 resets the peak.
    await asyncio.to_thread(Path(f"/proc/{process}/clear_refs").write_text, "5")
    idle, _ = memory(process)
    names = [f"bomb{number}" for number in range(AT_ONCE)]
    body = await asyncio.to_thread(KINDS[kind]) if kind in KINDS else b""
    for number, name in enumerate(names):
        host, path = hosts[number % len(hosts)], f"/{name}"
        if kind == "endless":
            url = host.act(path, chunked(bytes(MIB)))
        elif kind == "headers":
            url = host.act(path, endless_headers)
        else:
            url = host.serve(path, body)
        server.apply(autowasm(name, namespace=name, url=url))
    messages = await refused(server, names)
    assert all(host.requests.total() >= 2 for host in hosts)
    return messages, memory(process)[1] - idle


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [*KINDS, "endless", "headers"])
async def test_eight_bombs_at_once_stay_below_their_memory(
    server: Wasmer, hosts: list[Origin], kind: str
) -> None:
    messages, taken = await arrive(server, hosts, kind)
    assert all(message and message.isprintable() for message in messages)
    print(f"{kind}: {taken / MIB:.0f} MiB over idle; {messages[0][:150]}")
    assert taken < BOUND, f"{kind}: {taken / MIB:.0f} MiB"
    with contextlib.suppress(FileNotFoundError):  # nothing is left on the disk, either
        left = sum(file.stat().st_size for file in (server.directory / "cache").rglob("*.object"))
        assert left == 0
