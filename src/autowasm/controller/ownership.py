"""Ownership of an EnvoyFilter, and the object to write for it. Pure; ADR 12.

Invariants: a foreign object is never in a write; labels, annotations and further owners that others add to ours stay; for an
object that does not differ, there is nothing to write.
"""

import enum
from collections.abc import Mapping
from typing import Any

from autowasm.api.envoyfilter import MANAGED_BY, OWNED_ANNOTATIONS, record_of
from autowasm.api.v1alpha1 import GROUP, KIND

ADOPT_ANNOTATION = f"{GROUP}/adopt"
"""`"true"` on an EnvoyFilter of another tool: wasmer adopts it (migration)."""


class Ownership(enum.Enum):
    """The relation of an EnvoyFilter to the AutoWasm of its name."""

    OURS = "ours"
    EARLIER = (
        "owned by an AutoWasm of this name with another uid (recreated, or restored from a backup)"
    )
    ORPHANED = (
        "without an owner reference (kubectl delete --cascade=orphan, or a backup that omits it)"
    )
    OFFERED = "offered for adoption by the annotation wasm.tcm.io/adopt"
    FOREIGN = "managed by another client"


def ownership(envoyfilter: Mapping[str, Any], *, owner: Mapping[str, Any]) -> Ownership:
    """The relation of `envoyfilter` to the AutoWasm `owner`, by its metadata."""
    metadata = envoyfilter.get("metadata") or {}
    controller = _controller(metadata)
    if controller is not None and str(controller.get("apiVersion")).startswith(f"{GROUP}/"):
        same_name = (
            controller.get("kind") == KIND and controller.get("name") == owner["metadata"]["name"]
        )
        if same_name and controller.get("uid") == owner["metadata"].get("uid"):
            return Ownership.OURS
        if same_name:
            return Ownership.EARLIER
    if controller is not None:
        return Ownership.FOREIGN
    if _made_by_us(envoyfilter):
        return Ownership.ORPHANED
    offered = (metadata.get("annotations") or {}).get(ADOPT_ANNOTATION) == "true"
    return Ownership.OFFERED if offered else Ownership.FOREIGN


def replacement(live: Mapping[str, Any], desired: Mapping[str, Any]) -> dict[str, Any] | None:
    """The whole object to PUT so that `live` becomes `desired`; None if nothing differs.

    It carries the resourceVersion of `live`, so a write in between is never overwritten.
    """
    metadata = dict(live.get("metadata") or {})
    ours = desired["metadata"]
    merged = dict(metadata)
    theirs = {
        name: value
        for name, value in (metadata.get("annotations") or {}).items()
        if name not in OWNED_ANNOTATIONS
    }
    merged["labels"] = {**(metadata.get("labels") or {}), **ours.get("labels", {})}
    merged["annotations"] = {**theirs, **ours.get("annotations", {})}
    merged["ownerReferences"] = _owners(metadata, ours)
    same_metadata = all(
        merged[field] == (metadata.get(field) or type(merged[field])())
        for field in ("labels", "annotations", "ownerReferences")
    )
    if same_metadata and live.get("spec") == desired["spec"]:
        return None
    merged.pop("managedFields", None)
    return {**live, "metadata": merged, "spec": desired["spec"]}


def is_labelled(envoyfilter: Mapping[str, Any]) -> bool:
    """Whether the object has our label, so that our informers see it."""
    labels = (envoyfilter.get("metadata") or {}).get("labels") or {}
    return bool(MANAGED_BY.items() <= labels.items())


def _made_by_us(envoyfilter: Mapping[str, Any]) -> bool:
    """Requires both label and record: in a copy made by hand, at most one of them is still valid."""
    return is_labelled(envoyfilter) and record_of(envoyfilter) is not None


def _controller(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    owners = metadata.get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def _owners(metadata: Mapping[str, Any], ours: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Our reference as the controller, and the plain references of others unchanged; without any earlier reference of ours."""
    desired = ours.get("ownerReferences", [])
    names = {(owner["kind"], owner["name"]) for owner in desired}
    kept = [
        owner
        for owner in metadata.get("ownerReferences") or []
        if not owner.get("controller") and (owner.get("kind"), owner.get("name")) not in names
    ]
    return [*desired, *kept]
