"""The log of a start on a terminal: the first line reports the start of wasmer, not a blocked loop."""

import asyncio
import json
from pathlib import Path
from typing import Any

from autowasm.limits import LoopLimits
from tests.parts import envoy, ports, wasmer

_STARTS = 5


def _is_blocked(line: dict[str, Any]) -> bool:
    """Whether the line reports work that blocked the loop. On a busy machine, an iteration also waits for a processor."""
    return line["event"] == "loop blocked" and (
        line["seconds"] * line["processor"] > LoopLimits().blocked
    )


async def test_every_start_logs_started_before_any_blocked_loop(tmp_path: Path) -> None:
    template = envoy.listeners_yaml([ports.free_port()], cluster="web")
    arguments = ("--log-format", "json", "--log-level", "debug")
    async with wasmer.standalone(tmp_path, template=template, arguments=arguments) as server:
        for _ in range(_STARTS - 1):
            await server.process.stop()
            await server.start()
        text = await asyncio.to_thread(server.process.log.read_text)
    starts: list[list[dict[str, Any]]] = [[]]
    for line in map(json.loads, text.splitlines()):
        starts[-1].append(line)
        if line["event"] == "stopped":
            starts.append([])
    assert len(starts) == _STARTS
    for lines in starts:
        events = [line["event"] for line in lines]
        assert events[:3] == ["blob port open", "admin port open", "started"], events
        assert not [line for line in lines[: events.index("ready")] if _is_blocked(line)]
        stacks = [line["stack"] for line in lines if line["event"] == "loop blocked"]
        assert not [stack for stack in stacks if "importlib" in stack], "imported on the loop"
