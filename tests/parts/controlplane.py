"""A control plane that test files use one after the other, with Istio's and AutoWasm's resources, and with wasmer installed.

Not for tests that damage etcd or the API server: those start their own `kubernetes`. Invariants: wasmer watches all
namespaces, so at most one installation runs at a time: `private` ends the shared one, and `installation` starts it again.
When an installation starts, no AutoWasm and no EnvoyFilter of another test remains. All other objects are separated by
namespace; each test has its own.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.parts import clients, installation, istio, ports
from tests.parts.clients import Client
from tests.parts.installation import Installation, installed
from tests.parts.kubernetes import Cluster, kubernetes

_COLLECTIONS = (
    "/apis/wasm.tcm.io/v1alpha1{}/autowasms",
    "/apis/networking.istio.io/v1alpha3{}/envoyfilters",
)
_REMAINS = (
    *(
        f"/apis/{group}/namespaces/{namespace}/{kind}"
        for group, kinds in (
            (
                "networking.istio.io/v1alpha3",
                (
                    *("serviceentries", "workloadentries", "sidecars"),
                    *("gateways", "virtualservices", "destinationrules"),
                ),
            ),
            ("security.istio.io/v1beta1", ("peerauthentications",)),
        )
        for kind in kinds
        for namespace in ("default", istio.ROOT_NAMESPACE)
    ),
    # Objects of `explaining.install_server` (`test_plan.py`): istiod prefers its Service, which has no endpoints, to a ServiceEntry of the
    # same host.
    f"/api/v1/namespaces/{istio.ROOT_NAMESPACE}/services",
    f"/apis/coordination.k8s.io/v1/namespaces/{istio.ROOT_NAMESPACE}/leases/wasmer",
)
"""Objects of other tests on the control plane that would affect a mesh, besides AutoWasms and EnvoyFilters."""
_CLEAN_SECONDS = 60
_POLL_SECONDS = 0.05

READER = "reader"
"""A user without any permissions."""


class ControlPlane:
    """The control plane of `shared_control_plane`. Every test may use `cluster`, `kubectl` and `directory`."""

    def __init__(self, cluster: Cluster, kubectl: Client, directory: Path) -> None:
        self.cluster = cluster
        self.kubectl = kubectl
        self.directory = directory
        self._stack = AsyncExitStack()
        self._shared: Installation | None = None
        self._command: list[str] = []
        self._private = False
        self._namespaces = itertools.count()

    async def installation(self) -> Installation:
        """The shared installation with default flags, running; started by the first call.

        Raises ProcessError, and RuntimeError while a private one runs.
        """
        if self._private:
            raise RuntimeError("a private installation of wasmer runs on this control plane")
        await self._start_what_a_test_stopped()
        if self._shared is None:
            await self.clean()
            directory = self.directory / "installation"
            self._shared = await self._stack.enter_async_context(
                installed(self.cluster, self.kubectl, directory, host=_blob_host())
            )
            self._command = list(self._shared.wasmer.process.command)
        found = self._shared
        found.may_die = False
        if not found.registry.process.alive:
            await found.registry.start()
        process = found.wasmer.process
        if process.command != self._command:
            await process.stop()
            process.command = list(self._command)
        if not process.alive:
            await found.wasmer.start()
        return found

    @asynccontextmanager
    async def private(self, directory: Path, **options: Any) -> AsyncIterator[Installation]:
        """An installation with `options` of `installed`, the only one that runs until the context ends."""
        async with (
            self.without_wasmer(),
            installed(self.cluster, self.kubectl, directory, **options) as found,
        ):
            yield found

    @asynccontextmanager
    async def without_wasmer(self) -> AsyncIterator[None]:
        """No wasmer runs until the context ends; the AutoWasms and EnvoyFilters made meanwhile are deleted."""
        if self._private:
            raise RuntimeError("a private installation of wasmer runs on this control plane")
        self._private = True
        try:
            if self._shared is not None:
                await self._shared.wasmer.process.stop()
            await self._start_what_a_test_stopped()
            await self.clean()
            yield
            await self.clean()
        finally:
            self._private = False

    @asynccontextmanager
    async def without_remains(self) -> AsyncIterator[None]:
        """Deletes all Pods, and the objects that tests left in the namespaces `default` and `istio-system`, before and after."""
        await self._delete_remains()
        try:
            yield
        finally:
            await self._delete_remains()

    async def _delete_remains(self) -> None:
        client = self.cluster.client
        for path in _REMAINS:
            await client.delete(path)
        # In any namespace, their addresses could be those of a mesh's sidecars.
        for namespace in {owner for owner, _ in await client.list_names("/api/v1/pods")}:
            await client.delete(f"/api/v1/namespaces/{namespace}/pods?gracePeriodSeconds=0")

    async def add_namespace(self, prefix: str = "team") -> str:
        """A namespace that no other test has."""
        name = f"{prefix}-{next(self._namespaces)}"
        await self.cluster.create_namespace(name)
        return name

    async def clean(self, namespace: str = "") -> None:
        """`clean` of this control plane."""
        await clean(self.cluster, namespace)

    async def close(self) -> None:
        """End the shared installation."""
        await self._stack.aclose()

    async def _start_what_a_test_stopped(self) -> None:
        cluster = self.cluster
        if not cluster.api.alive:
            await cluster.start_api()
        if cluster.controller_manager is not None and not cluster.controller_manager.alive:
            await cluster.start_controller_manager()


async def clean(cluster: Cluster, namespace: str = "") -> None:
    """Delete all AutoWasms and EnvoyFilters (of the namespace), and wait until they are gone.

    Raises TimeoutError with the remaining objects.
    """
    left: list[str] = []
    try:
        async with asyncio.timeout(_CLEAN_SECONDS):
            while left := await _delete_all(cluster, namespace):
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError as error:
        raise TimeoutError(f"not deleted after {_CLEAN_SECONDS} s: {left}") from error


async def _delete_all(cluster: Cluster, namespace: str) -> list[str]:
    """Delete; returns the deleted objects."""
    client = cluster.client
    within = f"/namespaces/{namespace}" if namespace else ""
    left: list[str] = []
    for collection in _COLLECTIONS:
        found = await client.list_names(collection.format(within))
        left += [f"{owner}/{name}" for owner, name in found]
        for owner in {owner for owner, _ in found}:
            await client.delete(collection.format(f"/namespaces/{owner}"))
    return left


@asynccontextmanager
async def shared_control_plane(directory: Path) -> AsyncIterator[ControlPlane]:
    """Run a control plane with Istio's and AutoWasm's resources and RBAC; its audit log has all bodies."""
    users: dict[str, Sequence[str]] = {READER: ()}
    async with kubernetes(
        directory / "kubernetes", users=users, audit_level="RequestResponse"
    ) as cluster:
        kubectl = await clients.kubectl(directory / "home", kubeconfig=cluster.kubeconfig)
        await istio.apply_crds(cluster)
        await cluster.create_namespace(istio.ROOT_NAMESPACE)
        await installation.install(cluster)
        plane = ControlPlane(cluster, kubectl, directory)
        try:
            yield plane
        finally:
            await plane.close()


def _blob_host() -> str:
    address = ports.free_address()
    return f"{address}:{ports.free_port(address=address)}"
