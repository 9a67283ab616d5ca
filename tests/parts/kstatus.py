"""The status of objects as Helm and Flux compute it, by their own code: the program in `../assets/gitops/kstatus/`.

Not a client of a cluster: the caller passes objects that it has read.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.parts import provision
from tests.parts.clients import inherited


@dataclass(frozen=True, slots=True)
class Health:
    """`Current`, `InProgress`, `Failed` or `Terminating`, and why."""

    status: str
    message: str


async def compute(
    objects: Sequence[Mapping[str, Any]], *, expressions: Mapping[str, str] | None = None
) -> list[Health]:
    """The answer for each object: of kstatus' Compute, or of Flux with these `healthCheckExprs` (current, failed, inProgress)."""
    process = await asyncio.create_subprocess_exec(
        await asyncio.to_thread(provision.kstatus),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=inherited(),
    )
    question = json.dumps({"objects": objects, "expressions": expressions}).encode()
    async with asyncio.timeout(60):
        out, err = await process.communicate(question)
    if process.returncode:
        raise ValueError(err.decode())
    return [Health(one["status"], one["message"]) for one in json.loads(out)]
