"""A mesh for AutoWasm and Istio's own WasmPlugin: one istiod, one registry with TLS and a password, and sidecars for each system.

Every sidecar is a real agent that starts its Envoy, with its own folder for modules, as in a Pod. Invariants: a sidecar belongs to one
system, so the load, the failures and the memory are that system's; both pull the same image with the same Secret from the same address.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import measure, servers
from tests.bench.swaps import OURS, THEIRS, Usage, usage
from tests.parts import ports, registry, wasmer, wat
from tests.parts.certificates import Authority
from tests.parts.clients import Client
from tests.parts.faults.link import Link
from tests.parts.installation import PASSWORD, PULL_SECRET, USER
from tests.parts.mesh import composed
from tests.parts.process import Process
from tests.parts.registry import RegistryServer
from tests.parts.rollouts import StagedMesh, StagedSidecar

HEADER = "hello"
SYSTEMS = (OURS, THEIRS)

_APPS: Mapping[str, str] = {OURS: "autowasm", THEIRS: "wasmplugin"}
_REPOSITORY = "filters/hello"
_PLACE = b"module-00000"
_AT_ONCE = 4
"""Sidecars that are started at the same time."""
_START_SECONDS = 120.0


@dataclass
class WasmMesh:
    """The running parts. `sidecars` are those of each system."""

    mesh: StagedMesh
    registry: RegistryServer
    link: Link
    authority: Path
    sidecars: dict[str, list[StagedSidecar]] = field(
        default_factory=lambda: {name: [] for name in SYSTEMS}
    )

    async def add_sidecars(self, system: str, count: int) -> None:
        """Add sidecars until the system has this many."""
        free = asyncio.Semaphore(_AT_ONCE)
        there = len(self.sidecars[system])

        async def add(number: int) -> StagedSidecar:
            async with free:
                return await self.add_sidecar(system, f"{_APPS[system]}-{number}")

        found = await asyncio.gather(*map(add, range(there, count)))
        self.sidecars[system] += found

    async def add_sidecar(self, system: str, name: str) -> StagedSidecar:
        """Start a sidecar that is in no list. Returns once its Envoy is ready."""
        environment = {"SSL_CERT_FILE": str(self.authority)}
        return await self.mesh.add_staged(
            name,
            app=_APPS[system],
            environment=environment,
            fetches_modules=True,
            timeout=_START_SECONDS,
        )

    async def push(self, tag: str, module: bytes) -> None:
        """Push the module as `tag` of the only repository."""
        file = self.mesh.directory / f"{tag}.wasm"
        await asyncio.to_thread(file.write_bytes, module)
        words = ["push", f"{self.registry.host}/{_REPOSITORY}:{tag}", "-f", str(file), "-q"]
        words += ["--username", USER, "--password-stdin", "--ca-file", str(self.authority)]
        await _wasmc(self.mesh).run(*words, stdin=PASSWORD.encode())
        await asyncio.to_thread(file.unlink)

    async def apply(self, system: str, tag: str, *, host: str = "", name: str = "bench") -> None:
        """Let the system's sidecars run this image; `host` is the address of the registry, unless they pull from it directly."""
        image = f"{host or self.registry.host}/{_REPOSITORY}:{tag}"
        document = self._autowasm(image, name) if system == OURS else self._wasmplugin(image, name)
        await self.mesh.apply(document)

    def _autowasm(self, image: str, name: str) -> dict[str, Any]:
        document = self.mesh.autowasm(image, name=name)
        document["spec"]["filter"].pop("applyPorts", None)
        document["spec"]["selector"]["matchLabels"] = {"app": _APPS[OURS]}
        return document

    def _wasmplugin(self, image: str, name: str) -> dict[str, Any]:
        return {
            "apiVersion": "extensions.istio.io/v1alpha1",
            "kind": "WasmPlugin",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": {"app": _APPS[THEIRS]}},
                "url": f"oci://{image}",
                "imagePullSecret": PULL_SECRET,
            },
        }

    async def delete(self, system: str, name: str) -> None:
        """The object that `apply` made."""
        group, kind = {
            OURS: ("wasm.tcm.io/v1alpha1", "autowasms"),
            THEIRS: ("extensions.istio.io/v1alpha1", "wasmplugins"),
        }[system]
        path = f"/apis/{group}/namespaces/default/{kind}/{name}"
        await self.mesh.cluster.client.delete(path)

    def log_position(self) -> int:
        """The current end of the registry's log. Blocks."""
        return self.registry.process.log.stat().st_size

    def usage(self, system: str, since: int) -> Usage:
        """The registry's answers to the system after this position of its log. Blocks."""
        with self.registry.process.log.open("rb") as log:
            log.seek(since)
            return usage(log.read().decode(errors="replace").splitlines(), system)

    def memory(self) -> Mapping[str, Sequence[float]]:
        """Resident MiB of each process, by kind: `agents` and `Envoys` of each system, istiod, wasmer. Blocks."""
        found: dict[str, Sequence[float]] = {}
        for system, sidecars in self.sidecars.items():
            agents = [one.envoy.process.pid for one in sidecars]
            envoys = [child for pid in agents for child in measure.children(pid)]
            found[f"agents {system}"] = [measure.memory(pid).resident for pid in agents]
            found[f"Envoys {system}"] = [measure.memory(pid).resident for pid in envoys]
        for process in (self.mesh.istiod.process, self.mesh.wasmer.process):
            found[process.name] = [measure.memory(process.pid).resident]
        return found

    def processes(self) -> Sequence[Process]:
        """The agents."""
        return [one.envoy.process for sidecars in self.sidecars.values() for one in sidecars]


def module(number: int, *, size: int, header: str = HEADER) -> bytes:
    """A filter of exactly `size` bytes that adds `header` with `value(number)` to each answer. Blocks."""
    built = wat.header_filter(_PLACE.decode(), name=header)
    return wat.padded(built.replace(_PLACE, value(number).encode()), size=size)


def value(number: int) -> str:
    """The value of the header that `module` adds."""
    return f"module-{number:05}"


@asynccontextmanager
async def wasm_mesh(directory: Path) -> AsyncIterator[WasmMesh]:
    """Run one without sidecars, with all files in `directory`. Raises ProcessError with the log of what failed."""
    # Istio's agent assumes that a registry at 127.0.0.1 has no TLS.
    address = ports.free_address()
    tls = await asyncio.to_thread(Authority().issue, directory / "tls", addresses=[address])
    images = directory / "images"
    # The agent of Istio 1.31 refuses a realm that is not a URL, in a Basic challenge, too.
    realm = {"realm": "https://registry.example.com/", "path": str(images / "htpasswd")}
    async with (
        registry.distribution(
            images,
            users={USER: PASSWORD},
            auth={"htpasswd": realm},
            tls=tls,
            address=address,
        ) as store,
        Link(address) as link,
    ):
        link.lead_to(store.host)
        arguments = ["--registry-ca-file", str(tls.authority)]
        async with (
            composed(
                directory / "mesh",
                authority=True,
                arguments=arguments,
                audit_level="None",
                fork=False,
            ) as found,
            servers.nginx(
                directory / "service", await _page(directory), cpu=measure.CLIENT_CPU
            ) as service,
        ):
            mesh = StagedMesh(**found.parts)
            mesh.service = f"{ports.LOOPBACK}:{service.port}"
            await mesh.apply(_pull_secret(store.host, link.host))
            yield WasmMesh(mesh, store, link, tls.authority)


async def _page(directory: Path) -> Path:
    """The answer of the service behind the sidecars."""
    root = directory / "www"

    def write() -> None:
        root.mkdir()
        (root / "index.html").write_text("hello\n")

    await asyncio.to_thread(write)
    return root


def _pull_secret(*hosts: str) -> dict[str, Any]:
    config = {"auths": {host: {"username": USER, "password": PASSWORD} for host in hosts}}
    data = base64.b64encode(json.dumps(config).encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": PULL_SECRET, "namespace": "default"},
        "data": {".dockerconfigjson": data},
    }


def _wasmc(mesh: StagedMesh) -> Client:
    return wasmer.wasmc(mesh.directory)
