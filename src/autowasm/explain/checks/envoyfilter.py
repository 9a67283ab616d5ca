"""Step EnvoyFilter: it exists, wasmer owns it, it equals the one that wasmer would write, and istiod applies it."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from autowasm.api.envoyfilter import REFERENCED_SERVICES, digests_of, record_of
from autowasm.controller.ownership import Ownership, is_labelled, ownership, replacement
from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step

_finding: Final = Reporter(Step.ENVOYFILTER)
_PATHS_SHOWN: Final = 3
_MISSING: Final = "does not exist"


def present(facts: Facts) -> Iterator[Finding]:
    """It exists, wasmer owns it, and it is not being deleted."""
    if not facts.has_read("envoyfilter"):
        return
    live = facts.live
    if live is None:
        if not facts.planned:
            remedy = "correct the errors above; wasmer writes the EnvoyFilter as soon as it has the module"
            yield _finding(
                Level.ERROR, "EnvoyFilterMissing", facts.envoyfilter_name, _MISSING, remedy
            )
        return
    metadata = live.get("metadata") or {}
    if metadata.get("deletionTimestamp"):
        what = f"deletion requested at {metadata['deletionTimestamp']}: wasmer writes it again only after the deletion"
        remedy = f"check what blocks the deletion: metadata.finalizers {metadata.get('finalizers') or []}"
        yield _finding(
            Level.ERROR,
            "EnvoyFilterTerminating",
            facts.envoyfilter_name,
            what,
            remedy,
            field="metadata.deletionTimestamp",
        )
        return
    yield from _owner(facts, live)


def _owner(facts: Facts, live: Mapping[str, Any]) -> Iterator[Finding]:
    whose = ownership(live, owner=facts.document)
    where = "metadata.ownerReferences"
    if whose is Ownership.FOREIGN:
        what = "does not belong to this AutoWasm: wasmer does not change it, and the AutoWasm's filter is not published"
        remedy = 'delete it, rename the AutoWasm, or let wasmer adopt it: kubectl annotate envoyfilter … wasm.tcm.io/adopt="true"'
        yield _finding(
            Level.ERROR, "EnvoyFilterConflict", facts.envoyfilter_name, what, remedy, field=where
        )
    elif whose is not Ownership.OURS:
        level = Level.NOTE if facts.planned else Level.WARNING
        what = f"is {whose.value}; wasmer adopts it with the next write"
        remedy = "wait a moment; if this persists, check wasmer's log"
        yield _finding(
            level, "EnvoyFilterAdopted", facts.envoyfilter_name, what, remedy, field=where
        )
    elif not is_labelled(live):
        what = "lacks the label app.kubernetes.io/managed-by=wasmer: another client removed it"
        remedy = "wasmer restores the label within minutes; if it does not, check its log"
        yield _finding(
            Level.WARNING,
            "EnvoyFilterEdited",
            facts.envoyfilter_name,
            what,
            remedy,
            field="metadata.labels",
        )
    else:
        digests = ", ".join(f"sha256:{digest[:12]}" for digest in digests_of(live)) or "no module"
        yield _finding(
            Level.OK,
            "EnvoyFilter",
            facts.envoyfilter_name,
            f"exists, belongs to this AutoWasm, and names {digests}",
        )


def edited(facts: Facts) -> Iterator[Finding]:
    """It differs from what wasmer would write: it was edited manually, or another controller or a webhook changes it."""
    live, desired = facts.live, facts.desired
    if facts.planned or live is None or desired is None or not _is_ours(facts, live):
        return
    if record_of(live) is None and digests_of(
        live
    ):  # an aborted first rollout leaves no record and no filter
        what = (
            "its record is missing or does not match its spec: another client changed one of them"
        )
        remedy = "wasmer reverts the change; if this persists, check its log, and metadata.managedFields for the other client"
        where = "metadata.annotations[wasm.tcm.io/record]"
        yield _finding(
            Level.WARNING, "EnvoyFilterEdited", facts.envoyfilter_name, what, remedy, field=where
        )
    if replacement(live, desired) is None:
        return
    paths = differing(live.get("spec"), desired["spec"], path="spec")
    annotations = [
        ((one.get("metadata") or {}).get("annotations") or {}).get(REFERENCED_SERVICES)
        for one in (live, desired)
    ]
    if annotations[0] != annotations[1]:
        paths.append(f"metadata.annotations[{REFERENCED_SERVICES}]")
    if not paths:
        return
    level = Level.WARNING if facts.server.known else Level.NOTE
    what = f"differs from what wasmer writes at {', '.join(paths[:_PATHS_SHOWN])}"
    what += f" and {len(paths) - _PATHS_SHOWN} more" if len(paths) > _PATHS_SHOWN else ""
    if not facts.server.known:
        what += (
            " (or wasmer runs with flags that differ from the defaults: its Pods could not be read)"
        )
    remedy = "edit the AutoWasm, not its EnvoyFilter: wasmer reverts such changes (three times; then the status reports Mutated)"
    yield _finding(level, "EnvoyFilterEdited", facts.envoyfilter_name, what, remedy, field=paths[0])


def revision(facts: Facts) -> Iterator[Finding]:
    """Only the istiod with the revision of its label applies it."""
    live = facts.desired if facts.planned else facts.live
    labels = ((live or {}).get("metadata") or {}).get("labels") or {}
    desired = labels.get("istio.io/rev")
    if not desired:
        return
    others = sorted({pod.revision for pod in facts.injected if pod.revision} - {desired})
    if others:
        what = f"has istio.io/rev={desired}, but Pods belong to revision {', '.join(others)}: their istiod ignores it"
        remedy = "remove the label from the AutoWasm, or set it to the Pods' revision (for a revision tag: its target)"
        yield _finding(
            Level.WARNING,
            "OtherRevision",
            facts.envoyfilter_name,
            what,
            remedy,
            field="metadata.labels[istio.io/rev]",
        )


def differing(live: Any, desired: Any, *, path: str) -> list[str]:
    """Paths of all values that differ. Lists of unequal length differ as a whole."""
    if isinstance(live, dict) and isinstance(desired, dict):
        keys = sorted({*live, *desired})
        return [
            found
            for key in keys
            for found in differing(live.get(key), desired.get(key), path=f"{path}.{key}")
        ]
    if isinstance(live, list) and isinstance(desired, list) and len(live) == len(desired):
        return [
            found
            for index, (mine, theirs) in enumerate(zip(live, desired, strict=True))
            for found in differing(mine, theirs, path=f"{path}[{index}]")
        ]
    return [] if live == desired else [path]


def _is_ours(facts: Facts, live: Mapping[str, Any]) -> bool:
    return ownership(live, owner=facts.document) is Ownership.OURS


CHECKS: Final[tuple[Check, ...]] = (present, edited, revision)
