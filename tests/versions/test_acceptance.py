"""The main use of AutoWasm, on each combination of releases in `releases.COMBINATIONS`: a filter is pushed, runs, is replaced and removed.

The client's responses show the effect of the filter. The other features of an API server that wasmer needs (rights, the Lease,
Events, watches, garbage collection) are asserted on the same cluster.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.parts import audit, explaining, filters, releases, wat
from tests.parts.clients import ClientError
from tests.parts.installation import Document, autowasms, envoyfilters
from tests.parts.istio import ROOT_NAMESPACE
from tests.parts.load import Load
from tests.parts.mesh import Mesh, Sidecar, composed

pytestmark = [
    pytest.mark.versions,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

LABELS = {"app": "details"}
GUARD = 90
"""Seconds after which a wait counts as hanging."""


@dataclass
class ChosenMesh(Mesh):
    """A mesh with one sidecar, all parts of these releases."""

    releases: releases.Combination
    sidecar: Sidecar

    @property
    def load(self) -> Load:
        """Clients of the workload."""
        return Load(self.sidecar.host, header="hello")

    def for_sidecar(self, image: str, *, name: str = "test", **fields: object) -> Document:
        """An AutoWasm that selects the sidecar."""
        return self.autowasm(image, name=name, applyPorts=[self.sidecar.port], **fields)

    async def clean(self) -> None:
        """No AutoWasm, no EnvoyFilter, no filter in the sidecar."""
        await self.cluster.client.delete(autowasms())
        for name in ("test", "other"):
            await self.wait_gone(autowasms(name=name))
            await self.wait_gone(envoyfilters(name=name))
        await self.load.wait_for(None, timeout=GUARD)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    # Each in its own worker process of pytest-xdist.
    params=[
        pytest.param(one, id=str(one), marks=pytest.mark.xdist_group(str(one)))
        for one in releases.COMBINATIONS
    ],
)
async def running_mesh(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ChosenMesh]:
    chosen: releases.Combination = request.param
    running = composed(
        tmp_path_factory.mktemp("versions"),
        versions=chosen,
        audit_level="RequestResponse",
        crd_flags=chosen.kubernetes.apply_flags,
    )
    async with running as found:
        sidecar = await found.add_sidecar("details-v1", LABELS, version=chosen.envoy)
        yield ChosenMesh(**found.parts, releases=chosen, sidecar=sidecar)


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(running_mesh: ChosenMesh) -> AsyncIterator[ChosenMesh]:
    """The mesh without leftovers of another test."""
    await running_mesh.load.wait_for(None, timeout=GUARD)
    yield running_mesh
    await running_mesh.clean()


async def test_the_programs_that_run_are_of_the_releases_that_are_published(
    mesh: ChosenMesh,
) -> None:
    wanted = mesh.releases
    said = await mesh.cluster.request("GET", "/version")
    assert said["gitVersion"] == f"v{wanted.kubernetes.version}"
    assert (await mesh.sidecar.envoy.server_info()).version == wanted.envoy


async def test_a_filter_is_pushed_runs_is_replaced_by_a_new_tag_and_goes(mesh: ChosenMesh) -> None:
    first = await mesh.push("v1", wat.header_filter("one"))
    second = await mesh.push("v2", wat.header_filter("two"))
    plain = Load(mesh.sidecar.host)
    async with plain.steady() as report:
        await mesh.kubectl_apply(mesh.for_sidecar(first))
        await mesh.load.wait_for("one", timeout=GUARD)
        assert (await mesh.wait_phase("Synced"))["status"]["module"]["size"] > 0

        await mesh.kubectl_apply(mesh.for_sidecar(second))
        await mesh.load.wait_for("two", timeout=GUARD)

        await mesh.kubectl.run("delete", "autowasm", "test", "--wait=false")
        await mesh.load.wait_for(None, timeout=GUARD)
        await mesh.wait_gone(autowasms(name="test"))
        await mesh.wait_gone(envoyfilters(name="test"))
    assert report.failed == 0, report


async def test_a_tag_that_does_not_exist_leaves_the_filter_running_and_says_so(
    mesh: ChosenMesh,
) -> None:
    image = await mesh.push("v1", wat.header_filter("one"))
    await mesh.kubectl_apply(mesh.for_sidecar(image))
    await mesh.load.wait_for("one", timeout=GUARD)

    async with Load(mesh.sidecar.host, header="hello", values={"one"}).steady() as report:
        await mesh.kubectl_apply(mesh.for_sidecar(f"{image}-missing"))
        found = await mesh.wait_phase("Degraded", timeout=GUARD)
        assert "v1-missing" in found["status"]["message"]
    assert report.failed == 0, report
    listed = (await mesh.kubectl.run("get", "aw")).stdout
    assert "Degraded" in listed, listed


async def test_filter_receives_configuration_environment_and_root_id(mesh: ChosenMesh) -> None:
    path = await asyncio.to_thread(filters.build, "echo", toolchain="c")
    image = await mesh.push("echo", await asyncio.to_thread(path.read_bytes))
    await mesh.kubectl_apply(
        mesh.for_sidecar(
            image,
            pluginConfig={"say": "hällo", "to": [1]},
            rootID="echo",
            env=[{"name": "PLAIN", "value": "value"}],
            failStrategy="FAIL_OPEN",
            priority=10,
        )
    )

    received = await filters.until_echo(mesh.sidecar.host, lambda echo: echo.configuration != b"")
    assert received.configuration.decode() == '{"say":"hällo","to":[1]}'
    assert dict(received.environment) == {"PLAIN": "value"}
    assert received.root_id == "echo"


async def test_restarted_wasmer_writes_no_envoyfilter_again(mesh: ChosenMesh) -> None:
    """If the API server dropped a field, each comparison would fail, and each restart would drain connections."""
    image = await mesh.push("v1", wat.header_filter("one"))
    await mesh.kubectl_apply(
        mesh.for_sidecar(
            image,
            priority=10,
            pluginConfig={"a": 1},
            env=[{"name": "A", "value": "b"}],
            failStrategy="FAIL_OPEN",
        )
    )
    await mesh.wait_phase("Synced")
    await mesh.load.wait_for("one", timeout=GUARD)
    since = await mesh.logged(await mesh.envoyfilter())

    await mesh.wasmer.process.stop()
    await mesh.wasmer.start()
    # Published after the restart: by then the first object was reconciled.
    document = mesh.for_sidecar(image, name="other")
    document["spec"]["selector"]["matchLabels"] = {"app": "other"}
    await mesh.kubectl_apply(document)
    await mesh.wait_phase("Synced", name="other", timeout=GUARD)

    written = [one for one in await mesh.writes(since) if one.resource == "envoyfilters"]
    assert [one.name for one in written] == ["other"], written


async def test_an_edit_of_the_envoyfilter_is_taken_back(mesh: ChosenMesh) -> None:
    image = await mesh.push("v1", wat.header_filter("one"))
    await mesh.kubectl_apply(mesh.for_sidecar(image))
    await mesh.load.wait_for("one", timeout=GUARD)
    before = await mesh.envoyfilter()

    patch = '{"spec": {"configPatches": []}}'
    await mesh.kubectl.run("patch", "envoyfilter", "test", "--type=merge", "-p", patch)

    await mesh.wait_envoyfilter(
        lambda found: (
            found["spec"] == before["spec"]
            and found["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]
        ),
        timeout=GUARD,
    )
    await mesh.load.wait_for("one", timeout=GUARD)


async def test_events_record_changes_and_a_lease_names_the_leader(mesh: ChosenMesh) -> None:
    image = await mesh.push("v1", wat.header_filter("one"))
    await mesh.kubectl_apply(mesh.for_sidecar(image))
    uid = (await mesh.wait_phase("Synced"))["metadata"]["uid"]

    async def event() -> Document | None:
        path = f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid={uid}"
        found = (await mesh.cluster.request("GET", path))["items"]
        return found[0] if found else None

    assert (await mesh.wait_until(event))["source"]["component"] == "wasmer"
    lease = await mesh.cluster.request(
        "GET", f"/apis/coordination.k8s.io/v1/namespaces/{ROOT_NAMESPACE}/leases/wasmer"
    )
    assert lease["spec"]["holderIdentity"]
    refused = [
        one
        for one in await mesh.requests()
        if one.code in {401, 403, 404, 415, 422} and not _was_deleted(one)
    ]
    assert not [one for one in refused if one.verb != "get"], refused


def _was_deleted(entry: audit.Entry) -> bool:
    """Whether the API server knows the request, but an earlier test had deleted the object in the meantime."""
    details = entry.response.get("details") or {}
    return entry.code == 404 and bool(details.get("name"))


async def test_explain_finds_nothing_wrong(mesh: ChosenMesh) -> None:
    try:
        await explaining.install_good(mesh, "default", applyPorts=[9080])
        status, found = await explaining.explain(mesh, "default")
    finally:
        # The mesh reaches wasmer through a ServiceEntry, not through this Service.
        for path in (f"{ROOT_NAMESPACE}/services/wasmer", f"{ROOT_NAMESPACE}/pods/wasmer-0"):
            await mesh.cluster.client.delete(f"/api/v1/namespaces/{path}")
        for path in ("services", "pods"):
            await mesh.cluster.client.delete(f"/api/v1/namespaces/default/{path}/details")

    # The endpoint is the ServiceEntry's.
    assert (status, explaining.wrong(found)) == (0, {"ForeignEndpoint": "warning"}), found


@pytest.mark.parametrize(
    ("field", "value"),
    [("applyPorts", [0]), ("failStrategy", "FAIL_MAYBE"), ("source", {"registry": {}})],
)
async def test_the_api_server_refuses_an_object_that_breaks_the_schema(
    mesh: ChosenMesh, field: str, value: object
) -> None:
    document = mesh.for_sidecar("r.example/a:v1")
    document["spec"]["filter"][field] = value
    with pytest.raises(ClientError, match=field):
        await mesh.kubectl_apply(document)


async def test_spec_accepted_by_an_old_schema_is_refused_in_the_status(mesh: ChosenMesh) -> None:
    """Servers before 1.25 support no validation rules, only types and patterns."""
    document = mesh.for_sidecar("r.example/a:v1")
    document["spec"]["filter"]["source"]["object"] = {"url": "https://o.example/a.wasm"}
    try:
        await mesh.kubectl_apply(document)
    except ClientError as error:
        assert "source" in str(error)  # noqa: PT017
        return
    found = await mesh.wait_phase("Failed", timeout=GUARD)
    assert "source" in found["status"]["message"]
