"""A real istiod applies an EnvoyFilter to a real Envoy."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.parts import ports, wat, wire
from tests.parts.controlplane import ControlPlane
from tests.parts.istio import istiod, sidecar
from tests.parts.load import Load
from tests.parts.upstream import upstream

SIDECAR_ADDRESS = "127.0.0.2"
SERVICE_PORT = 8081


def envoy_filter(*, port: int, labels: dict[str, str], sha256: str) -> dict[str, Any]:
    """An EnvoyFilter like ours, written by hand."""
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "subFilter": {"name": "envoy.filters.http.router"},
    }
    remote = {
        "sha256": sha256,
        "httpUri": {
            "cluster": f"outbound|{SERVICE_PORT}||wasmer.istio-system.svc.cluster.local",
            "timeout": "30s",
            "uri": f"wasmer.istio-system:{SERVICE_PORT}/wasm/{sha256}",
        },
    }
    machine = {"code": {"remote": remote}, "runtime": "envoy.wasm.runtime.v8", "vmId": sha256}
    value = {
        "name": "envoy.filters.http.wasm",
        "typedConfig": {
            "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
            "typeUrl": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "value": {"config": {"name": "hello", "vmConfig": machine}},
        },
    }
    match = {
        "context": "SIDECAR_INBOUND",
        "listener": {"portNumber": port, "filterChain": {"filter": manager}},
    }
    patch = {"operation": "INSERT_BEFORE", "value": value}
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "hello", "namespace": "default"},
        "spec": {
            "workloadSelector": {"labels": labels},
            "configPatches": [{"applyTo": "HTTP_FILTER", "match": match, "patch": patch}],
        },
    }


@asynccontextmanager
async def blob_server(module: bytes) -> AsyncIterator[str]:
    """A server that answers every request with the module; returns `address:port`."""

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(body=module)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        await web.TCPSite(runner, ports.LOOPBACK, 0).start()
        yield f"{ports.LOOPBACK}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.asyncio(loop_scope="session")
async def test_a_module_reaches_a_running_sidecar_without_a_failed_request(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    module = await asyncio.to_thread(wat.header_filter, "world")
    labels = {"app": "details"}
    port = ports.free_port(address=SIDECAR_ADDRESS)
    host = f"{SIDECAR_ADDRESS}:{port}"
    async with (
        upstream() as service,
        blob_server(module) as blobs,
        control_plane.without_wasmer(),
        control_plane.without_remains(),
        istiod(control_plane.cluster, tmp_path / "istio") as mesh,
    ):
        await mesh.add_workload(
            "details-v1", labels=labels, address=SIDECAR_ADDRESS, port=port, service=service.host
        )
        await mesh.add_blob_service(blobs, service_port=SERVICE_PORT)
        async with sidecar(
            mesh, tmp_path / "sidecar", name="details-v1", labels=labels, address=SIDECAR_ADDRESS
        ):
            await Load(host, header="hello").wait_for(None)
            async with Load(host).steady() as report:
                sha256 = hashlib.sha256(module).hexdigest()
                await mesh.apply(envoy_filter(port=port, labels=labels, sha256=sha256))
                await Load(host, header="hello").wait_for("world")
            assert report.failed == 0, report
            answer = await wire.get(f"http://{host}/")
            assert (answer.headers["server"], answer.headers["hello"]) == ("istio-envoy", "world")
