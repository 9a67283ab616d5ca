"""Faults between one replica and another, and a replica that finds the others by name.

The assertions are in the tests. Invariant: each fault counts its effects.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from tests.parts import istio, ports, wire
from tests.parts.faults.http import Drip, Fault, Forward, HttpFaultProxy, Lie, Misstate
from tests.parts.faults.names import Names
from tests.parts.faults.proxy import Hang, Mode, Pass, Refuse
from tests.parts.fleet import Fleet, flags_of
from tests.parts.wasmer import Wasmer

PEERS_NAME = f"wasmer-peers.{istio.ROOT_NAMESPACE}.svc.cluster.local"

Bites = Callable[[], int]


@dataclass(frozen=True, slots=True)
class FaultCase:
    """The fault affects every replica's blob port, but only for the other replicas. Envoys are not affected."""

    name: str
    mode: Mode = field(default_factory=Pass)
    """The fault of the connections."""
    fault: Fault = field(default_factory=Forward)
    """The fault of the answers."""

    def __str__(self) -> str:
        return self.name

    @asynccontextmanager
    async def lasting(self, fleet: Fleet) -> AsyncIterator[Bites]:
        """The fault lasts until the context ends; yields a function that returns the number of its effects so far."""
        async with AsyncExitStack() as stack:
            between = []
            for replica, way in zip(fleet.replicas, fleet.peers, strict=True):
                proxy = HttpFaultProxy(f"http://{replica.host}")
                between.append(await stack.enter_async_context(proxy))
                proxy.fault = self.fault
                way.lead_to("127.0.0.1", proxy.port)
                way.mode = self.mode
                way.cut_all()

            def injected() -> int:
                held = sum(way.counters.refused + way.counters.hung for way in fleet.peers)
                return held + sum(proxy.injected for proxy in between)

            before = injected()
            try:
                yield lambda: injected() - before
            finally:
                for replica, way in zip(fleet.replicas, fleet.peers, strict=True):
                    address, _, port = replica.host.rpartition(":")
                    way.lead_to(address, int(port))
                    way.mode = Pass()
                    way.cut_all()


UNREACHABLE = FaultCase("unreachable", mode=Refuse())
HANGING = FaultCase("hanging", mode=Hang())
DRIPPING = FaultCase("dripping", fault=Drip())
LYING = FaultCase("lying", fault=Lie("/wasm/"))
LONGER = FaultCase("length-too-long", fault=Misstate("/wasm/", 10))
SHORTER = FaultCase("length-too-short", fault=Misstate("/wasm/", -10))


async def copies(replica: Wasmer, outcome: str) -> float:
    """Number of copies from other replicas with this outcome."""
    answer = await wire.get(f"http://{replica.admin}/metrics")
    wanted = f'autowasm_peer_copies_total{{outcome="{outcome}"}} '
    lines = answer.body.decode().splitlines()
    return sum(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted))


async def from_source(replica: Wasmer) -> float:
    """Bytes that it got from a source, not from another replica."""
    return await replica.metric("autowasm_fetched_bytes_total")


def names_of(fleet: Fleet, row: str) -> Names:
    """The name of the peers' Service."""
    return Names(PEERS_NAME, fleet.installation.directory / f"names-{row}.json")


@asynccontextmanager
async def found_by_name(fleet: Fleet, names: Names, row: str) -> AsyncIterator[Wasmer]:
    """A new replica that looks up the others in `names`. It must answer like all others."""
    port = fleet.replicas[0].host.rpartition(":")[2]
    async with fleet.installation.another(
        f"by-name-{row}",
        host=f"{ports.free_address()}:{port}",
        arguments=flags_of(fleet.envoy),
        env=names.environment,
    ) as replica:
        fleet.replicas.append(replica)
        try:
            yield replica
        finally:
            fleet.replicas.remove(replica)
