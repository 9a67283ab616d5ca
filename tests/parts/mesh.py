"""A mesh composed of the parts: Kubernetes, istiod, an installed AutoWasm, and a service behind the sidecars.

Invariants: the Service of wasmer routes to its blob port, so a sidecar gets modules as in a cluster; an added sidecar
listens on a loopback address of its own and ends with the mesh. A test file derives a class from `Mesh` for the actions of
its tests, and adds its workloads: `Workload(**it.parts, sidecar=await it.add_sidecar("details", labels))`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tests.parts import agent, istio, ports, pypi, releases
from tests.parts.agent import Agent
from tests.parts.controlplane import ControlPlane
from tests.parts.envoy import Envoy
from tests.parts.installation import Installation, installed
from tests.parts.istio import Istiod
from tests.parts.kubernetes import AuditLevel, kubernetes
from tests.parts.releases import Combination
from tests.parts.upstream import upstream


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A workload and the Envoy before it. `host` (address:port) is its inbound listener."""

    name: str
    host: str
    envoy: Envoy

    @property
    def port(self) -> int:
        """The port for `applyPorts`."""
        return int(self.host.rpartition(":")[2])


@dataclass
class Mesh(Installation):
    """An installation and istiod. `service` (address:port) is the one behind all sidecars."""

    istiod: Istiod
    service: str
    stack: AsyncExitStack
    """Ends the added sidecars with the mesh."""

    @property
    def parts(self) -> dict[str, Any]:
        """The arguments for a derived class."""
        return {one.name: getattr(self, one.name) for one in fields(Mesh)}

    async def add_workload(self, name: str, labels: Mapping[str, str], *, address: str) -> str:
        """The workload without a proxy; `address:port` of its inbound listener."""
        port = ports.free_port(address=address)
        await self.istiod.add_workload(
            name, labels=labels, address=address, port=port, service=self.service
        )
        return f"{address}:{port}"

    async def add_sidecar(
        self,
        name: str,
        labels: Mapping[str, str],
        *,
        address: str = "",
        version: str = pypi.ENVOY_VERSIONS[0],
        certificates: bool = False,
    ) -> Sidecar:
        """A workload with an Envoy of this version; with `certificates` also an agent that gets them signed."""
        address = address or ports.free_address()
        directory = self.directory / "sidecars" / name
        host = await self.add_workload(name, labels, address=address)
        if certificates:
            await self.stack.enter_async_context(
                agent.agent(self.istiod, directory, name=name, address=address)
            )
        envoy = await self.stack.enter_async_context(
            istio.sidecar(
                self.istiod,
                directory,
                name=name,
                labels=labels,
                address=address,
                version=version,
                certificates=certificates,
            )
        )
        await istio.wait_for_blob_endpoints(envoy, self.wasmer.host)
        return Sidecar(name, host, envoy)

    async def add_client(self, name: str = "client", *, address: str = "") -> Agent:
        """A workload that only calls others: an agent with its certificate."""
        return await self.stack.enter_async_context(
            agent.agent(
                self.istiod,
                self.directory / "clients" / name,
                name=name,
                address=address or ports.free_address(),
            )
        )


@asynccontextmanager
async def composed(
    directory: Path,
    *,
    plane: ControlPlane | None = None,
    authority: bool = False,
    flags: Mapping[str, str] | None = None,
    versions: Combination = releases.NEWEST,
    audit_level: AuditLevel = "Metadata",
    crd_flags: Sequence[str] | None = None,
    arguments: Sequence[str] = (),
    fork: bool = True,
) -> AsyncIterator[Mesh]:
    """Run one with all files in `directory`; the Envoys are those of `add_sidecar`.

    `authority` and `flags` are for istiod (`istio.istiod`), `audit_level` for the API server, `crd_flags` for the
    installation; `arguments` are more flags of wasmer, `fork` is that of `wasmer.controller`. Raises ProcessError with
    the log of what failed.

    It runs on `plane`, as the only installation there, and deletes the objects that tests left in the namespaces `default` and
    `istio-system`, before and after. Without `plane` it has a control plane of its own, of the given release and with `audit_level`.
    """
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if plane is None:
            cluster = await enter(
                kubernetes(
                    directory / "kubernetes", release=versions.kubernetes, audit_level=audit_level
                )
            )
        else:
            cluster = plane.cluster
            await enter(plane.without_remains())
        control = await enter(
            istio.istiod(
                cluster,
                directory / "istiod",
                authority=authority,
                flags=flags,
                release=versions.istio,
            )
        )
        address = ports.free_address()
        blobs = f"{address}:{ports.free_port(address=address)}"
        place = directory / "installation"
        options: dict[str, Any] = {"host": blobs, "crd_flags": crd_flags, "arguments": arguments}
        installation = await enter(
            plane.private(place, **options)
            if plane is not None
            else installed(cluster, control.kubectl, place, fork=fork, **options)
        )
        await control.add_blob_service(blobs)
        service = await enter(upstream())
        own = {one.name: getattr(installation, one.name) for one in fields(Installation)}
        yield Mesh(**own, istiod=control, service=service.host, stack=stack)
