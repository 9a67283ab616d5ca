"""Plan: what wasmer would write for an AutoWasm, and how that differs from what is there. Pure; nothing is written.

Not the decision itself (`controller/decision.py`, which this asks) nor whose an EnvoyFilter is (`controller/publishing/ownership.py`).
Invariant: `wanted` is what `render` gives for the record, so an apply writes those bytes.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from autowasm.api.envoyfilter import record_of, render, resend_count_of
from autowasm.api.record import Record
from autowasm.api.status import Status
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.controller.decision import UseRecord, decide
from autowasm.controller.publishing.ownership import Ownership, ownership, replacement
from autowasm.manifests import writer
from autowasm.settings import EnvoyFetch

Action = Literal["create", "replace", "unchanged", "refused", "unknown"]
_KEPT: Final = ("annotations", "labels", "name", "namespace", "ownerReferences")
"""Of metadata: the rest is the API server's."""


class Plan(Struct, frozen=True, kw_only=True):
    """`before` and `after` are the EnvoyFilter as far as it is ours; `diff` is unified, empty if nothing changes."""

    action: Action
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    diff: str = ""


def record_kept(
    autowasm: AutoWasm, live: Mapping[str, Any] | None, status: Status
) -> Record | None:
    """The record that wasmer would go on using for this spec; None: it would ask the source."""
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
    """`document` as the API has it, for whose EnvoyFilter it is; `record` None: not known what it would name."""
    before = _shown(live) if live is not None else None
    if record is None:
        return Plan(action="unknown", before=before)
    resend = resend_count_of(live, record.sha256) if live is not None else 0
    wanted = render(autowasm, record, envoy, resend=resend)
    if live is None:
        return Plan(action="create", after=wanted, diff=_diff(None, wanted))
    whose = ownership(live, owner=document)
    terminating = (live.get("metadata") or {}).get("deletionTimestamp")
    if whose is Ownership.FOREIGN or terminating:
        return Plan(action="refused", before=before, after=wanted, diff=_diff(before, wanted))
    merged = replacement(live, wanted)
    if merged is None:
        return Plan(action="unchanged", before=before, after=before)
    after = _shown(merged)
    return Plan(action="replace", before=before, after=after, diff=_diff(before, after))


def as_yaml(document: Mapping[str, Any]) -> str:
    """With sorted keys, as the diff has it."""
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
