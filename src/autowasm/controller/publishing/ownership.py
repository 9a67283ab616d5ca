"""Whose EnvoyFilter is it, and what would have to be written? Pure; ADR 12.

Not a writer. Invariants: what is somebody else's is never in a write; what others put onto ours (labels, annotations,
further owners) stays; an object that is as it should be gives nothing to write.
"""

import enum
from collections.abc import Mapping
from typing import Any

from autowasm.api.envoyfilter import MANAGED_BY, OWNED_ANNOTATIONS, record_of
from autowasm.api.v1alpha1 import GROUP, KIND

ADOPT_ANNOTATION = f"{GROUP}/adopt"
"""`"true"` on an EnvoyFilter that another tool wrote: ours from now on (migration)."""


class Ownership(enum.Enum):
    """What an EnvoyFilter of the AutoWasm's name is to us."""

    OURS = "ours"
    EARLIER = "of an AutoWasm of this name with another uid: deleted and applied again, or restored"
    ORPHANED = "ours, but its owner reference is gone: kubectl delete --cascade=orphan, or a backup that drops them"
    OFFERED = "offered by annotation"
    FOREIGN = "somebody else's"


def ownership(envoyfilter: Mapping[str, Any], *, owner: Mapping[str, Any]) -> Ownership:
    """What `envoyfilter` is to the AutoWasm `owner` (metadata is what counts)."""
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


def replacement(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The whole object to PUT so that `live` becomes `wanted`; None if it is already.

    Its resourceVersion is that of `live`, so a write in between is never overwritten.
    """
    metadata = dict(live.get("metadata") or {})
    ours = wanted["metadata"]
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
    if same_metadata and live.get("spec") == wanted["spec"]:
        return None
    merged.pop("managedFields", None)
    return {**live, "metadata": merged, "spec": wanted["spec"]}


def is_labelled(envoyfilter: Mapping[str, Any]) -> bool:
    """Whether our informers show it."""
    labels = (envoyfilter.get("metadata") or {}).get("labels") or {}
    return bool(MANAGED_BY.items() <= labels.items())


def _made_by_us(envoyfilter: Mapping[str, Any]) -> bool:
    """Label and record are both needed: a copy that somebody made by hand carries at most one that still fits."""
    return is_labelled(envoyfilter) and record_of(envoyfilter) is not None


def _controller(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    owners = metadata.get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def _owners(metadata: Mapping[str, Any], ours: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ours as the controller, others' plain references as they are; an earlier reference of ours goes."""
    wanted = ours.get("ownerReferences", [])
    names = {(owner["kind"], owner["name"]) for owner in wanted}
    kept = [
        owner
        for owner in metadata.get("ownerReferences") or []
        if not owner.get("controller") and (owner.get("kind"), owner.get("name")) not in names
    ]
    return [*wanted, *kept]
