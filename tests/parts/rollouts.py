"""A mesh for staged rollouts: eight sidecars as in Pods, each with a Pod at the API server, under load.

Six of them have the label `app: staged`, which AutoWasms here select; two have another label. Invariants: each Envoy was started by an
agent with Istio's bootstrap, so its statistics are on port 15090 of its own address; a Pod has the name and the address of its proxy.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.parts import filters, istio, ports, pypi
from tests.parts.agent import injected
from tests.parts.controlplane import ControlPlane
from tests.parts.envoy import Envoy
from tests.parts.kubeapi import ApiError
from tests.parts.load import Load, LoadReport
from tests.parts.mesh import Mesh, composed

Document = dict[str, Any]

PODS = "/api/v1/namespaces/default/pods"
SELECTED = {"app": "staged"}
MATCHED, OTHERS = 6, 2
_REQUESTS = r"http\..*\.downstream_rq_[1-5]xx"


@dataclass(frozen=True, slots=True)
class StagedSidecar:
    """A Pod with its Envoy. `host` (address:port) is its inbound listener."""

    name: str
    host: str
    envoy: Envoy

    @property
    def address(self) -> str:
        """The address of the Pod."""
        return self.host.rpartition(":")[0]

    async def inbound(self) -> Document:
        """The inbound listener in use, from Envoy's config_dump."""
        for section in (await self.envoy.config_dump())["configs"]:
            for one in section.get("dynamic_listeners", ()):
                listener = one.get("active_state", {})
                found = listener.get("listener", {})
                where = found.get("address", {}).get("socket_address", {})
                if f"{where.get('address')}:{where.get('port_value')}" == self.host:
                    return dict(listener)
        return {}

    async def plugins(self) -> list[str]:
        """The names of our plugins in the inbound listener in use."""
        return _plugins(await self.inbound())

    async def listener_version(self) -> str:
        """`last_updated` of the inbound listener: istiod changes the version of all listeners with each push that changes any of them."""
        listener = await self.inbound()
        return str(listener.get("last_updated", ""))


def _plugins(value: Any) -> list[str]:
    """`config.name` of each Wasm filter, in order."""
    found = []
    if isinstance(value, dict):
        if ("vm_config" in value and "name" in value) or ("vmConfig" in value and "name" in value):
            found.append(str(value["name"]))
        for one in value.values():
            found += _plugins(one)
    elif isinstance(value, list):
        for one in value:
            found += _plugins(one)
    return found


@dataclass
class StagedMesh(Mesh):
    """`matched` are selected by AutoWasms of this mesh, `others` are not."""

    matched: list[StagedSidecar] = field(default_factory=list)
    others: list[StagedSidecar] = field(default_factory=list)

    def names(self) -> set[str]:
        """The names of the matched Pods."""
        return {one.name for one in self.matched}

    def sidecar(self, name: str) -> StagedSidecar:
        """The sidecar of the Pod with this name."""
        return next(one for one in [*self.matched, *self.others] if one.name == name)

    async def add_staged(
        self,
        name: str,
        *,
        app: str = SELECTED["app"],
        workload: str = "",
        pod: bool = True,
        **more: Any,
    ) -> StagedSidecar:
        """Add a Pod with a sidecar.

        `workload`: its Deployment or other owner, as the injector names it to the proxy. `more` are arguments of `agent.injected`.
        """
        address = ports.free_address()
        labels = {"app": app, "pod": name}
        host = await self.add_workload(name, labels, address=address)
        _, envoy = await self.stack.enter_async_context(
            injected(
                self.istiod,
                self.directory / "agents" / name,
                name=name,
                labels=labels,
                address=address,
                version=pypi.ENVOY_VERSIONS[0],
                metadata={"WORKLOAD_NAME": workload or name},
                # Istio's build of Envoy counts `istio_requests_total`; a plain Envoy has its own counters, which Istio's
                # bootstrap excludes.
                proxy_config={"proxyStatsMatcher": {"inclusionRegexps": [_REQUESTS]}},
                **more,
            )
        )
        await istio.wait_for_blob_endpoints(envoy, self.wasmer.host)
        if pod:
            await self.add_pod(name, labels, address=address)
        return StagedSidecar(name, host, envoy)

    async def add_pod(self, name: str, labels: dict[str, str], *, address: str) -> None:
        """Create a Pod with the status that a kubelet would report."""
        document = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            # It has no node: the controller manager deletes a Pod of a node that does not exist.
            "spec": {
                "containers": [
                    {"name": one, "image": "example.com/x:1"} for one in ("main", "istio-proxy")
                ]
            },
        }
        created = await self.cluster.request("POST", PODS, body=document)
        await self._report(created, address=address)

    async def move_pod(self, name: str, *, address: str) -> None:
        """Report another address of the Pod."""
        await self._report(await self.cluster.request("GET", f"{PODS}/{name}"), address=address)

    async def _report(self, pod: Document, *, address: str) -> None:
        status = {
            "phase": "Running",
            "startTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        path = f"{PODS}/{pod['metadata']['name']}/status"
        await self.cluster.request("PUT", path, body={**pod, "status": status})

    async def remove_pod(self, name: str) -> None:
        """Delete the Pod at once, as there is no kubelet."""
        path = f"{PODS}/{name}?gracePeriodSeconds=0"
        try:
            await self.cluster.request("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise

    async def image(self, filter_: str, *, tag: str = "", note: str = "") -> str:
        """Push a filter of `tests/assets/filters`; returns the reference. A module with another `note` has another digest."""
        path = await asyncio.to_thread(filters.build, filter_)
        module = await asyncio.to_thread(path.read_bytes)
        return await self.push(tag or filter_, with_note(module, note) if note else module)

    def staged(
        self,
        image: str,
        *,
        name: str = "test",
        steps: Sequence[int | str] = (1, 3),
        pause: str = "3s",
        deadline: str = "60s",
        rollout: Document | None = None,
        annotations: dict[str, str] | None = None,
        **fields: Any,
    ) -> Document:
        """An AutoWasm with a rollout. `rollout`: more of its fields; `fields` go into `spec.filter`."""
        document = self.autowasm(image, name=name, **fields)
        document["spec"]["filter"].pop("applyPorts", None)
        document["spec"]["selector"]["matchLabels"] = dict(SELECTED)
        document["spec"]["rollout"] = {
            "steps": list(steps),
            "pause": pause,
            "deadline": deadline,
            **(rollout or {}),
        }
        if annotations:
            document["metadata"]["annotations"] = annotations
        return document

    async def rollout(self, name: str = "test") -> Document:
        """`status.rollout`; empty if there is none."""
        found: Document = ((await self.get(name)).get("status") or {}).get("rollout") or {}
        return found

    async def wait_rollout(
        self, *phases: str, name: str = "test", step: int | None = None, timeout: float = 90
    ) -> Document:
        """The AutoWasm when the rollout of its generation is in one of these phases, and in this step."""

        def reached(found: Document | None) -> bool:
            rollout = ((found or {}).get("status") or {}).get("rollout") or {}
            return (
                found is not None
                and rollout.get("phase") in phases
                and (rollout.get("target") or {}).get("generation")
                == found["metadata"]["generation"]
                and step in {None, rollout.get("step")}
            )

        path = f"/apis/wasm.tcm.io/v1alpha1/namespaces/default/autowasms/{name}"
        what = f"rollout {' or '.join(phases)} {step or ''}"
        return await self.wait_object(path, reached, what=what, timeout=timeout)

    async def with_plugin(self, plugin: str) -> set[str]:
        """The matched Pods whose inbound listener has this plugin."""
        found = await asyncio.gather(*(one.plugins() for one in self.matched))
        return {
            one.name for one, plugins in zip(self.matched, found, strict=True) if plugin in plugins
        }

    async def only_on(self, plugin: str, names: set[str], *, timeout: float = 30) -> None:
        """Return once exactly these matched Pods have this plugin. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while await self.with_plugin(plugin) != names:
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def load(self, *, path: str = "/") -> AsyncIterator[dict[str, LoadReport]]:
        """A steady load on each matched Pod; the reports by the Pods' names."""
        async with AsyncExitStack() as stack:
            reports = {}
            for one in self.matched:
                steady = Load(host=one.host, path=path, pause=0.02).steady()
                reports[one.name] = await stack.enter_async_context(steady)
            yield reports


def with_note(module: bytes, note: str) -> bytes:
    """The module with one more custom section of at most 100 bytes, which changes only the digest."""
    name = b"note"
    content = bytes([len(name)]) + name + note.encode()
    return module + bytes([0, len(content)]) + content


@asynccontextmanager
async def staged_mesh(
    directory: Path, *, plane: ControlPlane, arguments: Sequence[str] = ()
) -> AsyncIterator[StagedMesh]:
    """Run one with all files in `directory`. Raises ProcessError with the log of what failed."""
    async with composed(directory, plane=plane, authority=True, arguments=arguments) as found:
        mesh = StagedMesh(**found.parts)
        names = [f"staged-{n}" for n in range(MATCHED)] + [f"other-{n}" for n in range(OTHERS)]
        try:
            sidecars = await asyncio.gather(
                *(mesh.add_staged(one, app=one.partition("-")[0]) for one in names)
            )
            mesh.matched, mesh.others = list(sidecars[:MATCHED]), list(sidecars[MATCHED:])
            yield mesh
        finally:
            for one in names:
                await mesh.remove_pod(one)


def target_of(autowasm: Document, *, name: str = "test") -> str:
    """The plugin's name of the rollout's target."""
    return f"{name}-{autowasm['status']['rollout']['target']['digest']}"


def described(autowasm: Document) -> str:
    """The rollout, for messages of tests."""
    return json.dumps(autowasm["status"].get("rollout"), indent=1)
