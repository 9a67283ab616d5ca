"""Step AutoWasm: the object is valid, and wasmer has reconciled it."""

from collections.abc import Iterator
from typing import Final

from autowasm.api import status as statuses
from autowasm.api.status import ConditionType, Phase
from autowasm.controller.sourcepolicy import check_mesh_scope
from autowasm.errors import SpecError
from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step
from autowasm.reasons import Reason

_finding: Final = Reporter(Step.RESOURCE)
_REMEDIES: Final[dict[str, str]] = {
    Reason.POLICY_DENIED: "use a source that the policy allows, or ask the operator of wasmer to allow this one (--policy-file)",
    Reason.ADDRESS_NOT_ALLOWED: "wasmer's address policy forbids the address; its operator can allow the host with --allow-private-host (chart: config.allowPrivateHost)",
    Reason.ENVOY_FILTER_CONFLICT: "see the EnvoyFilter below",
    Reason.ENVOY_FILTER_REFUSED: "correct the webhook, policy or quota that the message names, or wasmer's ClusterRole",
    Reason.MUTATED: "find the admission webhook or controller that modifies the EnvoyFilter (see its metadata.managedFields), and stop it",
    Reason.CONFIGURATION_REFUSED: "see the start of the module below",
    Reason.START_FAILED: "see the start of the module below",
    Reason.ROLLOUT_FAILED: "see Rollout below",
    Reason.PUBLISHED_MODULE_LOST: "push the module again, or annotate the AutoWasm with wasm.tcm.io/refresh: <any new value>",
}
_LAST_REMEDY: Final = "correct the cause that the message names; wasmer retries automatically"


def valid(facts: Facts) -> Iterator[Finding]:
    """The spec passes wasmer's own parser, and the policy if one is given."""
    error = facts.spec_error
    if error is not None and error.reason == Reason.POLICY_DENIED:  # the problem has the advice
        yield _finding(Level.ERROR, error.reason, facts.name, error.problem, field=error.field)
    elif error is not None:
        for part in error.parts:
            yield _finding(
                Level.ERROR,
                "InvalidSpec",
                facts.name,
                part.problem,
                field=part.field,
            )
    else:
        yield _finding(Level.OK, "InvalidSpec", facts.name, "the spec is valid")


def deleted(facts: Facts) -> Iterator[Finding]:
    """The object is not being deleted: wasmer writes nothing for an object that is being deleted."""
    time = (facts.document.get("metadata") or {}).get("deletionTimestamp")
    if time:
        what = f"deletion requested at {time}: wasmer no longer writes anything for it"
        remedy = "wait; if the object persists, check metadata.finalizers"
        yield _finding(
            Level.WARNING,
            "BeingDeleted",
            facts.name,
            what,
            remedy,
            field="metadata.deletionTimestamp",
        )


def watched(facts: Facts) -> Iterator[Finding]:
    """The AutoWasm is in a namespace that wasmer watches."""
    names = facts.server.cluster.watch_namespaces
    if names and facts.key.namespace not in names:
        what = f"wasmer watches only the namespaces {', '.join(names)}, not {facts.key.namespace}"
        remedy = f"add --watch-namespace {facts.key.namespace} to wasmer's flags, or move the AutoWasm to a watched namespace"
        yield _finding(
            Level.ERROR, "NotWatched", facts.name, what, remedy, field="metadata.namespace"
        )


def mesh_wide(facts: Facts) -> Iterator[Finding]:
    """An empty selector in the root namespace needs the operator's consent; any other selector there gets a note."""
    if facts.autowasm is None or facts.key.namespace != facts.server.cluster.root_namespace:
        return
    path = "spec.selector.matchLabels"
    try:
        check_mesh_scope(facts.autowasm, cluster=facts.server.cluster)
    except SpecError as error:
        level = Level.ERROR if facts.server.known else Level.WARNING
        remedy = (
            "add labels to the selector, or ask the operator of wasmer to set --allow-mesh-wide"
        )
        yield _finding(level, error.reason, facts.name, error.problem, remedy, field=path)
        return
    what = f"{facts.key.namespace} is the mesh's root namespace: the selector matches Pods of all namespaces"
    yield _finding(Level.NOTE, "MeshWide", facts.name, what, field=path)


def handled(facts: Facts) -> Iterator[Finding]:
    """The status belongs to the current generation."""
    if facts.planned or facts.autowasm is None:
        return
    observed, now = facts.status.observed_generation, facts.autowasm.metadata.generation
    if not statuses.is_written(facts.document.get("status")):
        what = "has no status: wasmer has not reconciled it"
        remedy = f"check that wasmer runs and has a leader: kubectl logs -n {facts.server.envoy.service_namespace} -l app=wasmer"
        yield _finding(Level.ERROR, "NotHandled", facts.name, what, remedy, field="status")
    elif observed < now:
        what = f"the status is of generation {observed}, the spec of generation {now}: the last change is not reconciled yet"
        remedy = (
            "wait a moment; if this persists, wasmer does not run or cannot write: check its log"
        )
        yield _finding(
            Level.WARNING, "NotHandled", facts.name, what, remedy, field="status.observedGeneration"
        )


def phase(facts: Facts) -> Iterator[Finding]:
    """The phase that wasmer wrote into the status."""
    status = facts.status
    if facts.planned or not statuses.is_written(facts.document.get("status")):
        return
    ready = status.condition(ConditionType.READY)
    reason = ready.reason if ready else status.phase.value
    if status.phase is Phase.SYNCED:
        yield _finding(
            Level.OK, "Phase", facts.name, f"Synced: {status.message}", field="status.phase"
        )
    elif status.phase is Phase.PROGRESSING:
        what = f"Progressing: {status.message}"
        yield _finding(
            Level.NOTE, "Phase", facts.name, what, "see Rollout below", field="status.phase"
        )
    elif status.phase in {Phase.DEGRADED, Phase.FAILED}:
        what = f"{status.phase.value} ({reason}): {status.message}"
        remedy = _REMEDIES.get(reason, _LAST_REMEDY)
        yield _finding(Level.ERROR, reason, facts.name, what, remedy, field="status.phase")
    else:
        what = f"{status.phase.value}: {status.message}"
        remedy = "wait a moment, then run the command again"
        yield _finding(Level.WARNING, "Phase", facts.name, what, remedy, field="status.phase")


def other_conditions(facts: Facts) -> Iterator[Finding]:
    """Conditions of unusual types are set only for a problem."""
    usual = {kind.value for kind in ConditionType}
    for condition in facts.status.conditions:
        if condition.type not in usual and condition.status == "True":
            where = f"status.conditions[{condition.type}]"
            remedy = _REMEDIES.get(condition.type, _LAST_REMEDY)
            what = condition.message or condition.reason
            yield _finding(Level.ERROR, condition.type, facts.name, what, remedy, field=where)


CHECKS: Final[tuple[Check, ...]] = (
    valid,
    deleted,
    watched,
    mesh_wide,
    handled,
    phase,
    other_conditions,
)
