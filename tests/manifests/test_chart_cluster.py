"""The chart on a real API server with the real helm: installed, upgraded, uninstalled, and refusing to be.

No Pod runs: where one has to, its container is run as a process, and the status of a kubelet is written.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
import yaml

from tests.manifests import charts, combinations, documents
from tests.manifests.documents import Document
from tests.parts import clients, istio, ports
from tests.parts.audit import AuditLog
from tests.parts.clients import Client
from tests.parts.kubernetes import ADMIN, Cluster, kubernetes
from tests.parts.pod import Container, ServiceAccountVolume
from tests.parts.wasmer import program
from tools.generate.paths import CHART, ROOT

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]

NAMESPACE = "istio-system"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/autowasms.wasm.tcm.io"
AUTOWASMS = documents.AUTOWASMS.format(namespace="default")
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
SERVICE = f"/api/v1/namespaces/{NAMESPACE}/services/wasmer"
FIRST_RELEASE = ROOT / "tests/assets/charts/wasmer-0.1.0.tgz"
"""As `helm package` made it when 0.1.0 was dated in the changelog."""
# helm's output for a release in the namespace `default`.
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@dataclass(frozen=True)
class HelmCluster:
    """A cluster without our resource, with namespaces that take restricted Pods only."""

    directory: Path
    cluster: Cluster
    kubectl: Client
    helm: Client

    async def exists(self, path: str) -> bool:
        return await self.cluster.client.exists(path)

    async def remove_definition(self) -> None:
        """Delete the AutoWasms, then their definition, and return once it is gone.

        The API server deletes the objects of a definition before the definition. Where the definition has just changed, that
        fails with `storage is (re)initializing` and is tried again later, so on a busy machine it lasts longer than a command
        of kubectl may. Without objects there is nothing to wait for, and no test starts with a definition that is being deleted.
        """
        client = self.cluster.client
        if await client.exists(CRD):
            for namespace, name in await client.list_names("/apis/wasm.tcm.io/v1alpha1/autowasms"):
                path = f"{documents.AUTOWASMS.format(namespace=namespace)}/{name}"
                await client.delete(path)
                await client.wait_gone(path)
            await client.delete(CRD)
        await client.wait_gone(CRD, timeout=600)

    async def wait_served(self) -> None:
        """Wait for the resource: the API server serves it some moments after its definition is established."""
        await _until(lambda: self.exists(AUTOWASMS))

    async def install(self, *arguments: str | Path, chart: Path = CHART) -> str:
        """As a new user does it: no name, no namespace. The release."""
        said = await self.helm.run(
            "install", chart, "--generate-name", "--output=json", *arguments, timeout=120
        )
        name: str = json.loads(said.stdout)["name"]
        return name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def helm_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HelmCluster]:
    directory = tmp_path_factory.mktemp("chart")
    async with kubernetes(directory / "kubernetes", audit_level="Metadata") as cluster:
        kubectl = await clients.kubectl(directory / "home", kubeconfig=cluster.kubeconfig)
        helm = await clients.helm(directory / "home", kubeconfig=cluster.kubeconfig)
        await istio.apply_crds(cluster)
        for kind in ("PodMonitor", "ServiceMonitor", "PrometheusRule"):
            text = yaml.safe_dump(_monitor_crd(kind)).encode()
            await kubectl.run("apply", "-f", "-", stdin=text)
        await clients.crds_established(kubectl)
        for name in (NAMESPACE, "mesh-blue", "team-a"):
            await cluster.create_namespace(name)
            labels = [f"{key}={value}" for key, value in RESTRICTED.items()]
            await kubectl.run("label", "namespace", name, *labels)
        yield HelmCluster(directory, cluster, kubectl, helm)


def _monitor_crd(kind: str) -> Document:
    """A stand-in for the definition of Prometheus' operator, which is not among the parts: any field is taken."""
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "names": {"kind": kind, "plural": plural},
            "scope": "Namespaced",
            "versions": [version],
        },
    }


async def _until(condition: Callable[[], Awaitable[object]], *, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture(loop_scope="module")
async def release(helm_cluster: HelmCluster) -> AsyncIterator[str]:
    """The chart with default values, installed; without the resource that it leaves behind at the end."""
    name = await helm_cluster.install()
    yield name
    await helm_cluster.helm.run("uninstall", name, "--no-hooks", "--ignore-not-found", timeout=120)
    await helm_cluster.remove_definition()


@pytest.mark.parametrize("values", charts.VALUES, ids=lambda path: path.stem)
async def test_the_api_server_takes_it_strictly(values: Path, helm_cluster: HelmCluster) -> None:
    await _taken_strictly(await asyncio.to_thread(charts.render, values), helm_cluster)


@pytest.mark.parametrize("number", range(combinations.COUNT))
async def test_values_in_combination_are_taken_strictly_and_installed(
    number: int, helm_cluster: HelmCluster
) -> None:
    chosen = combinations.chosen()[number]
    values = combinations.values(chosen)
    objects = await asyncio.to_thread(charts.render, **values)
    await _taken_strictly(objects, helm_cluster)
    file = helm_cluster.directory / f"combination-{number}.yaml"
    await asyncio.to_thread(file.write_text, yaml.safe_dump(values))
    release = await helm_cluster.install("--values", file)
    try:
        expected = charts.workload(objects)
        metadata = expected["metadata"]
        plural = f"{expected['kind'].lower()}s"
        path = f"/apis/apps/v1/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
        found = await helm_cluster.cluster.request("GET", path)
        assert found["spec"]["replicas"] == expected["spec"]["replicas"], chosen
        assert charts.image(found) == charts.image(expected)
    finally:
        await helm_cluster.helm.run("uninstall", release, "--no-hooks", timeout=120)
        await helm_cluster.remove_definition()
    assert not await helm_cluster.exists(path)


async def _taken_strictly(
    objects: dict[tuple[str, str], Document], helm_cluster: HelmCluster
) -> None:
    documents = [
        document
        for document in objects.values()
        if document["kind"] != "RoleBinding" or document["metadata"]["namespace"] != "default"
    ]
    assert documents
    for document in documents:
        warning = await helm_cluster.cluster.client.dry_run(document)
        assert not warning, "Pod security would refuse the Pods, or a field is old"


@pytest.mark.parametrize("values", charts.VALUES, ids=lambda path: path.stem)
async def test_its_pods_are_restricted(values: Path, helm_cluster: HelmCluster) -> None:
    objects = await asyncio.to_thread(charts.render, values)
    templates = {
        kind: document["spec"]["template"]
        for (kind, _), document in objects.items()
        if kind in {"Deployment", "StatefulSet", "Job"}
    }
    for kind, template in templates.items():
        account = template["spec"]["serviceAccountName"]
        namespace = charts.workload(objects)["metadata"]["namespace"]
        probe = f"probe-{values.stem}-{kind}".lower()
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": probe, "namespace": namespace},
            "spec": {**template["spec"], "serviceAccountName": "default"},
        }
        assert account
        for name in ("priorityClassName", "runtimeClassName"):
            pod["spec"].pop(name, None)  # one that is not there would be refused first
        mounted = {one["name"] for one in pod["spec"].get("volumes", ())}
        claims = [{"name": "cache", "emptyDir": {}}] if "cache" not in mounted else []
        pod["spec"]["volumes"] = [*pod["spec"].get("volumes", ()), *claims]
        path = f"/api/v1/namespaces/{namespace}/pods"
        await helm_cluster.cluster.request("POST", path, body=pod)
        await helm_cluster.cluster.request("DELETE", f"{path}/{probe}?gracePeriodSeconds=0")


async def test_a_new_user_installs_upgrades_and_uninstalls(
    helm_cluster: HelmCluster, release: str
) -> None:
    cluster = helm_cluster.cluster
    await cluster.wait_for(f"/api/v1/namespaces/{NAMESPACE}/services/wasmer")
    secrets = await cluster.request("GET", "/api/v1/namespaces/default/secrets?limit=50")
    assert any(release in one["metadata"]["name"] for one in secrets["items"]), "kept in `default`"
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name%3Dwasmer"

    async def two() -> bool:
        return len((await cluster.request("GET", pods))["items"]) == 2

    await _until(two)  # a namespace for restricted Pods takes them
    await helm_cluster.wait_served()
    await cluster.request("POST", AUTOWASMS, body=documents.valid())

    newer = helm_cluster.directory / "newer"
    await asyncio.to_thread(_newer_chart, newer)
    since = await AuditLog(cluster.audit_log).position()
    before = (await helm_cluster.helm.run("get", "notes", release)).stdout
    assert "config.allowPrivateHost: none; add HOST[:PORT]" in before
    opened = "config.allowPrivateHost={registry.example:5000,*.corp.example}"
    await helm_cluster.helm.run(
        "upgrade", release, newer, "--set", "replicas=3", "--set", opened, timeout=120
    )
    notes = (await helm_cluster.helm.run("get", "notes", release)).stdout
    assert "rollout status deployment/wasmer" in notes
    assert "clusterLocal: true" in notes
    assert "config.allowPrivateHost: registry.example:5000, *.corp.example\n" in notes
    found = await cluster.request("GET", f"{DEPLOYMENTS}/wasmer")
    arguments = found["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--allow-private-host=registry.example:5000" in arguments
    assert "--allow-private-host=*.corp.example" in arguments
    columns = (await cluster.request("GET", CRD))["spec"]["versions"][0]["additionalPrinterColumns"]
    assert columns[-1]["name"] == "Newer"
    assert (await cluster.request("GET", f"{DEPLOYMENTS}/wasmer"))["spec"]["replicas"] == 3
    writes = await AuditLog(cluster.audit_log).writes(user=ADMIN, since=since)
    order = [one.resource for one in sorted(writes, key=lambda one: one.received)]
    assert order.index("customresourcedefinitions") < order.index("deployments")

    await helm_cluster.helm.run("uninstall", release, "--no-hooks", timeout=120)
    assert not await helm_cluster.exists(f"{DEPLOYMENTS}/wasmer")
    assert not await helm_cluster.exists("/apis/rbac.authorization.k8s.io/v1/clusterroles/wasmer")
    assert await helm_cluster.exists(CRD)
    assert await helm_cluster.exists(f"{AUTOWASMS}/test"), "and what people wrote with it"

    # Another release takes over the resources of the first one; helm requires a flag for that.
    with pytest.raises(clients.ClientError, match="invalid ownership metadata"):
        await helm_cluster.install()
    again = await helm_cluster.install("--take-ownership")
    assert await helm_cluster.exists(f"{DEPLOYMENTS}/wasmer")
    await helm_cluster.helm.run("uninstall", again, "--no-hooks", timeout=120)


def _newer_chart(target: Path) -> None:
    """A later version of the chart; its resource definition has one more column."""
    shutil.copytree(CHART, target)
    file = target / "files/crd.yaml"
    crd = yaml.safe_load(file.read_text())
    column = {"name": "Newer", "type": "string", "jsonPath": ".status.phase"}
    crd["spec"]["versions"][0]["additionalPrinterColumns"].append(column)
    text = yaml.safe_dump(crd, sort_keys=False)
    # As ours begins: the chart puts its annotation behind the name.
    head = "metadata:\n  name: autowasms.wasm.tcm.io\n"
    assert head in text
    file.write_text(text)


async def test_the_chart_of_the_first_release_is_upgraded(helm_cluster: HelmCluster) -> None:
    values = helm_cluster.directory / "kept.yaml"
    await asyncio.to_thread(values.write_text, "replicas: 3\nconfig: {logLevel: debug}\n")
    name = await helm_cluster.install("--values", values, chart=FIRST_RELEASE)
    try:
        path = f"{DEPLOYMENTS}/wasmer"
        before = await helm_cluster.cluster.request("GET", path)
        assert "helm.sh/chart" not in before["metadata"]["labels"], "it is the older chart"
        service = await helm_cluster.cluster.request("GET", SERVICE)
        await helm_cluster.wait_served()
        await helm_cluster.cluster.request("POST", AUTOWASMS, body=documents.valid())

        await helm_cluster.helm.run(
            "upgrade", name, CHART, "--reset-then-reuse-values", timeout=120
        )

        after = await helm_cluster.cluster.request("GET", path)
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert after["spec"]["replicas"] == 3
        assert "--log-level=debug" in charts.arguments(after)
        assert after["metadata"]["labels"]["helm.sh/chart"].startswith("wasmer-")
        kept = await helm_cluster.cluster.request("GET", SERVICE)
        for field in ("clusterIP", "ports", "selector"):
            assert kept["spec"][field] == service["spec"][field], "sidecars fetch from it"
        assert await helm_cluster.exists(f"{AUTOWASMS}/test")
    finally:
        await helm_cluster.helm.run("uninstall", name, "--no-hooks", timeout=120)
        await helm_cluster.remove_definition()


async def test_the_plain_installation_is_taken_over(helm_cluster: HelmCluster) -> None:
    await helm_cluster.kubectl.run("apply", "-f", documents.CRD, "-f", documents.INSTALL)
    before = await helm_cluster.cluster.request("GET", f"{DEPLOYMENTS}/wasmer")
    name = await helm_cluster.install("--take-ownership")
    after = await helm_cluster.cluster.request("GET", f"{DEPLOYMENTS}/wasmer")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"] == before["spec"], "no Pod is replaced"
    await helm_cluster.helm.run("uninstall", name, "--no-hooks", timeout=120)
    await helm_cluster.remove_definition()


async def test_uninstall_refuses_while_there_are_autowasms(
    helm_cluster: HelmCluster, release: str
) -> None:
    await helm_cluster.wait_served()
    await helm_cluster.cluster.request("POST", AUTOWASMS, body=documents.valid())
    async with asyncio.TaskGroup() as group:
        uninstall = group.create_task(
            helm_cluster.helm.run("uninstall", release, check=False, timeout=240)
        )
        status, said = await _run_the_hooks_pod(helm_cluster)
    assert status == 1
    assert "Refused: the cluster has 1 AutoWasm (default/test)" in said
    assert uninstall.result().returncode == 1
    assert "job wasmer-no-autowasms-left failed" in uninstall.result().stderr
    assert await helm_cluster.exists(f"{DEPLOYMENTS}/wasmer"), "nothing has gone"

    await helm_cluster.kubectl.run("delete", "aw", "test")
    async with asyncio.TaskGroup() as group:
        uninstall = group.create_task(helm_cluster.helm.run("uninstall", release, timeout=240))
        status, said = await _run_the_hooks_pod(helm_cluster)
    assert (status, said) == (0, "The cluster has no AutoWasms: wasmer can be uninstalled.\n")
    assert uninstall.result().returncode == 0
    assert not await helm_cluster.exists(f"{DEPLOYMENTS}/wasmer")
    roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles/wasmer-no-autowasms-left"
    assert not await helm_cluster.exists(roles)


async def _run_the_hooks_pod(helm_cluster: HelmCluster) -> tuple[int, str]:
    """Run the command of the pre-delete Job's Pod, with its ServiceAccount's token, and report its end as a kubelet does."""
    cluster, name = helm_cluster.cluster, "wasmer-no-autowasms-left"
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    found: list[Document] = []

    async def there() -> bool:
        items = (await cluster.request("GET", f"{pods}?labelSelector=app%3D{name}"))["items"]
        found[:] = [one for one in items if one["status"]["phase"] == "Pending"]
        return bool(found)

    await _until(there)
    (pod,) = found
    job = await cluster.request("GET", f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{name}")
    answer = await cluster.request(
        "POST",
        f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{pod['spec']['serviceAccountName']}/token",
        body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )
    directory = helm_cluster.directory / pod["metadata"]["name"]
    account = ServiceAccountVolume(directory / "serviceaccount")
    account.write(
        token=answer["status"]["token"].encode(),
        ca_crt=await asyncio.to_thread(cluster.tls.authority.read_bytes),
        namespace=NAMESPACE.encode(),
    )
    server = urlsplit(cluster.url)
    status, said = await Container(job, pod["metadata"]["name"], ports.LOOPBACK).run(
        program("wasmer"),
        directory,
        account=account,
        environment={
            "KUBERNETES_SERVICE_HOST": server.hostname or "",
            "KUBERNETES_SERVICE_PORT": str(server.port),
        },
    )
    pod["status"]["phase"] = "Failed" if status else "Succeeded"
    await cluster.request("PUT", f"{pods}/{pod['metadata']['name']}/status", body=pod)
    return status, said
