"""Pods as rows."""

import json
from typing import Any
from uuid import UUID

import pytest

from autowasm.controller.pods.podmatching import Pod, pod_codec
from autowasm.kube.codec import WatchEvent

UID = "0b6f2f0e-6d0b-4a8e-9d0e-0f5d3f6a7b8c"


def pod(**changes: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "shop",
            "name": "cart-1",
            "uid": UID,
            "resourceVersion": "42",
            "labels": {"version": "v1", "app": "cart"},
            "annotations": {"a": "b"},
            "managedFields": [{"fieldsV1": {"f:metadata": {}}}],
            **changes.pop("metadata", {}),
        },
        "spec": {"containers": [{"name": "app", "image": "x"}, {"name": "istio-proxy"}]},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.7",
            "podIPs": [{"ip": "10.0.0.7"}],
            "startTime": "2026-01-02T03:04:05Z",
        },
        **changes,
    }


def row(document: dict[str, Any], **options: Any) -> Pod:
    line = json.dumps({"type": "ADDED", "object": document}).encode()
    event = pod_codec(**options).decode_event(line)
    assert isinstance(event, WatchEvent)
    assert event.resource_version == document["metadata"].get("resourceVersion", "")
    return event.object


def test_a_running_pod() -> None:
    assert row(pod()) == Pod(
        namespace="shop",
        name="cart-1",
        uid=UUID(UID).bytes,
        labels=(("app", "cart"), ("version", "v1")),
        ips="10.0.0.7",
        phase="Running",
        started=1767323045,
        injected=True,
        workload="cart-1",
    )


@pytest.mark.parametrize(
    ("owner", "labels", "workload"),
    [
        (("ReplicaSet", "cart-5d8f"), {"pod-template-hash": "5d8f"}, "cart"),
        (("ReplicaSet", "cart-5d8f"), {"rollouts-pod-template-hash": "5d8f"}, "cart"),
        (("ReplicaSet", "cart-5d8f"), {}, "cart-5d8f"),
        (("ReplicaSet", "cart-5d8f"), {"pod-template-hash": "other"}, "cart-5d8f"),
        (("ReplicationController", "cart-7"), {"deploymentconfig": "cart"}, "cart"),
        (("StatefulSet", "cart"), {}, "cart"),
        (("Job", "cart-28123456"), {}, "cart"),
        (("Job", "cart-once"), {}, "cart-once"),
    ],
)
def test_the_workload_has_the_name_that_its_proxy_reports(
    owner: tuple[str, str], labels: dict[str, str], workload: str
) -> None:
    references = [
        {"kind": "Node", "name": "n", "controller": False},
        {"kind": owner[0], "name": owner[1], "controller": True},
    ]
    metadata = {"generateName": "cart-", "ownerReferences": references, "labels": labels}
    spec = {"nodeName": "node-1", "containers": [{"name": "istio-proxy"}]}
    read = row(pod(metadata=metadata, spec=spec))
    assert (read.node, read.workload) == ("node-1", workload)


def test_a_pod_without_a_controller_is_its_own_workload() -> None:
    assert row(pod(metadata={"generateName": "cart-"})).workload == "cart-1"
    owned = {"ownerReferences": [{"kind": "Foo", "name": "foo", "controller": True}]}
    assert row(pod(metadata=owned)).workload == "cart-1", "Istio asks for a generated name, too"


def test_a_pod_that_is_not_scheduled_yet() -> None:
    read = row(pod(status={"phase": "Pending"}))
    assert (read.phase, read.ips, read.addresses, read.started) == ("Pending", "", (), 0)


def test_a_pod_with_nothing_in_it() -> None:
    read = row({"metadata": {"name": "a"}})
    assert (read.labels, read.injected, read.phase) == ((), False, "Unknown")


def test_dual_stack_addresses_in_order() -> None:
    status = {"podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]}
    assert row(pod(status=status)).addresses == ("10.0.0.7", "fd00::7")


def test_an_old_server_sends_one_address() -> None:
    assert row(pod(status={"podIP": "10.0.0.7"})).addresses == ("10.0.0.7",)


def test_a_native_sidecar_counts() -> None:
    spec = {"containers": [{"name": "app"}], "initContainers": [{"name": "istio-proxy"}]}
    assert row(pod(spec=spec)).injected
    assert not row(pod(spec={"containers": [{"name": "app"}]})).injected
    assert row(pod(spec={"containers": [{"name": "mesh"}]}), sidecars=frozenset({"mesh"})).injected


def test_equal_labels_are_one_object() -> None:
    documents = [
        pod(metadata={"name": f"cart-{n}", "labels": labels})
        for n, labels in enumerate(
            [{"app": "cart", "a": "1"}, {"a": "1", "app": "cart"}, {"app": "other", "a": "1"}]
        )
    ]
    page = json.dumps({"items": documents, "metadata": {"resourceVersion": "1"}}).encode()
    rows = [item for _, item in pod_codec().decode_page(page).items]
    assert rows[0].labels is rows[1].labels
    assert rows[0].labels[0] is rows[2].labels[0], "and so are equal pairs"
    assert rows[0].namespace is rows[2].namespace


def test_label_sets_that_are_gone_are_forgotten() -> None:
    codec = pod_codec()
    document = pod(metadata={"labels": {"job": "NUMBER"}})
    page = json.dumps({"items": [document], "metadata": {"resourceVersion": "1"}}).encode()
    for number in range(35_000):
        codec.decode_page(page.replace(b"NUMBER", b"%d" % number))
    row_function: Any = codec._transform
    sharing = row_function.__closure__[0].cell_contents
    assert len(sharing._young) + len(sharing._old) <= 2 * 16_384
    assert len(sharing._texts) <= 2 * 16_384 + 100


def test_a_uid_that_is_no_uuid_still_tells_pods_apart() -> None:
    one, other = (row(pod(metadata={"uid": uid})) for uid in ("static-1", "static-2"))
    assert one.uid != other.uid
    assert len(one.uid) == 16
