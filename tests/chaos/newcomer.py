"""A Pod's Envoy that starts during a fault: it must become ready and answer with the filter's header.

Invariant: it is a new process with an empty cache, so it fetches its module from the replicas.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.parts import wire
from tests.parts.fleet import Fleet
from tests.parts.istio import sidecar

NAME = "newcomer"
ADDRESS = "127.0.0.25"
LABELS = {"app": NAME}


async def add_newcomers_service(fleet: Fleet) -> None:
    """Run once for a fleet: creates the service behind the new sidecars."""
    await fleet.istiod.add_workload(
        NAME, labels=LABELS, address=ADDRESS, port=fleet.port, service=fleet.service
    )


@asynccontextmanager
async def newcomer(fleet: Fleet, *, row: str, timeout: float = 90) -> AsyncIterator[None]:
    """Start one, wait until its answers carry the filter's header. `NAME` is published before. Raises TimeoutError."""
    directory = fleet.installation.directory / f"{NAME}-{row}"
    async with sidecar(
        fleet.istiod, directory, name=NAME, labels=LABELS, address=ADDRESS, timeout=timeout
    ):
        async with asyncio.timeout(timeout):
            while not await _answers(fleet.port):
                await asyncio.sleep(0.05)
        yield


async def _answers(port: int) -> bool:
    try:
        answer = await wire.get(f"http://{ADDRESS}:{port}/")
    except OSError:
        return False
    return answer.status == 200 and answer.headers.get("hello", "").startswith(f"{NAME}-")
