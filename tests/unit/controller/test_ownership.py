"""The owner of an EnvoyFilter, and which ones are overwritten (ADR 12)."""

from typing import Any

import pytest

from autowasm.api import envoyfilter as envoyfilters
from autowasm.controller.ownership import Ownership, is_labelled, ownership, replacement
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import autowasm, record

OWNER = {"metadata": {"name": "test", "namespace": "default", "uid": "u-2"}}


def reference(**changes: Any) -> dict[str, Any]:
    return {
        "apiVersion": "wasm.tcm.io/v1alpha1",
        "kind": "AutoWasm",
        "name": "test",
        "uid": "u-2",
        "controller": True,
        **changes,
    }


def envoyfilter(*owners: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "test",
            "resourceVersion": "7",
            "ownerReferences": list(owners),
            **metadata,
        },
        "spec": {"configPatches": []},
    }


OFFER = {"wasm.tcm.io/adopt": "true"}


@pytest.mark.parametrize(
    ("live", "whose"),
    [
        (envoyfilter(reference()), Ownership.OURS),
        (envoyfilter(reference(apiVersion="wasm.tcm.io/v1")), Ownership.OURS),
        (envoyfilter(reference(uid="u-1")), Ownership.EARLIER),
        (envoyfilter(reference(name="other")), Ownership.FOREIGN),
        (envoyfilter(reference(controller=False)), Ownership.FOREIGN),
        (envoyfilter(reference(apiVersion="wasm.tcm.io.evil/v1")), Ownership.FOREIGN),
        (envoyfilter(reference(apiVersion="apps/v1")), Ownership.FOREIGN),
        (envoyfilter(), Ownership.FOREIGN),
        (envoyfilter(annotations=OFFER), Ownership.OFFERED),
        (envoyfilter(annotations={"wasm.tcm.io/adopt": "yes"}), Ownership.FOREIGN),
        (envoyfilter(reference(apiVersion="apps/v1"), annotations=OFFER), Ownership.FOREIGN),
        ({"metadata": {"name": "test", "ownerReferences": None}}, Ownership.FOREIGN),
    ],
)
def test_ownership_follows_controller_reference_and_adopt_annotation(
    live: dict[str, Any], whose: Ownership
) -> None:
    assert ownership(live, owner=OWNER) is whose


def wanted(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "test",
            "labels": {"app.kubernetes.io/managed-by": "wasmer"},
            "annotations": {"wasm.tcm.io/record": "{}"},
            "ownerReferences": [reference()],
        },
        "spec": {"configPatches": [], **spec},
    }


def as_written() -> dict[str, Any]:
    body = replacement(envoyfilter(), wanted())
    assert body is not None
    return body


def test_unchanged_envoyfilter_is_not_written() -> None:
    assert replacement(as_written(), wanted()) is None


def test_foreign_labels_and_annotations_stay_and_cause_no_write() -> None:
    live = as_written()
    live["metadata"]["labels"]["team"] = "a"
    live["metadata"]["annotations"]["kubectl"] = "b"
    live["metadata"]["ownerReferences"].append({"kind": "App", "name": "x", "uid": "1"})
    assert replacement(live, wanted()) is None
    body = replacement(live, wanted(priority=1))
    assert body is not None
    assert body["spec"] == wanted(priority=1)["spec"]
    assert body["metadata"]["labels"]["team"] == "a"
    assert body["metadata"]["annotations"]["kubectl"] == "b"
    assert [owner["kind"] for owner in body["metadata"]["ownerReferences"]] == ["AutoWasm", "App"]


@pytest.mark.parametrize("field", ["labels", "annotations", "ownerReferences"])
def test_our_own_metadata_is_reverted(field: str) -> None:
    live = as_written()
    del live["metadata"][field]
    body = replacement(live, wanted())
    assert body is not None
    assert body["metadata"] == as_written()["metadata"]


REFERENCED = "envoyfilter.istio.io/referenced-services"


def test_annotation_that_is_ours_alone_is_corrected() -> None:
    gateway = wanted()
    gateway["metadata"]["annotations"][REFERENCED] = "istio-system/wasmer"
    live = replacement(envoyfilter(), gateway)
    assert live is not None
    assert replacement(live, gateway) is None
    live["metadata"]["annotations"][REFERENCED] = "default/other"
    corrected = replacement(live, gateway)
    assert corrected is not None
    assert corrected["metadata"]["annotations"][REFERENCED] == "istio-system/wasmer"


def test_annotation_that_is_ours_alone_goes_once_it_is_not_wanted() -> None:
    live = as_written()
    live["metadata"]["annotations"] |= {REFERENCED: "istio-system/wasmer", "team": "a"}
    corrected = replacement(live, wanted())
    assert corrected is not None
    assert corrected["metadata"]["annotations"] == {"wasm.tcm.io/record": "{}", "team": "a"}


def test_write_is_fenced_and_carries_no_managed_fields() -> None:
    body = replacement(envoyfilter(managedFields=[{}]), wanted())
    assert body is not None
    assert body["metadata"]["resourceVersion"] == "7"
    assert "managedFields" not in body["metadata"]


def test_owner_reference_of_an_earlier_autowasm_is_removed() -> None:
    body = replacement(envoyfilter(reference(uid="u-1")), wanted())
    assert body is not None
    assert body["metadata"]["ownerReferences"] == [reference()]


def test_inputs_stay_as_they_are() -> None:
    live, want = envoyfilter(managedFields=[{}]), wanted()
    replacement(live, want)
    assert (live, want) == (envoyfilter(managedFields=[{}]), wanted())


def written_by_us() -> dict[str, Any]:
    """An EnvoyFilter of wasmer from a restored backup: without owner references."""
    return envoyfilters.render(autowasm(), record(), EnvoyFetch())


def test_own_envoyfilter_without_its_owner_is_orphaned() -> None:
    assert is_labelled(written_by_us())
    assert ownership(written_by_us(), owner=OWNER) is Ownership.ORPHANED


@pytest.mark.parametrize(
    "labels",
    [None, {}, {"app": "wasmer"}, {"app.kubernetes.io/managed-by": "Helm"}],
    ids=["null", "none", "another name", "another value"],
)
def test_a_copy_without_our_label_is_foreign_although_it_has_a_record(
    labels: dict[str, str] | None,
) -> None:
    copy = written_by_us()
    copy["metadata"]["labels"] = labels
    assert not is_labelled(copy)
    assert ownership(copy, owner=OWNER) is Ownership.FOREIGN


def test_a_copy_without_a_record_that_fits_is_foreign_although_it_has_our_label() -> None:
    without = written_by_us()
    without["metadata"]["annotations"] = {}
    assert is_labelled(without)
    assert ownership(without, owner=OWNER) is Ownership.FOREIGN
    another = written_by_us()
    another["spec"] = envoyfilters.render(autowasm(), record(sha256="b" * 64), EnvoyFetch())["spec"]
    assert ownership(another, owner=OWNER) is Ownership.FOREIGN


def test_an_object_without_metadata_is_not_labelled() -> None:
    assert not is_labelled({"metadata": None})


def test_a_controller_without_an_api_version_is_foreign() -> None:
    owner = reference()
    del owner["apiVersion"]
    assert ownership(envoyfilter(owner), owner=OWNER) is Ownership.FOREIGN


def test_of_several_owners_the_controller_decides_at_any_place() -> None:
    app = {"apiVersion": "apps/v1", "kind": "App", "name": "x", "uid": "1"}
    assert ownership(envoyfilter(app, reference()), owner=OWNER) is Ownership.OURS


@pytest.mark.parametrize(
    ("theirs", "stays"),
    [
        ({"kind": "App", "name": "test", "uid": "1"}, True),
        ({"kind": "AutoWasm", "name": "other", "uid": "1"}, True),
        ({"kind": "AutoWasm", "name": "test", "uid": "1"}, False),
        ({"kind": "App", "name": "x", "uid": "1", "controller": True}, False),
        ({"kind": "App", "name": "x", "uid": "1", "controller": False}, True),
    ],
    ids=["our name", "our kind", "ours without controller", "a controller", "no controller"],
)
def test_only_a_controller_and_references_to_our_object_are_replaced(
    theirs: dict[str, Any], stays: bool
) -> None:
    body = replacement(envoyfilter(theirs), wanted())
    assert body is not None
    assert body["metadata"]["ownerReferences"] == [reference(), *([theirs] if stays else [])]
