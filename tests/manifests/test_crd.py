"""The AutoWasm resource on a real API server: kubectl get, explain and apply."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import yaml

from autowasm.api import status as statuses
from autowasm.api import validation
from autowasm.api.status import (
    Condition,
    MissingPod,
    Module,
    NotRunningPod,
    Phase,
    PodRequests,
    Pods,
    Preflight,
    RolloutPhase,
    RolloutStatus,
    RolloutVariant,
    RolloutVerdict,
    StagedGroup,
    StagedPod,
    Status,
    StepUnit,
)
from autowasm.digest import Sha256Hex
from tests.manifests import documents
from tests.manifests.api import STRICT
from tests.manifests.documents import AUTOWASMS, Document
from tests.parts.clients import Client
from tests.parts.controlplane import ControlPlane
from tests.parts.kubernetes import Cluster
from tools.generate.pages import fields

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

ASSETS = documents.ROOT / "tests/assets/samples"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_NOW = "2026-01-02T03:04:05Z"
_MODULE = Module(
    source="object:https://a.io/b",
    sha256=Sha256Hex("0123456789abcdef" * 4),
    size=33_554_432,
    abi="0.2.1",
    image=f"a.io/b@sha256:{'ab' * 32}",
    url="https://a.io/b",
    etag='"x"',
    last_modified="Wed, 21 Oct 2015 07:28:00 GMT",
    fetched_at=_NOW,
)


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def _without_wasmer(control_plane: ControlPlane) -> AsyncIterator[None]:
    """The tests write the status themselves."""
    async with control_plane.without_wasmer():
        yield


@pytest_asyncio.fixture(loop_scope="session")
async def namespace(control_plane: ControlPlane) -> str:
    """One for the test alone."""
    return await control_plane.add_namespace("crd")


_ROLLOUT = RolloutStatus(
    phase=RolloutPhase.ABORTED,
    target=RolloutVariant("0123456789abcdef", 7, _MODULE),
    stable=RolloutVariant("123456789abcdef0", 6, _MODULE),
    aborted=(RolloutVariant("0123456789abcdef", 7), RolloutVariant("23456789abcdef01", 7)),
    step=2,
    steps=4,
    size=50,
    by=StepUnit.NODE,
    pods=tuple(StagedPod("n" * 63, f"{n:0253}", "u" * 36) for n in range(statuses.MAX_STAGED)),
    groups=tuple(StagedGroup("w", "n" * 63) for _ in range(statuses.MAX_STAGED)),
    started="2026-01-02T03:04:05.678Z",
    healthy_since="2026-01-02T03:04:06.789Z",
    placed_seconds=1.5,
    healthy_seconds=2.25,
    waited_seconds=0.001,
    time="2026-01-02T03:04:07.890Z",
    reason="Crashing",
    message="x" * statuses.MAX_MESSAGE,
    verdict=RolloutVerdict(
        *(5, 4, 100, 2, 1000, 3),
        is_by_time=True,
        pod="default/p",
        per_pod=tuple(
            PodRequests(f"{'n' * 63}/{n:0253}", 100, 2) for n in range(statuses.MAX_PER_POD)
        ),
    ),
    command="pause@7",
    refresh="1",
)


def _full_status() -> Status:
    """A status with a value in every field."""
    history = tuple(msgspec.structs.replace(_MODULE, source=f"object:{n}") for n in range(5))
    conditions = tuple(
        Condition(kind, state, "Reason", "a sentence", _NOW, 7)
        for kind, state in (
            *(("Fetched", "True"), ("Published", "False"), ("Ready", "Unknown")),
            ("Stalled", "True"),
        )
    )
    return Status(
        phase=Phase.DEGRADED,
        message="x" * statuses.MAX_MESSAGE,
        observed_generation=7,
        module=_MODULE,
        history=history,
        refresh="1",
        preflight=Preflight(key="ab" * 16, status="False", reason="StartFailed", message="no"),
        pods=Pods(
            matched=3,
            injected=2,
            fetched=1,
            missing=(MissingPod("default", "p", "Refused", "requested it and got status 503"),),
            running=1,
            not_running=(NotRunningPod("default", "p", "Crashing", "has a crashing module"),),
            time=_NOW,
        ),
        rollout=_ROLLOUT,
        conditions=conditions,
    )


async def _create(cluster: Cluster, document: Document, status: Document) -> Document:
    """Create it, write the status through the subresource, and read it back."""
    metadata = document["metadata"]
    collection = AUTOWASMS.format(namespace=metadata["namespace"])
    created = await cluster.request("POST", collection, body=document)
    path = f"{collection}/{metadata['name']}"
    await cluster.request("PUT", f"{path}/status", body={**created, "status": status})
    return await cluster.request("GET", path)


async def test_kubectl_get_prints_the_reference_columns(
    cluster: Cluster, kubectl: Client, namespace: str
) -> None:
    sample = yaml.safe_load((ASSETS / "autowasm-registry.yaml").read_text())
    sample["metadata"]["namespace"] = namespace
    await _create(cluster, sample, Status(phase=Phase.SYNCED).to_dict())
    printed = (await kubectl.run("get", "aw", "-n", namespace)).stdout
    expected = (ASSETS / "kubectl-get-aw.txt").read_text()
    assert _TIME.sub("TIME", printed) == _TIME.sub("TIME", expected)


async def test_wide_output_adds_ready_age_sidecars_and_message(
    cluster: Cluster, kubectl: Client, namespace: str
) -> None:
    document = documents.valid()
    document["metadata"]["namespace"] = namespace
    ready = Condition("Ready", "True", "Synced", "a sentence", _NOW, 1)
    status = Status(phase=Phase.SYNCED, message="all is well", conditions=(ready,))
    await _create(cluster, document, status.to_dict())
    printed = await kubectl.run("get", "aw", "-n", namespace, "-o", "wide")
    header, row = printed.stdout.splitlines()
    narrow = (await kubectl.run("get", "aw", "-n", namespace)).stdout.splitlines()
    assert header.split() == [*narrow[0].split(), "READY", "AGE", "SIDECARS", "RUNNING", "MESSAGE"]
    assert re.search(r" Synced +True +\d+s +all is well$", row)


async def test_explain_reads_well(kubectl: Client) -> None:
    # The API server publishes the documentation of a resource some moments after the resource.
    async with asyncio.timeout(60):
        while (await kubectl.run("explain", "aw", check=False)).returncode:
            await asyncio.sleep(0.1)
    text = re.sub(r"\s+", " ", (await kubectl.run("explain", "aw.spec.filter")).stdout)
    assert "Each is the Pod's port, not the Service's" in text
    assert "source <Object> -required- Where the module comes from. Set exactly one of" in text
    assert "enum: FAIL_CLOSE, FAIL_OPEN, FAIL_RELOAD What happens to requests while" in text
    assert "<no description>" not in text


async def test_a_full_status_survives_the_schema(cluster: Cluster, namespace: str) -> None:
    document = documents.valid()
    document["metadata"]["namespace"] = namespace
    status = _full_status()
    for whole in (status, _ROLLOUT):
        fields = msgspec.structs.fields(whole)
        unset = [field.name for field in fields if getattr(whole, field.name) == field.default]
        assert unset == [], "give the new field a value here"
    stored = await _create(cluster, document, status.to_dict())
    assert stored["status"] == json.loads(json.dumps(status.to_dict()))
    assert statuses.read(stored["status"]) == status


async def test_status_and_spec_are_written_apart(cluster: Cluster, namespace: str) -> None:
    document: dict[str, Any] = {**documents.valid(), "status": {"phase": "Synced"}}
    document["metadata"]["namespace"] = namespace
    collection = AUTOWASMS.format(namespace=namespace)
    created = await cluster.request("POST", collection, body=document)
    assert created["status"] == {"observedGeneration": -1}
    assert await cluster.request("GET", f"{collection}/test") == created
    assert not statuses.is_written(created["status"])
    changed = {**created, "spec": documents.image("other")["spec"], "status": {"phase": "Failed"}}
    stored = await cluster.request("PUT", f"{collection}/test/status", body=changed)
    assert stored["status"] == {"phase": "Failed"}
    assert stored["spec"] == created["spec"]
    assert stored["metadata"]["generation"] == 1


async def test_plugin_config_is_stored_as_it_is(cluster: Cluster, namespace: str) -> None:
    collection = AUTOWASMS.format(namespace=namespace)
    large = {"n": [2**53 + 1, -(2**63)]}
    for config in ({"a": {"deep": [1, None, {"b": 2.5}]}, "": ""}, large, "text", ""):
        document = documents.with_filter(pluginConfig=config)
        document["metadata"] = {"generateName": "config-", "namespace": namespace}
        stored = await cluster.request("POST", collection, body=document)
        assert stored["spec"]["filter"]["pluginConfig"] == config
        assert validation.parse(stored).spec.filter.plugin_config == config


@pytest.mark.parametrize(
    "path",
    [*documents.SAMPLES, *sorted(ASSETS.glob("autowasm-*.yaml"))],
    ids=lambda path: path.stem,
)
async def test_samples_are_valid(path: Path, cluster: Cluster, namespace: str) -> None:
    (document,) = documents.documents(path)
    validation.parse(document)
    document["metadata"]["namespace"] = namespace
    document["metadata"]["name"] += "-sample"
    body = document
    await cluster.request("POST", AUTOWASMS.format(namespace=namespace) + STRICT, body=body)


@pytest.mark.parametrize("document", fields.examples(), ids=lambda one: one["metadata"]["name"])
async def test_examples_of_the_reference_are_valid(
    document: Document, cluster: Cluster, namespace: str
) -> None:
    validation.parse(document)
    name = f"{document['metadata']['name']}-reference"
    status = document.get("status", {})
    body = {**document, "metadata": {"name": name, "namespace": namespace}}
    unreported = {key: value for key, value in body.items() if key != "status"}
    await cluster.request("POST", AUTOWASMS.format(namespace=namespace) + STRICT, body=unreported)
    stored = await _create(cluster, unreported, status)
    assert stored["spec"] == document["spec"]
    assert stored.get("status", {}) == status


async def test_samples_show_every_field() -> None:
    """Each field of `spec.filter` is in some sample, but for those with a good default that few should touch."""
    shown = {
        name
        for path in documents.SAMPLES
        for name in documents.documents(path)[0]["spec"]["filter"]
    }
    fields = documents.schema()["properties"]["spec"]["properties"]["filter"]["properties"].keys()
    assert fields - shown == {"vmID"}


async def test_applied_twice_is_unchanged(kubectl: Client) -> None:
    await kubectl.run("apply", "-f", documents.CRD)
    again = (await kubectl.run("apply", "-f", documents.CRD)).stdout
    assert again.strip().endswith("unchanged")
