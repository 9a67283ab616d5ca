"""Plan: the EnvoyFilter that an AutoWasm will have, at once or in a step of a staged rollout, and its difference from the live one. Pure.

`controller/decision.py` selects the record, `controller/ownership.py` checks the ownership. Invariants: with wasmer's
settings, the EnvoyFilter is what wasmer writes, or None where that cannot be known here; the planned EnvoyFilter is the output of
`render` for the record, so an apply writes those bytes, with a staged rollout at its end.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import staged
from autowasm.api.envoyfilter import record_of, resend_count_of, variant_of
from autowasm.api.record import Record
from autowasm.api.status import Status
from autowasm.api.v1alpha1 import AutoWasm, Rollout
from autowasm.controller.decision import UseRecord, decide
from autowasm.controller.ownership import Ownership, ownership, replacement
from autowasm.controller.rollout.placement import placement
from autowasm.controller.rollout.placement import render as render_placement
from autowasm.manifests import writer
from autowasm.settings import EnvoyFetch

Action = Literal["create", "replace", "unchanged", "refused", "unknown"]
_KEPT: Final = ("annotations", "labels", "name", "namespace", "ownerReferences")
"""Fields of metadata that are compared; the API server owns the others."""


class Plan(Struct, frozen=True, kw_only=True):
    """`before` and `after` are the parts of the EnvoyFilter that are compared; `diff` is unified, empty without a change."""

    action: Action
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    diff: str = ""


def record_kept(
    autowasm: AutoWasm, live: Mapping[str, Any] | None, status: Status
) -> Record | None:
    """The record that wasmer would use for this spec; None if it would resolve the source."""
    decided = decide(autowasm, live=record_of(live) if live else None, previous=status)
    return decided.record if isinstance(decided, UseRecord) else None


def make(
    autowasm: AutoWasm,
    *,
    document: Mapping[str, Any],
    live: Mapping[str, Any] | None,
    record: Record | None,
    envoy: EnvoyFetch,
) -> Plan:
    """`document`: the AutoWasm, to decide the EnvoyFilter's owner. `record` None: the module is not known."""
    before = _shown(live) if live is not None else None
    if record is None:
        return Plan(action="unknown", before=before)
    resend = resend_count_of(live, record.sha256) if live is not None else 0
    desired = desired_at_the_end(autowasm, record, envoy, resend=resend)
    if live is None:
        return Plan(action="create", after=desired, diff=_diff(None, desired))
    whose = ownership(live, owner=document)
    terminating = (live.get("metadata") or {}).get("deletionTimestamp")
    if whose is Ownership.FOREIGN or terminating:
        return Plan(action="refused", before=before, after=desired, diff=_diff(before, desired))
    merged = replacement(live, desired)
    if merged is None:
        return Plan(action="unchanged", before=before, after=before)
    after = _shown(merged)
    return Plan(action="replace", before=before, after=after, diff=_diff(before, after))


def as_yaml(document: Mapping[str, Any]) -> str:
    """YAML with sorted keys, as in the diff."""
    return writer.dump(document, sort_keys=True)


def _shown(document: Mapping[str, Any]) -> dict[str, Any]:
    metadata = document.get("metadata") or {}
    return {
        "apiVersion": document.get("apiVersion"),
        "kind": document.get("kind"),
        "metadata": {name: metadata[name] for name in _KEPT if metadata.get(name)},
        "spec": document.get("spec"),
    }


def _diff(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    old = as_yaml(before).splitlines(keepends=True) if before is not None else []
    new = as_yaml(after).splitlines(keepends=True)
    return "".join(difflib.unified_diff(old, new, "live", "planned"))


def desired_at_the_end(
    autowasm: AutoWasm, record: Record, envoy: EnvoyFetch, *, resend: int
) -> dict[str, Any]:
    """The EnvoyFilter when all Pods have the module of `record`."""
    if autowasm.spec.rollout is None:
        return envoyfilters.render(autowasm, record, envoy, resend=resend)
    variant = variant_of(autowasm, record, resend=resend)
    return staged.render(autowasm, envoy, stable=variant, target=None)


def with_any_rollout(autowasm: AutoWasm) -> AutoWasm:
    """The AutoWasm with an arbitrary rollout: all rollouts end with the same EnvoyFilter, which differs from the one without a rollout."""
    spec = msgspec.structs.replace(autowasm.spec, rollout=Rollout())
    return msgspec.structs.replace(autowasm, spec=spec)


def desired_now(
    autowasm: AutoWasm, live: Mapping[str, Any], status: Status, envoy: EnvoyFetch
) -> dict[str, Any] | None:
    """The EnvoyFilter that follows from `live` and `status`."""
    if status.rollout is UNSET:
        record = envoyfilters.record_of(live)
        if record is None or autowasm.spec.rollout is not None:
            return None
        resend = envoyfilters.resend_count_of(live, record.sha256)
        return envoyfilters.render(autowasm, record, envoy, resend=resend)
    wanted = placement(status.rollout)
    if wanted is None:
        return None
    found = staged.variants_of(live)

    def counted(sha256: str) -> int:
        return envoyfilters.resend_count_of(live, sha256)

    return render_placement(autowasm, envoy, wanted, find=found.find, resend=counted)
