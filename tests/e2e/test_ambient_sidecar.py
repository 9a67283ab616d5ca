"""A sidecar in a mesh with the ambient profile: the filters of requests through the tunnel, and of the tunnel itself.

istiod with that profile, Envoy as pilot-agent starts it, and an independent client of HBONE. `test_rendered_listeners.py` tests
the configuration of other proxies and EnvoyFilters.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

import pytest
import pytest_asyncio

from tests.parts import pypi, wat, wire
from tests.parts.agent import injected
from tests.parts.controlplane import ControlPlane
from tests.parts.golang import ASSETS
from tests.parts.installation import Document
from tests.parts.mesh import Mesh, composed
from tests.parts.tunnel import Tunnel, tunnel

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

WORKLOAD, UNUSED = "127.0.0.36", "127.0.0.38"
LABELS = {"app": "details"}
_FILTER_STATE = "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config"


def _tunnel_patch(operation: str, name: str, value: Document | None = None) -> Document:
    manager = "envoy.filters.network.http_connection_manager"
    chain = {"filter": {"name": manager, "subFilter": {"name": name}}}
    patch = {"operation": operation, **({"value": value} if value else {})}
    return {
        "applyTo": "HTTP_FILTER",
        "match": {
            "context": "SIDECAR_INBOUND",
            "listener": {"name": "connect_terminate", "filterChain": chain},
        },
        "patch": patch,
    }


def _as_upstreams_envoy_takes_it() -> Document:
    """The tunnel's listener without extensions of Istio's build of Envoy, and only on the workload's address."""

    def state(key: str, value: str) -> Document:
        text = {"text_format_source": {"inline_string": value}}
        return {"object_key": key, "format_string": text, "shared_with_upstream": "ONCE"}

    destination = "envoy.filters.listener.original_dst.local_ip"
    values = [
        state(destination, "%REQ(:AUTHORITY)%"),
        state("envoy.filters.listener.original_dst.remote_ip", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ]
    authority = {
        "name": "connect_authority",
        "typed_config": {"@type": _FILTER_STATE, "on_request_headers": values},
    }

    def loopback(address: str) -> Document:
        return {"socket_address": {"address": address, "port_value": 15008}}

    # On a machine with IPv6 there is a second address, `::`, which needs a port of its own.
    addresses = {
        "address": loopback(WORKLOAD),
        "additional_addresses": [{"address": loopback(UNUSED)}],
    }
    patches = [
        {
            "applyTo": "LISTENER",
            "match": {"context": "SIDECAR_INBOUND", "listener": {"name": "connect_terminate"}},
            "patch": {"operation": "MERGE_AND_REPLACE_LIST", "value": addresses},
        },
        _tunnel_patch("REMOVE", "waypoint_downstream_peer_metadata"),
        _tunnel_patch("REPLACE", "connect_authority", authority),
    ]
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "upstreams-envoy", "namespace": "default"},
        "spec": {
            "workloadSelector": {"labels": LABELS},
            "configPatches": patches,
            "priority": -100,
        },
    }


@dataclass
class AmbientMesh(Mesh):
    """An installation and a workload with a tunnel: `host` is its ordinary inbound listener."""

    host: str
    client: Callable[[], ssl.SSLContext]

    async def plain(self) -> wire.Answer:
        """A request of a workload without a proxy."""
        return await wire.get(f"http://{self.host}/")

    async def through_the_tunnel(self) -> tuple[Tunnel, wire.Answer]:
        """A request of an ambient workload: the answer to its ztunnel's CONNECT, and the one to its own request."""
        certificates = await asyncio.to_thread(self.client)
        async with tunnel(WORKLOAD, target=self.host, certificates=certificates) as opened:
            assert opened.status == 200, "the tunnel opens"
            return opened, await opened.get()

    async def filtered(self, image: str, **fields: Any) -> None:
        """Apply the AutoWasm."""
        document = self.autowasm(image, **fields)
        if "applyPorts" not in fields:
            document["spec"]["filter"].pop("applyPorts", None)
        document["spec"]["selector"]["matchLabels"] = LABELS
        await self.apply(document)

    async def unfiltered(self) -> None:
        """Delete it, and wait until requests are no longer affected."""
        await self.kubectl.run("delete", "autowasm", "test", "--wait")
        await eventually(self._without)

    async def _without(self) -> None:
        for answer in (await self.plain(), (await self.through_the_tunnel())[1]):
            assert answer.status == 200
            assert "hello" not in answer.headers


async def eventually(check: Callable[[], Awaitable[None]], *, seconds: float = 60) -> None:
    """Wait until `check` passes. Raises its last error."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            await check()
        except (OSError, AssertionError, HTTPException):
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=pypi.ENVOY_VERSIONS)
async def mesh(
    request: pytest.FixtureRequest,
    control_plane: ControlPlane,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[AmbientMesh]:
    running = composed(
        tmp_path_factory.mktemp("ambient"),
        plane=control_plane,
        authority=True,
        flags={"PILOT_ENABLE_AMBIENT": "true"},
    )
    async with running as found:
        host = await found.add_workload("details", LABELS, address=WORKLOAD)
        await found.apply(_as_upstreams_envoy_takes_it())
        client = await found.add_client()
        await found.stack.enter_async_context(
            injected(
                found.istiod,
                found.directory / "details",
                name="details",
                labels=LABELS,
                address=WORKLOAD,
                version=request.param,
                metadata={"ENABLE_HBONE": "true"},
            )
        )
        it = AmbientMesh(**found.parts, host=host, client=client.client)
        await eventually(it._without)
        yield it


@pytest.mark.parametrize("every_port", [False, True], ids=["a port", "every port"])
async def test_filter_runs_once_on_plain_requests_and_on_those_through_the_tunnel(
    mesh: AmbientMesh, every_port: bool
) -> None:
    value = f"ambient-{every_port}"
    image = await mesh.push(value, wat.header_filter(value))
    port = int(mesh.host.rpartition(":")[2])
    await mesh.filtered(image, **({} if every_port else {"applyPorts": [port]}))

    async def runs() -> None:
        assert (await mesh.plain()).headers.get("hello") == value
        opened, inner = await mesh.through_the_tunnel()
        assert inner.status == 200
        assert inner.headers.get("hello") == value, "twice would be `value, value`"
        assert "hello" not in opened.headers, "the CONNECT is not for it"

    await eventually(runs)
    await mesh.unfiltered()


@pytest.mark.parametrize("every_port", [False, True], ids=["a port", "every port"])
async def test_filter_that_denies_everything_answers_the_inner_request_and_the_tunnel_opens(
    mesh: AmbientMesh, every_port: bool
) -> None:
    module = await asyncio.to_thread(wat.compile_file, ASSETS / "wat/denies.wat")
    image = await mesh.push(f"denies-{every_port}", module)
    port = int(mesh.host.rpartition(":")[2])
    await mesh.filtered(image, **({} if every_port else {"applyPorts": [port]}))

    async def denied() -> None:
        plain = await mesh.plain()
        assert (plain.status, plain.headers.get("denied")) == (403, "yes")
        opened, inner = await mesh.through_the_tunnel()
        assert (inner.status, inner.headers.get("denied")) == (403, "yes")
        assert "denied" not in opened.headers

    await eventually(denied)
    await mesh.unfiltered()
