"""Other clients change the EnvoyFilter that wasmer wrote, on a real API server: wasmer reverts or adopts it, or leaves it."""

import asyncio
import contextlib
import hashlib
import json
from typing import Any

import aiohttp
import pytest

from tests.parts import wat
from tests.parts.installation import Document, Installation, autowasms, envoyfilters
from tests.parts.kubernetes import ApiError

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]


async def _push(installation: Installation, value: str, *, tag: str = "") -> tuple[str, str]:
    """The image, and the digest of the module in it."""
    module = wat.header_filter(value)
    return await installation.push(tag or value, module), hashlib.sha256(module).hexdigest()


def _published(sha256: str) -> Any:
    return lambda found: f"/wasm/{sha256}" in json.dumps(found)


def _reason(document: Document, condition: str) -> str:
    return next(c["reason"] for c in document["status"]["conditions"] if c["type"] == condition)


async def _wait_published(installation: Installation, namespace: str, reason: str) -> Document:
    """Wait until the condition `Published` has this reason."""

    async def reached() -> Document | None:
        document = await installation.get(namespace=namespace)
        if not (document.get("status") or {}).get("conditions"):
            return None
        return document if _reason(document, "Published") == reason else None

    return await installation.wait_until(reached)


async def _synced(installation: Installation, namespace: str, value: str = "world") -> Document:
    """Publish an AutoWasm; returns its EnvoyFilter."""
    image, _ = await _push(installation, value)
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_phase("Synced", namespace=namespace)
    return await installation.envoyfilter(namespace=namespace)


async def _edit(installation: Installation, namespace: str, patch: Document) -> None:
    arguments = ("test", "-n", namespace, "--type=merge", "-p", json.dumps(patch))
    await installation.kubectl.run("patch", "envoyfilter", *arguments)


async def _wait_as_before(
    installation: Installation, before: Document, *, uid: bool = True
) -> Document:
    """Wait until the spec and our metadata are restored."""

    def same(found: Document) -> bool:
        metadata, was = found["metadata"], before["metadata"]
        fields = ["labels", "annotations", "ownerReferences", *(["uid"] if uid else [])]
        return found["spec"] == before["spec"] and all(
            metadata.get(field) == was.get(field) for field in fields
        )

    return await installation.wait_envoyfilter(same, namespace=before["metadata"]["namespace"])


def _as_an_earlier_version_wrote_it(envoyfilter: Document, sha256: str) -> Document:
    """Its spec: the reference's patch alone, the configuration as a Struct, and two resends."""
    text = json.dumps(envoyfilter["spec"]).replace(f'/wasm/{sha256}"', f'/wasm/{sha256}?r=2"')
    spec: Document = json.loads(text)
    spec["configPatches"] = [
        each
        for each in spec["configPatches"]
        if each["patch"]["operation"] == "INSERT_BEFORE" and "name" not in each["match"]["listener"]
    ]
    (patch,) = spec["configPatches"]
    config = patch["patch"]["value"]["typedConfig"]["value"]["config"]
    struct = "type.googleapis.com/google.protobuf.Struct"
    config["configuration"] = {
        "@type": struct,
        "value": json.loads(config["configuration"]["value"]),
    }
    return spec


@pytest.mark.parametrize("every_port", [False, True], ids=["a port", "every port"])
async def test_envoyfilter_of_an_earlier_version_is_rewritten_once_and_keeps_its_count(
    installation: Installation, namespace: str, every_port: bool
) -> None:
    image, sha256 = await _push(installation, "earlier")
    document = installation.autowasm(image, namespace=namespace, pluginConfig={"b": [1.5], "a": 1})
    if every_port:
        del document["spec"]["filter"]["applyPorts"]
    await installation.apply(document)
    await installation.wait_phase("Synced", namespace=namespace)
    before = await installation.envoyfilter(namespace=namespace)
    await installation.wasmer.process.stop()
    earlier = _as_an_earlier_version_wrote_it(before, sha256)
    await _edit(installation, namespace, {"spec": earlier})
    since = await installation.audit.position()

    await installation.wasmer.start()
    patches = len(before["spec"]["configPatches"])
    after = await installation.wait_envoyfilter(
        lambda found: len(found["spec"]["configPatches"]) == patches, namespace=namespace
    )
    text = json.dumps(after["spec"])
    assert f'/wasm/{sha256}?r=2"' in text, "a lower count would have all sidecars fetch it again"
    assert json.loads(text.replace("?r=2", "")) == before["spec"]
    for ours in ("annotations", "labels", "ownerReferences"):
        assert after["metadata"][ours] == before["metadata"][ours]
    url = f"http://{installation.wasmer.host}/wasm/{sha256}?r=2"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
    await installation.apply(installation.autowasm(image, name="next", namespace=namespace))
    await installation.wait_phase("Synced", name="next", namespace=namespace)
    writes = [
        str(entry)
        for entry in await installation.writes(since)
        if (entry.resource, entry.namespace, entry.name) == ("envoyfilters", namespace, "test")
    ]
    assert len(writes) == 1, writes
    again = await installation.get(namespace=namespace)
    assert again["status"]["phase"] == "Synced"


@pytest.mark.parametrize("part", ["label", "record", "damaged record", "owner"])
async def test_removed_envoyfilter_fields_are_restored_without_the_registry(
    installation: Installation, namespace: str, part: str
) -> None:
    before = await _synced(installation, namespace)
    record = "wasm.tcm.io/record"
    forged = json.loads(before["metadata"]["annotations"][record]) | {"sha256": "0" * 64}
    patches: dict[str, Document] = {
        "label": {"labels": {"app.kubernetes.io/managed-by": None}},
        "record": {"annotations": {record: None}},
        "damaged record": {"annotations": {record: json.dumps(forged)}},
        "owner": {"ownerReferences": []},
    }
    await installation.registry.stop()
    try:
        await _edit(installation, namespace, {"metadata": patches[part]})
        await _wait_as_before(installation, before)
        document = await installation.wait_phase("Synced", namespace=namespace)
    finally:
        await installation.registry.start()
    assert document["status"]["module"]["sha256"] != "0" * 64


async def test_unlabelled_envoyfilter_of_a_degraded_autowasm_is_not_called_absent(
    installation: Installation, namespace: str
) -> None:
    before = await _synced(installation, namespace)
    image = f"{installation.registry.host}/xxx/hello:never-pushed"
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_phase("Degraded", namespace=namespace)
    await _edit(
        installation, namespace, {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}
    )
    await _wait_as_before(installation, before)
    document = await installation.wait_phase("Degraded", namespace=namespace)
    assert "is still in place" in document["status"]["message"]
    assert _reason(document, "Published") == "Published"


async def test_module_of_an_orphaned_envoyfilter_is_served_until_its_adoption(
    installation: Installation, namespace: str
) -> None:
    _, sha256 = await _push(installation, "orphan")
    before = await _synced(installation, namespace, "orphan")
    while not await _orphaned(installation, namespace):
        before = await _synced(installation, namespace, "orphan")
    await installation.wasmer.process.stop()
    await installation.wasmer.start()  # and after a restart
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{installation.wasmer.host}/wasm/{sha256}") as answer,
    ):
        assert answer.status == 200

    await _synced(installation, namespace, "orphan")
    after = await installation.envoyfilter(namespace=namespace)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert len(after["metadata"]["ownerReferences"]) == 1


async def _orphaned(installation: Installation, namespace: str) -> bool:
    """False if the garbage collector did not know the EnvoyFilter yet and deletes it."""
    arguments = ("test", "-n", namespace, "--cascade=orphan", "--wait=false")
    await installation.kubectl.run("delete", "aw", *arguments)
    await installation.wait_gone(autowasms(namespace, "test"))
    with contextlib.suppress(ApiError):
        left = await installation.envoyfilter(namespace=namespace)
        if not left["metadata"].get("ownerReferences"):
            return True
    await installation.wait_gone(envoyfilters(namespace, "test"))
    return False


async def test_deleted_envoyfilter_is_there_again_three_times_and_then_left(
    installation: Installation, namespace: str
) -> None:
    before = await _synced(installation, namespace)
    path = envoyfilters(namespace, "test")
    since = await installation.audit.position()

    async def delete() -> None:
        while True:
            with contextlib.suppress(ApiError):
                await installation.cluster.request("DELETE", path)
            await asyncio.sleep(0.02)

    await installation.cluster.request("DELETE", path)
    await _wait_as_before(installation, before, uid=False)  # a single change is no conflict
    deleter = asyncio.create_task(delete())
    try:
        document = await _wait_published(installation, namespace, "Mutated")
    finally:
        deleter.cancel()
    assert document["status"]["phase"] == "Failed"
    writes = [entry for entry in await installation.writes(since) if entry.namespace == namespace]
    created = [e for e in writes if (e.resource, e.verb) == ("envoyfilters", "create")]
    assert len(created) == 3
    arguments = ("test", "-n", namespace, "wasm.tcm.io/refresh=again")
    await installation.kubectl.run("annotate", "aw", *arguments)
    await _wait_as_before(installation, before, uid=False)
    await installation.wait_phase("Synced", namespace=namespace)


async def test_envoyfilter_that_is_being_deleted_is_not_called_published(
    installation: Installation, namespace: str
) -> None:
    before = await _synced(installation, namespace)
    await _edit(installation, namespace, {"metadata": {"finalizers": ["example.com/held"]}})
    arguments = ("test", "-n", namespace, "--wait=false")
    await installation.kubectl.run("delete", "envoyfilter", *arguments)
    document = await _wait_published(installation, namespace, "EnvoyFilterTerminating")
    assert "example.com/held" in document["status"]["message"]
    await _edit(installation, namespace, {"metadata": {"finalizers": None}})
    await _wait_as_before(installation, before, uid=False)
    await installation.wait_phase("Synced", namespace=namespace)


async def test_rewritten_envoyfilter_is_reverted_three_times_and_then_left(
    installation: Installation, namespace: str
) -> None:
    image, _ = await _push(installation, "world")
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_phase("Synced", namespace=namespace)
    since = await installation.audit.position()

    async def rewrite() -> None:
        while True:
            live = await installation.envoyfilter(namespace=namespace)
            if live["spec"]["configPatches"]:
                live["spec"]["configPatches"] = []
                path = envoyfilters(namespace, "test")
                await installation.cluster.request("PUT", path, body=live)
            await asyncio.sleep(0.02)

    rewriter = asyncio.create_task(rewrite())
    try:
        await _wait_published(installation, namespace, "Mutated")
    finally:
        rewriter.cancel()
    writes = [entry for entry in await installation.writes(since) if entry.namespace == namespace]
    assert [entry.code for entry in writes if entry.resource == "envoyfilters"] == [200] * 3
    # A change of the AutoWasm resets the count.
    image, earth = await _push(installation, "earth")
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_phase("Synced", namespace=namespace)
    await installation.wait_envoyfilter(_published(earth), namespace=namespace)


async def test_foreign_envoyfilter_is_unchanged_until_its_adopt_annotation_is_set(
    installation: Installation, namespace: str
) -> None:
    foreign = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "test", "namespace": namespace},
        "spec": {"workloadSelector": {"labels": {"app": "none"}}, "configPatches": []},
    }
    await installation.apply(foreign)
    before = await installation.envoyfilter(namespace=namespace)
    image, sha256 = await _push(installation, "world")
    await installation.apply(installation.autowasm(image, namespace=namespace))
    document = await installation.wait_phase("Failed", namespace=namespace)
    assert _reason(document, "Published") == "EnvoyFilterConflict"
    assert "wasm.tcm.io/adopt" in document["status"]["message"]
    assert await installation.envoyfilter(namespace=namespace) == before

    arguments = ("test", "-n", namespace, "--overwrite")
    await installation.kubectl.run("annotate", "envoyfilter", *arguments, "wasm.tcm.io/adopt=true")
    await installation.kubectl.run("annotate", "aw", *arguments, "example.com/touched=1")

    await installation.wait_phase("Synced", namespace=namespace)
    adopted = await installation.wait_envoyfilter(_published(sha256), namespace=namespace)
    assert adopted["metadata"]["uid"] == before["metadata"]["uid"]


async def test_envoyfilter_of_an_earlier_autowasm_of_this_name_is_adopted(
    installation: Installation, namespace: str
) -> None:
    image, sha256 = await _push(installation, "world")
    autowasm = installation.autowasm(image, namespace=namespace)
    await installation.apply(autowasm)
    await installation.wait_phase("Synced", namespace=namespace)
    await installation.cluster.stop_controller_manager()  # it would be faster than the test
    try:
        before = await installation.envoyfilter(namespace=namespace)
        await installation.kubectl.run("delete", "aw", "test", "-n", namespace)
        await installation.apply(autowasm)
        document = await installation.wait_phase("Synced", namespace=namespace)
    finally:
        await installation.cluster.start_controller_manager()
    after = await installation.wait_envoyfilter(_published(sha256), namespace=namespace)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"] == before["spec"]
    owners = [owner["uid"] for owner in after["metadata"]["ownerReferences"]]
    assert owners == [document["metadata"]["uid"]]


async def test_refusal_of_the_api_server_is_reported_and_the_write_tried_until_it_is_taken(
    installation: Installation, namespace: str
) -> None:
    kind = "ValidatingAdmissionPolicy"
    rule = {
        "apiGroups": ["networking.istio.io"],
        "apiVersions": ["*"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["envoyfilters"],
    }
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": namespace},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": "false", "message": "no filters before Monday"}],
        },
    }
    labels = {"kubernetes.io/metadata.name": namespace}
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": f"{kind}Binding",
        "metadata": {"name": namespace},
        "spec": {
            "policyName": namespace,
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": labels}},
        },
    }
    before = await _synced(installation, namespace)
    await installation.apply(policy, binding)

    async def in_force() -> Document | None:
        probe = {**before, "metadata": {"name": "probe", "namespace": namespace}}
        try:
            path = envoyfilters(namespace) + "?dryRun=All"
            await installation.cluster.request("POST", path, body=probe)
        except ApiError as error:
            return {"status": error.status}
        return None

    await installation.wait_until(in_force)
    image, _ = await _push(installation, "world")
    for name, phase in (("test", "Degraded"), ("new", "Failed")):
        document = installation.autowasm(
            image, name=name, namespace=namespace, pluginConfig="changed"
        )
        await installation.apply(document)
        found = await installation.wait_phase(phase, name=name, namespace=namespace)
        assert _reason(found, "Ready") == "EnvoyFilterRefused"
        assert "no filters before Monday" in found["status"]["message"]
    left = await installation.envoyfilter(namespace=namespace)
    assert left["spec"] == before["spec"], "what runs stays"
    await installation.kubectl.run("delete", f"{kind}Binding,{kind}", namespace)
    for name in ("test", "new"):
        await installation.wait_phase("Synced", name=name, namespace=namespace)
        after = await installation.envoyfilter(name, namespace=namespace)
        assert "changed" in json.dumps(after["spec"])
