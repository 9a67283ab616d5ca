"""Fixtures that the tests of one worker process share: a control plane, and one `wasmer controller` on it.

Both are started by the first test that uses them and run on the loop of the session, so a test that uses them is marked
`pytest.mark.asyncio(loop_scope="session")`. Invariants: see `tests/parts/controlplane.py`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import pytest_asyncio

from tests.parts.clients import Client
from tests.parts.controlplane import ControlPlane, shared_control_plane
from tests.parts.installation import Installation
from tests.parts.kubernetes import Cluster

PrivateInstallation = Callable[..., AbstractAsyncContextManager[Installation]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def control_plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """etcd, kube-apiserver, kube-controller-manager; Istio's and AutoWasm's resources."""
    async with shared_control_plane(tmp_path_factory.mktemp("control-plane")) as plane:
        yield plane


@pytest.fixture(scope="session")
def cluster(control_plane: ControlPlane) -> Cluster:
    """The API server of the shared control plane."""
    return control_plane.cluster


@pytest.fixture(scope="session")
def kubectl(control_plane: ControlPlane) -> Client:
    """kubectl as the administrator."""
    return control_plane.kubectl


@pytest_asyncio.fixture(loop_scope="session")
async def installation(control_plane: ControlPlane) -> Installation:
    """A registry and a running `wasmer controller` with default flags, shared; with Istio's resources but without istiod."""
    return await control_plane.installation()


@pytest.fixture(scope="session")
def private_installation(control_plane: ControlPlane) -> PrivateInstallation:
    """Starts a `wasmer controller` with other flags; the shared one does not run meanwhile.

    `async with private_installation(directory, arguments=(...)) as installation`, in a test or in a fixture of a module.
    """

    def start(*arguments: Any, **options: Any) -> AbstractAsyncContextManager[Installation]:
        return control_plane.private(*arguments, **options)

    return start


@pytest_asyncio.fixture(loop_scope="session")
async def namespace(control_plane: ControlPlane, installation: Installation) -> AsyncIterator[str]:
    """A namespace for one test, with the pull secret; its AutoWasms and EnvoyFilters are deleted at the end."""
    name = await control_plane.add_namespace()
    await installation.add_pull_secret(name)
    yield name
    await control_plane.clean(name)
