"""`wasmc convert`: requests get the same answers with objects of Istio (on istiod, an agent and Envoy) and with the AutoWasms converted from them."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.parts import filters, istio, ports, registry, wasmer, wire
from tests.parts.agent import injected
from tests.parts.controlplane import ControlPlane
from tests.parts.installation import autowasms
from tests.parts.mesh import Mesh, composed
from tests.parts.remotecode import Origin

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

LABELS = {"app": "converted"}
ISTIO = "extensions.istio.io/v1alpha1"
HCM = "envoy.filters.network.http_connection_manager"
ROUTER = "envoy.filters.http.router"
WASM = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
REQUESTS = 20
DENIED = (1, 11)
"""The paths that the policy denies."""
# They differ from request to request; the length depends on the plugin's name in the answer of echo.
VOLATILE = frozenset({"date", "x-envoy-upstream-service-time", "content-length"})
VOLATILE_AT_SERVICE = frozenset({"x-request-id"})

Document = dict[str, Any]
Answers = list[tuple[int, dict[str, str], Any]]


@dataclass
class ConvertedMesh(Mesh):
    """One sidecar with an agent, as in a Pod. `host` is its inbound listener."""

    host: str
    anonymous: str
    """A registry without a login: the agent refuses the challenge of a registry at a loopback address."""
    origin: Origin

    async def push_filter(self, filter_: str) -> str:
        """The reference."""
        image = f"{self.anonymous}/converted/{filter_}:v1"
        file = await asyncio.to_thread(filters.build, filter_)
        await wasmer.wasmc(self.directory).run("push", image, "-f", str(file))
        return image

    async def serve_filter(self, filter_: str) -> tuple[str, str]:
        """The URL and the sha256."""
        file = await asyncio.to_thread(filters.build, filter_)
        sha256 = self.origin.add(await asyncio.to_thread(file.read_bytes))
        return f"http://{self.origin.host}/wasm/{sha256}", sha256

    async def convert(self, *documents: Document) -> list[Document]:
        """The command's output for them; it must report that nothing is lost."""
        text = yaml.safe_dump_all(documents).encode()
        done = await wasmer.wasmc(self.directory).run("convert", "-f", "-", stdin=text)
        return list(yaml.safe_load_all(done.stdout))

    async def answers(self) -> Answers:
        """The answers to requests, without values that differ from request to request."""
        found: Answers = []
        for number in range(REQUESTS):
            headers = {"x-echo": "any"} if number % 4 == 3 else {"x-number": str(number)}
            answer = await wire.get(f"http://{self.host}/{number}", headers=headers)
            kept = {name: value for name, value in answer.headers.items() if name not in VOLATILE}
            found.append((answer.status, kept, _comparable(answer.body)))
        return found

    async def until(self, names: str | None) -> None:
        """Wait until requests pass these filters, the last one first, or none."""
        await filters.until_answer(self.host, lambda one: one.headers.get("x-filter") == names)

    async def until_status(self, status: int) -> None:
        """Wait until a path of the policy has this status: istiod follows policies and filters with watches of their own."""
        await filters.until_answer(self.host, lambda one: one.status == status, path=DENIED[0])

    async def delete(self, *documents: Document) -> None:
        """Delete them, and wait until requests pass no filter."""
        for document in documents:
            path = await self.cluster.client.path_of(document)
            await self.cluster.request("DELETE", path)
        await self.until(None)


def _comparable(body: bytes) -> Any:
    if body.startswith(b"{"):  # the service returns the request
        request = json.loads(body)
        request["headers"] = {
            name: value
            for name, value in request["headers"].items()
            if name not in VOLATILE_AT_SERVICE
        }
        return request
    # In the answer of echo the plugin has the name of another object, and its VM has another ID.
    lines = body.splitlines(keepends=True)
    return b"".join(one for one in lines if not one.startswith((b"plugin_name ", b"plugin_vm_id ")))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mesh(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ConvertedMesh]:
    directory = tmp_path_factory.mktemp("convert")
    async with (
        registry.crane(directory / "registry") as anonymous,
        Origin().running() as origin,
        composed(
            directory / "mesh",
            plane=control_plane,
            authority=True,
            arguments=(
                f"--plain-http-registry={anonymous.host}",
                f"--allow-private-host={anonymous.host}",
                f"--allow-private-host={origin.host}",
            ),
        ) as found,
    ):
        address = ports.free_address()
        host = await found.add_workload("converted", LABELS, address=address)
        agent = injected(
            found.istiod,
            found.directory / "agent",
            name="converted",
            labels=LABELS,
            address=address,
            fetches_modules=True,
        )
        _, envoy = await found.stack.enter_async_context(agent)
        await istio.wait_for_blob_endpoints(envoy, found.wasmer.host)
        yield ConvertedMesh(**found.parts, host=host, anonymous=anonymous.host, origin=origin)


@pytest_asyncio.fixture(loop_scope="session")
async def policy(mesh: ConvertedMesh) -> AsyncIterator[None]:
    """Istio's authorization denies some requests."""
    document = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "some", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": LABELS},
            "action": "DENY",
            "rules": [{"to": [{"operation": {"paths": [f"/{number}" for number in DENIED]}}]}],
        },
    }
    await mesh.cluster.apply(document)
    await mesh.until_status(403)
    yield
    await mesh.cluster.request("DELETE", await mesh.cluster.client.path_of(document))
    await mesh.until_status(200)


def plugin(url: str, name: str = "hello", **spec: Any) -> Document:
    return {
        "apiVersion": ISTIO,
        "kind": "WasmPlugin",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": LABELS}, "url": url, **spec},
    }


def extension(url: str, name: str = "hello", **spec: Any) -> Document:
    wasm = {"url": url, "pluginConfig": spec.pop("pluginConfig", {})}
    return {
        "apiVersion": ISTIO,
        "kind": "TrafficExtension",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": LABELS}, "wasm": wasm, **spec},
    }


def config(module: tuple[str, str], *, value: str, cluster: str = "modules") -> Document:
    """Envoy's PluginConfig in both spellings that people use."""
    url, sha256 = module
    uri = {"uri": url, "timeout": "10s", "cluster": cluster}
    return {
        "name": value,
        "configuration": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": value,
        },
        "vm_config": {
            "vm_id": f"vm-{value}",
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"remote": {"http_uri": uri, "sha256": sha256}},
        },
    }


def typed(value: Document) -> Document:
    struct = "type.googleapis.com/udpa.type.v1.TypedStruct"
    return {"typed_config": {"@type": struct, "type_url": WASM, "value": {"config": value}}}


def chain(anchor: str | None) -> Document:
    inner = {"name": HCM} | ({"subFilter": {"name": anchor}} if anchor else {})
    return {"context": "SIDECAR_INBOUND", "listener": {"filterChain": {"filter": inner}}}


def envoyfilter(name: str, *patches: Document, priority: int = 0) -> Document:
    spec: Document = {
        "workloadSelector": {"labels": LABELS},
        "configPatches": list(patches),
    } | ({"priority": priority} if priority else {})
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def inserted(value: Document, *, operation: str = "INSERT_BEFORE", name: str = "any") -> Document:
    return {
        "applyTo": "HTTP_FILTER",
        "match": chain(ROUTER if operation == "INSERT_BEFORE" else None),
        "patch": {"operation": operation, "value": {"name": name, **value}},
    }


def cluster(host: str) -> Document:
    """A patch that adds the cluster from which Envoy fetches."""
    address, _, port = host.rpartition(":")
    socket = {"socket_address": {"address": address, "port_value": int(port)}}
    return {
        "applyTo": "CLUSTER",
        "match": {"context": "SIDECAR_INBOUND"},
        "patch": {
            "operation": "ADD",
            "value": {
                "name": "modules",
                "type": "STATIC",
                "connect_timeout": "5s",
                "load_assignment": {
                    "cluster_name": "modules",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket}}]}],
                },
            },
        },
    }


async def compared(mesh: ConvertedMesh, *originals: Document, names: str) -> Answers:
    """The answers of both deployments, which must be equal. `names`: in the order of the headers, so the last filter first."""
    await mesh.cluster.apply(*originals)
    await mesh.until(names)
    before = await mesh.answers()
    await mesh.delete(*originals)

    made = await mesh.convert(*originals)
    try:
        await mesh.cluster.apply(*made)
        await mesh.until(names)
        assert await mesh.answers() == before
    finally:
        await mesh.cluster.request("DELETE", autowasms())
        await mesh.until(None)
    return before


def statuses(answers: Answers) -> dict[int, int]:
    """The number of answers with each status."""
    found = [status for status, _, _ in answers]
    return {status: found.count(status) for status in set(found)}


def bodies(answers: Answers, numbers: Sequence[int]) -> set[bytes]:
    return {answers[number][2] for number in numbers}


async def test_plugin_with_configuration_environment_and_root_id(
    mesh: ConvertedMesh, policy: None
) -> None:
    original = plugin(
        f"oci://{await mesh.push_filter('echo')}",
        pluginConfig={"greeting": "wörld", "list": [1, {"a": None}], "flag": True},
        pluginName="echo",
        vmConfig={"env": [{"name": "A", "value": "b"}]},
        failStrategy="FAIL_OPEN",
    )
    answers = await compared(mesh, original, names="echo")
    assert statuses(answers) == {200: REQUESTS - len(DENIED), 403: len(DENIED)}
    assert b"environment" in answers[3][2]


@pytest.mark.parametrize("kind", [plugin, extension])
async def test_filter_before_authorization_and_after_it(
    kind: Any, mesh: ConvertedMesh, policy: None
) -> None:
    url = f"oci://{await mesh.push_filter('deny')}"
    server = [{"mode": "SERVER"}]
    first = await compared(mesh, kind(url, phase="AUTHN", match=server), names="deny")
    last = await compared(mesh, kind(url, match=server), names="deny")
    assert len(bodies(first, range(REQUESTS))) == 1, "no request gets to the policy"
    assert bodies(last, DENIED) == {b"RBAC: access denied"}


@pytest.mark.parametrize("phase", [{}, {"phase": "AUTHN"}], ids=["before the router", "first"])
async def test_plugin_with_the_higher_priority_is_still_first(
    phase: Mapping[str, str], mesh: ConvertedMesh
) -> None:
    url = f"oci://{await mesh.push_filter('refuse-config')}"
    low, high = (
        plugin(url, name, pluginConfig={"name": name}, priority=priority, **phase)
        for name, priority in (("low", -3), ("high", 5))
    )
    answers = await compared(mesh, high, low, names="refuse-config, refuse-config")
    _, headers, _ = answers[0]
    assert headers["x-configuration"] == '{"name":"low"}, {"name":"high"}', "responses go back"


@pytest.mark.parametrize("operation", ["INSERT_BEFORE", "INSERT_FIRST"])
async def test_envoyfilters_whose_module_envoy_fetches(
    operation: str, mesh: ConvertedMesh, policy: None
) -> None:
    module = await mesh.serve_filter("refuse-config")
    fetches = envoyfilter("fetches", cluster(mesh.origin.host))
    await mesh.cluster.apply(fetches)
    one, two = (
        envoyfilter(
            name,
            inserted(typed(config(module, value=name)), operation=operation),
            priority=priority,
        )
        for name, priority in (("one", 1), ("two", 2))
    )
    try:
        answers = await compared(mesh, two, one, names="refuse-config, refuse-config")
    finally:
        await mesh.delete(fetches)
    is_first = operation == "INSERT_FIRST"
    _, headers, _ = answers[0]
    assert headers["x-configuration"] == ("one, two" if is_first else "two, one")


async def test_envoyfilter_with_an_extension_that_the_agent_fetches(mesh: ConvertedMesh) -> None:
    discovery = {
        "config_discovery": {
            "config_source": {"ads": {}, "initial_fetch_timeout": "0s"},
            "type_urls": [WASM],
        }
    }
    value = config((f"oci://{await mesh.push_filter('echo')}", ""), value="text", cluster="_")
    original = envoyfilter(
        "hello",
        inserted(discovery, name="example.echo"),
        {
            "applyTo": "EXTENSION_CONFIG",
            "match": {"context": "SIDECAR_INBOUND"},
            "patch": {"operation": "ADD", "value": {"name": "example.echo", **typed(value)}},
        },
    )
    answers = await compared(mesh, original, names="echo")
    assert b"configuration " + b"text".hex().encode() in answers[3][2]
