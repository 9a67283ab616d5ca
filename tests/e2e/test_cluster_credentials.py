"""Every kind of pull secret, those of the ServiceAccount, and the operator's policy, on a real API server and a real registry."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.clusterfixtures import PrivateInstallation
from tests.parts import wat
from tests.parts.controlplane import ControlPlane
from tests.parts.installation import PASSWORD, USER, Document, Installation

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

POLICY = json.dumps({"namespaces": {"closed-*": {"registries": []}, "*": {}}})
ROLE: tuple[Document, ...] = (
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "wasmer-serviceaccounts"},
        "rules": [{"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]}],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "wasmer-serviceaccounts"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "wasmer-serviceaccounts",
        },
        "subjects": [{"kind": "ServiceAccount", "name": "wasmer", "namespace": "istio-system"}],
    },
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def installation(
    private_installation: PrivateInstallation, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    directory = tmp_path_factory.mktemp("credentials")
    policy = directory / "policy.yaml"
    await asyncio.to_thread(policy.write_text, POLICY)
    arguments = ["--service-account-pull-secrets", "--policy-file", str(policy)]
    async with private_installation(directory, arguments=arguments) as installation:
        await installation.apply(*ROLE)
        yield installation
        client = installation.cluster.client
        for document in ROLE:  # the shared installation has only the shipped RBAC
            await client.delete(await client.path_of(document))


def secret(name: str, kind: str, namespace: str, host: str) -> Document:
    entry = {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
    texts = {
        "kubernetes.io/dockercfg": {".dockercfg": json.dumps({f"https://{host}/v1/": entry})},
        "kubernetes.io/dockerconfigjson": {
            ".dockerconfigjson": json.dumps({"auths": {f"{host}/xxx": entry}})
        },
        "kubernetes.io/basic-auth": {"username": USER, "password": PASSWORD},
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": kind,
        "metadata": {"name": name, "namespace": namespace},
        "stringData": texts[kind],
    }


def uses(autowasm: Document, name: str | None) -> Document:
    autowasm["spec"].pop("secret", None)
    if name is not None:
        autowasm["spec"]["secret"] = name
    return autowasm


async def test_each_kind_of_secret(control_plane: ControlPlane, installation: Installation) -> None:
    namespace = await control_plane.add_namespace("kinds")
    host = installation.registry.host
    image = await installation.push("v1", wat.header_filter("kinds"))
    for name in ("dockercfg", "dockerconfigjson", "basic-auth"):
        made = secret(name, f"kubernetes.io/{name}", namespace, host)
        if name == "basic-auth":
            made["metadata"]["annotations"] = {"wasm.tcm.io/registry": host}
        autowasm = installation.autowasm(image, name=name, namespace=namespace)
        await installation.apply(made, uses(autowasm, name))
        found = await installation.wait_phase("Synced", name=name, namespace=namespace)
        path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
        uid = (await installation.cluster.request("GET", path))["metadata"]["uid"]
        assert found["status"]["module"]["secretUid"] == uid
        assert PASSWORD not in json.dumps(found)

    plain = secret("not-annotated", "kubernetes.io/basic-auth", namespace, host)
    autowasm = installation.autowasm(image, name="not-annotated", namespace=namespace)
    await installation.apply(plain, uses(autowasm, "not-annotated"))
    failed = await installation.wait_phase("Failed", name="not-annotated", namespace=namespace)
    assert "must add the annotation wasm.tcm.io/registry" in failed["status"]["message"]


async def test_secrets_of_the_service_account(
    control_plane: ControlPlane, installation: Installation
) -> None:
    namespace = await control_plane.add_namespace("accounts")
    image = await installation.push("v1", wat.header_filter("accounts"), repository="xxx/account")
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    account = await installation.cluster.wait_for(path)
    account["imagePullSecrets"] = [{"name": "missing"}, {"name": "pull"}]
    await installation.cluster.request("PUT", path, body=account)
    kind = "kubernetes.io/dockerconfigjson"
    await installation.apply(
        secret("pull", kind, namespace, installation.registry.host),
        uses(installation.autowasm(image, namespace=namespace), None),
    )
    found = await installation.wait_phase("Synced", namespace=namespace)
    assert found["status"]["module"]["secretUid"]


async def test_policy_refuses_names_its_rule_and_is_followed(
    control_plane: ControlPlane, installation: Installation
) -> None:
    namespace = await control_plane.add_namespace("closed")
    await installation.add_pull_secret(namespace)
    image = await installation.push("v1", wat.header_filter("policy"), repository="xxx/policy")
    await installation.apply(installation.autowasm(image, namespace=namespace))
    failed = await installation.wait_phase("Failed", namespace=namespace)
    assert "rule 'closed-*' allows images from nowhere" in failed["status"]["message"]
    policy = installation.directory / "policy.yaml"
    await asyncio.to_thread(_write, policy, json.dumps({"namespaces": {"*": {}}}))
    found = await installation.wait_phase("Synced", namespace=namespace)
    published = await installation.envoyfilter(namespace=namespace)

    await asyncio.to_thread(_write, policy, POLICY)

    async def degraded() -> Document | None:
        document = await installation.get(namespace=namespace)
        return document if document["status"]["phase"] == "Degraded" else None

    closed = await installation.wait_until(degraded)
    assert closed["status"]["module"] == found["status"]["module"]
    assert await installation.envoyfilter(namespace=namespace) == published, "fail static"


def _write(path: Path, text: str) -> None:
    path.write_text(text)
