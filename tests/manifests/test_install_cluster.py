"""install.yaml on a real API server: it applies, its rights are these and no more, and its Pod is restricted."""

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.manifests import documents, rights
from tests.manifests.documents import Document, installed
from tests.manifests.rights import Right
from tests.parts import clients
from tests.parts.clients import Client
from tests.parts.installation import install_crd
from tests.parts.kubernetes import ApiError, Cluster, kubernetes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]

NAMESPACE = "istio-system"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:wasmer"

GRANTED = {
    ("wasm.tcm.io", "autowasms"): {"list", "watch"},
    ("wasm.tcm.io", "autowasms/status"): {"update"},
    ("networking.istio.io", "envoyfilters"): {"get", "list", "watch", "create", "update"},
    ("", "pods"): {"list", "watch"},
    ("", "secrets"): {"get"},
    ("", "events"): {"create", "patch"},
}
IN_ITS_NAMESPACE = {("coordination.k8s.io", "leases"): {"create"}}
"""The Lease of its own name may be read and changed besides."""
ONE_OF_EACH_BINDING = (
    ("get", "", "secrets", ""),
    ("get", "coordination.k8s.io", "leases", "wasmer"),
    ("get", "", "services", "wasmer"),
)
"""Verb, group, resource and name."""
OTHERS = {
    ("wasm.tcm.io", "autowasms/finalizers"),
    ("networking.istio.io", "virtualservices"),
    ("networking.istio.io", "envoyfilters/status"),
    ("", "pods/exec"),
    ("", "pods/log"),
    ("", "configmaps"),
    ("", "namespaces"),
    ("", "services"),
    ("", "endpoints"),
    ("", "nodes"),
    ("", "serviceaccounts/token"),
    ("apps", "deployments"),
    ("coordination.k8s.io", "leases"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
}
VERBS = (
    *("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"),
    *("bind", "escalate", "impersonate"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One of its own: the root namespace takes restricted Pods only, and install.yaml is applied as a whole."""
    async with kubernetes(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kubectl(cluster: Cluster) -> Client:
    """kubectl as the administrator, after our resource definition was applied."""
    client = await clients.kubectl(cluster.directory / "home", kubeconfig=cluster.kubeconfig)
    await install_crd(client)
    return client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(cluster: Cluster, kubectl: Client) -> AsyncIterator[None]:
    """istio-system, which takes only restricted Pods, with wasmer installed."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": NAMESPACE, "labels": labels}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    await cluster.request("POST", "/api/v1/namespaces", body=body)
    await cluster.wait_for(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default")
    await kubectl.run("apply", "--dry-run=server", "-f", documents.INSTALL)
    await kubectl.run("apply", "-f", documents.INSTALL)
    for verb, group, resource, name in ONE_OF_EACH_BINDING:
        right = Right(verb, group, resource, NAMESPACE, name)
        await rights.wait_until_may(cluster, ACCOUNT, right)
    yield


def _granted(group: str, resource: str, namespace: str) -> set[str]:
    own = IN_ITS_NAMESPACE.get((group, resource), set()) if namespace == NAMESPACE else set()
    return GRANTED.get((group, resource), set()) | own


async def _may(
    cluster: Cluster, verb: str, group: str, resource: str, namespace: str, *, name: str = ""
) -> bool:
    return await rights.may(cluster, ACCOUNT, Right(verb, group, resource, namespace, name))


def _pod(name: str) -> Document:
    """A Pod as the Deployment makes it."""
    template = copy.deepcopy(installed("Deployment")["spec"]["template"])
    metadata = {**template["metadata"], "name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@pytest.mark.usefixtures("installation")
async def test_the_account_has_exactly_the_granted_permissions(cluster: Cluster) -> None:
    wrong = [
        (verb, group, resource, namespace)
        for (group, resource), verb in itertools.product(sorted(GRANTED.keys() | OTHERS), VERBS)
        for namespace in ("team", NAMESPACE)
        if await _may(cluster, verb, group, resource, namespace)
        != (verb in _granted(group, resource, namespace))
    ]
    assert wrong == []


@pytest.mark.usefixtures("installation")
async def test_the_account_may_change_its_own_lease_only(cluster: Cluster) -> None:
    group, resource = "coordination.k8s.io", "leases"
    allowed = {
        (verb, namespace, name)
        for verb, namespace, name in itertools.product(
            VERBS, ("team", NAMESPACE), ("wasmer", "istio-leader")
        )
        if await _may(cluster, verb, group, resource, namespace, name=name)
    }
    create = {("create", NAMESPACE, name) for name in ("wasmer", "istio-leader")}
    assert allowed - create == {(verb, NAMESPACE, "wasmer") for verb in ("get", "update")}


@pytest.mark.usefixtures("installation")
@pytest.mark.parametrize("resource", ["services", "endpoints"])
async def test_the_account_may_look_at_its_own_service_only(
    cluster: Cluster, resource: str
) -> None:
    allowed = {
        (verb, namespace, name)
        for verb, namespace, name in itertools.product(
            VERBS, ("team", NAMESPACE), ("wasmer", "wasmer-peers", "istiod")
        )
        if await _may(cluster, verb, "", resource, namespace, name=name)
    }
    assert allowed == {("get", NAMESPACE, "wasmer")}


@pytest.mark.usefixtures("installation")
async def test_kubectl_auth_can_i_reports_the_same_rights(kubectl: Client) -> None:
    async def can(verb: str, resource: str, *more: str) -> str:
        words = ("auth", "can-i", verb, resource, *more, "-n", "team", f"--as={ACCOUNT}")
        return (await kubectl.run(*words, check=False)).stdout.strip()

    assert await can("get", "secrets") == "yes"
    assert await can("list", "secrets") == "no"
    assert await can("update", "autowasms.wasm.tcm.io", "--subresource=status") == "yes"
    assert await can("update", "autowasms.wasm.tcm.io") == "no"


@pytest.mark.usefixtures("installation")
async def test_a_namespace_for_restricted_pods_takes_the_deployments_pod(cluster: Cluster) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name%3Dwasmer"
    async with asyncio.timeout(60):
        while len(pods := (await cluster.request("GET", path))["items"]) < 2:
            await asyncio.sleep(0.1)
    for pod in pods:
        assert pod["spec"]["serviceAccountName"] == "wasmer"
        assert pod["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet"


@pytest.mark.usefixtures("installation")
@pytest.mark.parametrize("missing", ["runAsNonRoot", "seccompProfile", "capabilities"])
async def test_restricted_namespace_refuses_the_pod_without_its_security_context(
    missing: str, cluster: Cluster
) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All"
    pod = _pod("restricted")
    await cluster.request("POST", path, body=pod)
    (container,) = pod["spec"]["containers"]
    pod["spec"]["securityContext"].pop(missing, None)
    container["securityContext"].pop(missing, None)
    with pytest.raises(ApiError, match="violates PodSecurity") as refused:
        await cluster.request("POST", path, body=pod)
    assert refused.value.status == 403


@pytest.mark.usefixtures("installation")
async def test_applied_twice_is_unchanged(cluster: Cluster, kubectl: Client) -> None:
    path = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/wasmer"
    before = (await cluster.request("GET", path))["metadata"]["generation"]
    lines = (await kubectl.run("apply", "-f", documents.INSTALL)).stdout.splitlines()
    # kubectl prints "configured" for every budget: its selector is replaced as a whole, by an equal one.
    said = {line for line in lines if not line.endswith("unchanged")}
    assert said <= {"poddisruptionbudget.policy/wasmer configured"}
    assert (await cluster.request("GET", path))["metadata"]["generation"] == before
