"""The writes of wasmer, and the objects that it leaves unchanged, on a real API server. It has Istio's resources; no proxy is needed."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from autowasm.limits import KubeLimits
from tests.parts import istio, ports, wat
from tests.parts.installation import (
    MANIFESTS,
    Document,
    Installation,
    autowasms,
    envoyfilters,
    install_crd,
    install_documents,
    installed_without_istiod,
)
from tests.parts.kubernetes import ApiError, kubernetes

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{istio.ROOT_NAMESPACE}/leases/wasmer"
_REFRESH = "wasm.tcm.io/refresh"


def _pod(name: str, *, namespace: str, sidecar: bool = True, app: str = "details") -> Document:
    containers = [{"name": "main", "image": "example.com/main:1"}]
    if sidecar:
        containers.append({"name": "istio-proxy", "image": "example.com/proxy:1"})
    metadata = {"name": name, "namespace": namespace, "labels": {"app": app, "pod": name}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": containers},
    }


def _pods(namespace: str, name: str = "", *, subresource: str = "") -> str:
    path = f"/api/v1/namespaces/{namespace}/pods"
    return "/".join(part for part in (path, name, subresource) if part)


async def _create_pod(installation: Installation, pod: Document, *, phase: str = "Running") -> None:
    """It has no address, so wasmer reads no statistics of it, whose result would change the status some time later."""
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    created = await installation.cluster.request("POST", _pods(namespace), body=pod)
    body = {**created, "status": {"phase": phase}}
    await installation.cluster.request(
        "PUT", _pods(namespace, name, subresource="status"), body=body
    )


async def _wait_pods(installation: Installation, namespace: str, **counts: int) -> Document:
    async def counted() -> Document | None:
        document = await installation.get(namespace=namespace)
        found = (document.get("status") or {}).get("pods") or {}
        return document if found.items() >= counts.items() else None

    return await installation.wait_until(counted)


async def _change(installation: Installation, document: Document, *, subresource: str = "") -> None:
    metadata = document["metadata"]
    path = autowasms(metadata["namespace"], metadata["name"], subresource=subresource)
    await installation.cluster.request("PUT", path, body=document)


async def _merge(installation: Installation, kind: str, namespace: str, patch: Any) -> None:
    arguments = ("patch", kind, "test", "-n", namespace, "--type=merge", "-p", json.dumps(patch))
    await installation.kubectl.run(*arguments)


def _reason(document: Document, condition: str) -> str:
    return next(c["reason"] for c in document["status"]["conditions"] if c["type"] == condition)


_IN_A_POD = {("", "services", "get"), ("", "endpoints", "get")}
"""wasmer checks its Service only if it runs in the cluster: test_cluster_installed.py."""


def _granted() -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for role in install_documents("ClusterRole", "Role")
        if not any("aggregate" in label for label in role["metadata"]["labels"])  # of users
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


async def _push(installation: Installation, value: str, *, tag: str = "") -> tuple[str, str]:
    """The image, and the digest of the module in it."""
    module = wat.header_filter(value)
    return await installation.push(tag or value, module), hashlib.sha256(module).hexdigest()


def _published(sha256: str) -> Any:
    return lambda found: f"/wasm/{sha256}" in json.dumps(found)


@pytest_asyncio.fixture(loop_scope="session")
async def installation_without_streaming_lists(tmp_path: Path) -> AsyncIterator[Installation]:
    """On an API server of its own, on which informers list in pages: RBAC must allow that, too."""
    extra = ["--feature-gates=WatchList=false"]
    async with (
        kubernetes(tmp_path / "kubernetes", audit_level="RequestResponse", extra=extra) as cluster,
        installed_without_istiod(cluster, tmp_path) as installation,
    ):
        yield installation


async def test_granted_permissions_equal_the_requests_of_wasmer(
    installation_without_streaming_lists: Installation,
) -> None:
    installation = installation_without_streaming_lists
    namespace = await installation.add_namespace("rights")
    since = await installation.audit.position()
    await installation.wasmer.process.stop()
    # So that it is created again. wasmer is ready before it leads, and may have stopped without a Lease.
    await installation.cluster.client.delete(LEASE)
    await installation.wasmer.start()
    image, one = await _push(installation, "one")
    foreign = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "foreign", "namespace": namespace},
        "spec": {"configPatches": []},
    }
    await installation.apply(
        foreign,
        installation.autowasm(image, namespace=namespace),
        installation.autowasm(image, namespace=namespace, name="foreign"),
    )
    await installation.wait_phase("Synced", namespace=namespace)
    await installation.wait_phase("Failed", namespace=namespace, name="foreign")
    await _create_pod(installation, _pod("a", namespace=namespace))
    await _wait_pods(installation, namespace, matched=1, injected=1)
    for _ in range(2):  # the second time the Event exists, and its count increases
        live = await installation.wait_envoyfilter(_published(one), namespace=namespace)
        await _merge(installation, "envoyfilter", namespace, {"spec": {"configPatches": []}})
        await installation.wait_envoyfilter(
            lambda found, live=live: found["spec"] == live["spec"], namespace=namespace
        )
    image, two = await _push(installation, "two")
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_envoyfilter(_published(two), namespace=namespace)
    await installation.wait_phase("Synced", namespace=namespace)

    async def patched() -> Document | None:
        return (
            {}
            if any(entry.verb == "patch" for entry in await installation.requests(since))
            else None
        )

    await installation.wait_until(patched)
    await installation.kubectl.run("delete", "aw", "--all", "-n", namespace)
    await installation.wait_gone(envoyfilters(namespace, "test"))

    requests = await installation.requests(since)
    assert [str(entry) for entry in requests if entry.code == 403] == []
    assert [str(entry) for entry in requests if entry.changed_nothing] == []
    used = {(entry.group, entry.resource, entry.verb) for entry in requests}
    assert used == _granted() - _IN_A_POD
    assert {entry.verb for entry in requests if entry.resource == "secrets"} == {"get"}


def _counts(document: Document) -> tuple[int, int]:
    pods = document["status"]["pods"]
    return pods["matched"], pods["injected"]


async def test_pods_are_counted_within_a_budget_of_writes(
    installation: Installation, namespace: str
) -> None:
    image, _ = await _push(installation, "world")
    await _create_pod(installation, _pod("before", namespace=namespace))
    await _create_pod(installation, _pod("other", namespace=namespace, app="other"))
    # It matches only after its end: a write that counts it before would use up the budget.
    await _create_pod(
        installation, _pod("ended", namespace=namespace, app="other"), phase="Succeeded"
    )
    await installation.apply(installation.autowasm(image, namespace=namespace))
    document = await installation.wait_phase("Synced", namespace=namespace)
    assert _counts(document) == (1, 1)

    since = await installation.logged(document)
    await _create_pod(installation, _pod("bare", namespace=namespace, sidecar=False))
    labels = {"metadata": {"labels": {"app": "details"}}}
    await installation.cluster.request("PATCH", _pods(namespace, "ended"), body=labels)
    changed = await _wait_pods(installation, namespace, matched=2, injected=1)
    about_pods = {"pods", "conditions"}
    assert {name: changed["status"][name] for name in changed["status"].keys() - about_pods} == {
        name: document["status"][name] for name in document["status"].keys() - about_pods
    }

    async with asyncio.timeout(20):
        for number in range(5):
            await _create_pod(installation, _pod(f"more-{number}", namespace=namespace))
            await asyncio.sleep(1)  # rollouts last
    writes = [entry for entry in await installation.writes(since) if entry.namespace == namespace]
    assert [str(entry) for entry in writes if entry.resource != "events"] == [
        f"update wasm.tcm.io/autowasms/status {namespace}/test: 200"
    ]
    # A significant change includes the counts, independent of the budget.
    image, _ = await _push(installation, "earth")
    await installation.apply(installation.autowasm(image, namespace=namespace))
    document = await installation.wait_phase("Synced", namespace=namespace)
    assert _counts(document) == (7, 6)


async def test_namespace_deletion_ends_cleanly(installation: Installation, namespace: str) -> None:
    image, _ = await _push(installation, "world")
    await installation.apply(
        *(installation.autowasm(image, namespace=namespace, name=f"f{n}") for n in range(5))
    )
    for n in range(5):  # the Event is the last write about an object
        await installation.wait_event(namespace=namespace, reason="Synced", about=f"f{n}")
    since = await installation.audit.position()

    await installation.kubectl.run("delete", "namespace", namespace, timeout=300)

    await installation.wait_gone(f"/api/v1/namespaces/{namespace}")
    await _witness(installation)  # informers lag: an AutoWasm may go after its namespace
    refused = [entry for entry in await installation.writes(since) if entry.code >= 400]
    assert len(refused) <= 5, refused  # one try for an EnvoyFilter deleted before its AutoWasm
    await _no_more_writes(installation, namespace)


async def _witness(installation: Installation) -> None:
    """Another object is completely processed."""
    await installation.apply(installation.autowasm("127.0.0.1:1/none:v1", name="witness"))
    await installation.wait_phase("Failed", name="witness")
    await installation.kubectl.run("delete", "aw", "witness")


async def _no_more_writes(installation: Installation, namespace: str) -> None:
    """A witness object shows that no work is left for this namespace."""
    since = await installation.audit.position()
    await _witness(installation)
    writes = await installation.writes(since)
    assert [str(entry) for entry in writes if entry.namespace == namespace] == []


async def test_foreground_deletion_ends_cleanly(installation: Installation, namespace: str) -> None:
    image, _ = await _push(installation, "world")
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_event(namespace=namespace, reason="Synced", about="test")

    arguments = ("delete", "aw", "test", "-n", namespace, "--cascade=foreground")
    await installation.kubectl.run(*arguments, timeout=300)

    await installation.wait_gone(envoyfilters(namespace, "test"))
    await _no_more_writes(installation, namespace)


async def test_deleting_an_autowasm_ends_a_fetch_that_hangs(
    installation: Installation, namespace: str
) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        while await reader.read(1024):
            pass
        left.set()
        writer.close()

    async with await asyncio.start_server(hang, ports.LOOPBACK, 0) as server:
        port = server.sockets[0].getsockname()[1]
        document = installation.autowasm(f"{ports.LOOPBACK}:{port}/a/b:v1", namespace=namespace)
        await installation.apply(document)
        async with asyncio.timeout(60):
            await asked.wait()
        await installation.kubectl.run("delete", "aw", "test", "-n", namespace, timeout=20)
        async with asyncio.timeout(20):  # the fetch itself would end after 30 s
            await left.wait()
    await _no_more_writes(installation, namespace)


async def test_empty_selector_in_the_root_namespace_needs_the_operators_consent(
    installation: Installation,
) -> None:
    namespace = istio.ROOT_NAMESPACE
    await installation.add_pull_secret(namespace)
    image, _ = await _push(installation, "world")
    document = installation.autowasm(image, namespace=namespace)
    document["spec"]["selector"]["matchLabels"] = {}
    await installation.apply(document)
    refused = await installation.wait_phase("Failed", namespace=namespace)
    assert "--allow-mesh-wide" in refused["status"]["message"]
    assert _reason(refused, "Ready") == "MeshWideNotAllowed"
    with pytest.raises(ApiError):
        await installation.envoyfilter(namespace=namespace)
    await installation.kubectl.run("delete", "aw", "test", "-n", namespace)


_WRONG: Mapping[str, tuple[str, Any]] = {
    "spec.filter.source": ("source", {}),
    "spec.filter.applyPorts[1]": ("applyPorts", [9080, 0]),
    "spec.filter.pullPolicy": ("pullPolicy", "Sometimes"),
    "spec.filter.pluginConfig": ("pluginConfig", [1]),
    "spec.filter.sha256": ("sha256", "abc"),
}


async def test_invalid_objects_that_an_older_crd_lets_pass_fail_with_the_field(
    installation: Installation, namespace: str
) -> None:
    image, _ = await _push(installation, "world")
    crd = yaml.safe_load((MANIFESTS / "crd.yaml").read_text())
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    crd["spec"]["versions"][0]["schema"] = {
        "openAPIV3Schema": {"type": "object", "properties": {"spec": anything, "status": anything}}
    }
    await installation.apply(crd)
    try:
        for number, (path, (field, value)) in enumerate(_WRONG.items()):
            name = f"wrong-{number}"
            document = installation.autowasm(image, namespace=namespace, name=name)
            document["spec"]["filter"][field] = value
            await _create_once_taken(installation, document)
            failed = await installation.wait_phase("Failed", namespace=namespace, name=name)
            assert failed["status"]["message"].startswith(path), failed["status"]["message"]
            assert _reason(failed, "Ready") == "InvalidSpec"
    finally:
        await installation.kubectl.run("delete", "aw", "--all", "-n", namespace)
        await install_crd(installation.kubectl)


async def _create_once_taken(installation: Installation, document: Document) -> None:
    """The API server applies a changed CRD some moments after it was stored."""

    async def taken() -> Document | None:
        path = autowasms(document["metadata"]["namespace"])
        try:
            return await installation.cluster.request("POST", path, body=document)
        except ApiError as error:
            if error.status == 422:
                return None
            raise

    await installation.wait_until(taken)


async def test_moved_tag_rolls_out_when_the_refresh_annotation_asks_for_it(
    installation: Installation, namespace: str
) -> None:
    image, one = await _push(installation, "one", tag="moving")
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_envoyfilter(_published(one), namespace=namespace)
    await installation.wait_phase("Synced", namespace=namespace)
    _, two = await _push(installation, "two", tag="moving")

    # Neither an edit nor a restart rolls it out.
    patch = {"spec": {"filter": {"pluginConfig": {"a": 1}}}}
    await _merge(installation, "aw", namespace, patch)
    await installation.wait_phase("Synced", namespace=namespace)
    await installation.wasmer.process.stop()
    await installation.wasmer.start()
    assert _published(one)(await installation.envoyfilter(namespace=namespace))

    await _merge(installation, "aw", namespace, {"metadata": {"annotations": {_REFRESH: "1"}}})
    await installation.wait_envoyfilter(_published(two), namespace=namespace)

    async def handled() -> Document | None:
        document = await installation.get(namespace=namespace)
        return document if document["status"].get("refresh") == "1" else None

    document = await installation.wait_until(handled)
    assert document["status"]["module"]["sha256"] == two
    assert document["status"]["phase"] == "Synced"


async def test_same_vm_id_is_made_different_for_different_modules(
    installation: Installation, namespace: str
) -> None:
    values = {"one": await _push(installation, "one"), "two": await _push(installation, "two")}
    await installation.apply(
        *(
            installation.autowasm(image, namespace=namespace, name=name, vmID="same")
            for name, (image, _) in values.items()
        )
    )
    for name, (_, sha256) in values.items():
        found = await installation.wait_envoyfilter(
            _published(sha256), namespace=namespace, name=name
        )
        assert f'"vmId": "same-{sha256[:12]}"' in json.dumps(found)


async def test_an_event_that_waits_when_wasmer_is_asked_to_stop_is_written(
    installation: Installation, namespace: str
) -> None:
    """Events wait while there is work: when many objects fail at once, most of them are queued at SIGTERM.

    A stop waits for them for `KubeLimits.events_flush` seconds. On a slow machine some are left after that, and the log has their
    number.
    """
    source = {"object": {"url": "http://169.254.169.254/never-allowed.wasm"}}
    objects = [
        installation.autowasm("unused:1", name=f"a{n}", namespace=namespace, source=source)
        for n in range(150)
    ]
    calls = [("POST", autowasms(namespace), document) for document in objects]

    async def failed() -> set[str]:
        found = (await installation.cluster.request("GET", autowasms(namespace)))["items"]
        return {
            one["metadata"]["name"]
            for one in found
            if (one.get("status") or {}).get("phase") == "Failed"
        }

    async def many() -> Document | None:
        return {} if len(await failed()) >= 60 else None

    process = installation.wasmer.process
    begin = (await asyncio.to_thread(process.log.stat)).st_size
    async with asyncio.TaskGroup() as group:
        group.create_task(installation.cluster.each(calls))
        await installation.wait_until(many)
        await process.stop(timeout=120)
    try:
        assert process.returncode == 0
        log = (await asyncio.to_thread(process.log.read_bytes))[begin:].decode()
        left = _events_left(log)
        path = f"/api/v1/namespaces/{namespace}/events?fieldSelector=reason%3DFailed"
        events = (await installation.cluster.request("GET", path))["items"]
        told = {one["involvedObject"]["name"] for one in events}
        gone = await failed()
        assert told <= gone
        assert len(gone - told) <= left, log[-4000:]
        assert len(told) > KubeLimits().events_burst
    finally:
        await installation.wasmer.start()
        collection = autowasms(namespace)
        await installation.cluster.request("DELETE", collection)


def _events_left(log: str) -> int:
    """The number of Events that a stop did not wait for, from wasmer's log."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    said = re.search(r"events not written before stop.*?\bevents=(\d+)", plain)
    return int(said[1]) if said else 0


@pytest.mark.parametrize("character", ["<", "\u2028"])
async def test_largest_configuration_for_most_ports_is_stored_and_found_unchanged(
    installation: Installation, namespace: str, character: str
) -> None:
    image = await installation.push("largest", wat.header_filter("largest"))
    # Two patches for each port share 1 MiB; the character is stored as an escape of six bytes.
    config = character * (2**20 // 200 // 6 - 20)
    document = installation.autowasm(
        image, namespace=namespace, pluginConfig=config, applyPorts=list(range(1, 101))
    )
    await installation.apply(document)
    await installation.wait_phase("Synced", namespace=namespace)
    live = await installation.envoyfilter(namespace=namespace)
    assert len(live["spec"]["configPatches"]) == 200
    await installation.apply(document)
    again = await installation.envoyfilter(namespace=namespace)
    assert again["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
    document["spec"]["filter"]["pluginConfig"] = config + character * 200
    await installation.apply(document)
    degraded = await installation.wait_phase("Degraded", namespace=namespace)
    assert "twice for each of 100 ports" in json.dumps(degraded["status"])
