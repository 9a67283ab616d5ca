"""Users with Kubernetes' own roles in a namespace, on a real API server: what they may do with AutoWasms, without other rights."""

from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio
import yaml

from autowasm.api.status import Phase, Status
from tests.manifests import documents, rights
from tests.manifests.documents import AUTOWASMS, Document
from tests.manifests.rights import Right
from tests.parts.clients import Client
from tests.parts.controlplane import ControlPlane
from tests.parts.installation import install_documents
from tests.parts.kubernetes import Cluster

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
READS = {"get", "list", "watch", "get the status"}
WRITES = {"create", "patch", "delete"}
DONE_BY = {
    "get": ("get", "aw", "one"),
    "list": ("get", "aw"),
    "watch": ("wait", "aw/one", "--for=jsonpath={.status.phase}=Synced", "--timeout=10s"),
    "get the status": ("get", "aw", "one", "--subresource=status"),
    "create": ("create", "-f", "new.yaml"),
    "patch": ("annotate", "aw", "one", "wasm.tcm.io/refresh=1"),
    "delete": ("delete", "aw", "two"),
    "patch the status": (
        *("patch", "aw", "one", "--subresource=status", "--type=merge"),
        *("-p", '{"status": {"phase": "Failed"}}'),
    ),
}
"""Each as arguments of kubectl."""


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def _without_wasmer(control_plane: ControlPlane) -> AsyncIterator[None]:
    """The shipped rights are there, and the built-in roles have taken them up."""
    async with control_plane.without_wasmer():
        shipped = install_documents("ClusterRole")
        await control_plane.cluster.apply(*shipped)
        for role in ("view", "edit", "admin"):
            label = f"rbac.authorization.k8s.io/aggregate-to-{role}"
            # The controller takes them up one by one.
            rules = [
                rule
                for one in shipped
                if label in one["metadata"]["labels"]
                for rule in one["rules"]
            ]
            await control_plane.cluster.client.wait_object(
                f"{ROLES}/{role}", partial(_has_all, rules), timeout=60
            )
        yield


def _has_all(rules: list[Document], role: Document | None) -> bool:
    present = (role or {}).get("rules") or ()
    return all(rule in present for rule in rules)


async def _namespace(control_plane: ControlPlane) -> str:
    """A namespace with two AutoWasms."""
    namespace = await control_plane.add_namespace("users")
    collection = AUTOWASMS.format(namespace=namespace)
    for name in ("one", "two"):
        document = documents.valid()
        document["metadata"] = {"name": name, "namespace": namespace}
        created = await control_plane.cluster.request("POST", collection, body=document)
        body = {**created, "status": Status(phase=Phase.SYNCED).to_dict()}
        await control_plane.cluster.request("PUT", f"{collection}/{name}/status", body=body)
    return namespace


def _binding(namespace: str, user: str, role: str) -> Document:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": role, "namespace": namespace},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }


async def _allowed(kubectl: Client, namespace: str, user: str) -> set[str]:
    """Which of `DONE_BY` the API server does for the user. Each other one is refused for a missing right."""
    document = documents.valid()
    (kubectl.home / "new.yaml").write_text(
        yaml.safe_dump({**document, "metadata": {"name": "new"}})
    )
    allowed = set()
    for what, arguments in DONE_BY.items():
        done = await kubectl.run(*arguments, "-n", namespace, "--as", user, check=False)
        assert done.returncode == 0 or "is forbidden: User" in done.stderr, (what, done)
        if done.returncode == 0:
            allowed.add(what)
    return allowed


@pytest.mark.parametrize(
    ("role", "expected"),
    [("view", READS), ("edit", READS | WRITES), ("admin", READS | WRITES)],
)
async def test_a_user_of_a_namespace_needs_no_rights_but_a_built_in_role(
    role: str, expected: set[str], control_plane: ControlPlane, kubectl: Client
) -> None:
    user = f"a-{role}"
    own, other = await _namespace(control_plane), await _namespace(control_plane)
    cluster = control_plane.cluster
    await cluster.apply(_binding(own, user, role))
    last = "delete" if expected >= WRITES else "list"
    await rights.wait_until_may(cluster, user, Right(last, "wasm.tcm.io", "autowasms", own))
    assert await _allowed(kubectl, own, user) == expected
    assert await _allowed(kubectl, other, user) == set()


async def test_a_view_of_istios_resources_has_autowasms(
    control_plane: ControlPlane, cluster: Cluster, kubectl: Client
) -> None:
    namespace = await _namespace(control_plane)
    text = yaml.safe_dump(
        {
            "apiVersion": "networking.istio.io/v1alpha3",
            "kind": "EnvoyFilter",
            "metadata": {"name": "theirs", "namespace": namespace},
            "spec": {"configPatches": []},
        }
    )
    await kubectl.run("apply", "-f", "-", stdin=text.encode())
    listed = (await kubectl.run("get", "istio-io", "-n", namespace, "-o", "name")).stdout.split()
    assert sorted(listed) == [
        *("autowasm.wasm.tcm.io/one", "autowasm.wasm.tcm.io/two"),
        "envoyfilter.networking.istio.io/theirs",
    ]
