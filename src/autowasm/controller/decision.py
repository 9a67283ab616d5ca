"""decide(): whether to use an existing record or to resolve the source. Pure; ADR 7 and ADR 20.

GoneRecords handles records whose module the origin no longer has (ADR 14); temporary errors are retried instead. Invariants: a
restart alone never causes a resolution; a moved tag rolls out only where the user requested it (another source, `pullPolicy:
Always`, `refreshInterval`, the refresh annotation); a published record stays until the user requests another; an unpublished
record is dropped, and its source is resolved again.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from msgspec import UNSET

from autowasm.api.record import Record, belongs_to
from autowasm.api.status import ConditionType, Phase, Status
from autowasm.api.v1alpha1 import REFRESH_ANNOTATION, AutoWasm, PullPolicy
from autowasm.controller.reconcilecontext import ReconcileContext
from autowasm.errors import AutoWasmError, ContentRejected, SourceNotFound
from autowasm.kube.resources import ObjectKey
from autowasm.reasons import Reason


@dataclass(frozen=True, slots=True)
class UseRecord:
    """Fetch exactly this record if it is not stored, and publish it."""

    record: Record


@dataclass(frozen=True, slots=True)
class ResolveSource:
    """Resolve the source. `resolve_key` changes whenever the user requests a new resolution."""

    resolve_key: str


def decide(
    autowasm: AutoWasm,
    *,
    live: Record | None,
    previous: Status,
    lost: Collection[Record] = (),
    found: Record | None = None,
) -> UseRecord | ResolveSource:
    """`live`: the record of the EnvoyFilter in place. `previous`: the last written status.

    `lost`: records whose origin no longer has the module; of these, only the live record may be used. `found`: the record of the
    last poll, fetched and checked.
    """
    resolve_key = _resolve_key(autowasm)
    if refresh_wanted(autowasm, previous):
        return ResolveSource(resolve_key)
    expected = autowasm.spec.filter.sha256
    source = str(autowasm.spec.filter.source)
    if found is not None and found not in lost and _may_be_used(found, autowasm, previous):
        return UseRecord(found)
    for record in _candidates(live, previous):
        if record in lost and record != live:
            continue
        if belongs_to(record, source) and expected in {None, record.sha256}:
            if _always_asks_again(autowasm, previous):
                return ResolveSource(resolve_key)
            return UseRecord(record)
    return ResolveSource(resolve_key)


def _may_be_used(found: Record, autowasm: AutoWasm, previous: Status) -> bool:
    """False if the spec names another source or hash, or a resolution was requested after the poll."""
    spec = autowasm.spec.filter
    changed = autowasm.metadata.generation != previous.observed_generation
    return (
        belongs_to(found, str(spec.source))
        and spec.sha256 in {None, found.sha256}
        and not (changed and autowasm.pull_policy is PullPolicy.ALWAYS)
    )


def _resolve_key(autowasm: AutoWasm) -> str:
    # An edited `pluginConfig` must not start a new download, unless the pull policy resolves every generation.
    always = autowasm.pull_policy is PullPolicy.ALWAYS
    generation = autowasm.metadata.generation if always else ""
    return f"{generation} {autowasm.metadata.annotations.get(REFRESH_ANNOTATION, '')}"


def refresh_wanted(autowasm: AutoWasm, previous: Status) -> bool:
    """True if the refresh annotation has a value that was not handled yet."""
    wanted = autowasm.metadata.annotations.get(REFRESH_ANNOTATION, "")
    return bool(wanted) and wanted != previous.refresh


def _candidates(live: Record | None, previous: Status) -> Iterator[Record]:
    # During a staged rollout, most Pods may still have another module; after an aborted rollout, all of them do.
    if previous.rollout is not UNSET and previous.rollout.target.module is not UNSET:
        yield previous.rollout.target.module.record()
    if live is not None:
        yield live
    if previous.module is not UNSET:
        yield previous.module.record()
    for module in previous.history:
        yield module.record()


def _always_asks_again(autowasm: AutoWasm, previous: Status) -> bool:
    """`Always`: resolve at every change of the spec, until the resolution for that change has succeeded."""
    if autowasm.pull_policy is not PullPolicy.ALWAYS:
        return False
    if autowasm.metadata.generation != previous.observed_generation:
        return True
    if previous.phase is Phase.FETCHING:  # written to the status, not published yet
        return True
    fetched = previous.condition(ConditionType.FETCHED)
    return (
        fetched is not None
        and fetched.status != "True"
        and fetched.reason != Reason.PUBLISHED_MODULE_LOST
    )


class GoneRecords:
    """Dropped records by object key, until a module is published for the object."""

    def __init__(self) -> None:
        self._lost: dict[ObjectKey, frozenset[Record]] = {}

    def of(self, key: ObjectKey) -> frozenset[Record]:
        """The records that this object must not use."""
        return self._lost.get(key, frozenset())

    def give_up(
        self, context: ReconcileContext, decision: UseRecord | ResolveSource, error: AutoWasmError
    ) -> bool:
        """True if the chosen record is not in place and no longer available: decide again."""
        if not isinstance(decision, UseRecord) or decision.record == context.live:
            return False
        if not isinstance(error, SourceNotFound):
            return False
        self._lost[context.key] = self.of(context.key) | {decision.record}
        return True

    def forget(self, key: ObjectKey) -> None:
        """The object was published or deleted, its spec is invalid, or another replica leads now."""
        self._lost.pop(key, None)


def explain_lost(decision: UseRecord | ResolveSource, error: AutoWasmError) -> AutoWasmError:
    """`PublishedModuleLost` if the published module's origin answered with other bytes or none; else the error."""
    if not isinstance(decision, UseRecord) or not isinstance(
        error, SourceNotFound | ContentRejected
    ):
        return error
    return AutoWasmError(
        f"no replica stores the published module, and it cannot be fetched again: {error}; proxies that "
        "have it keep running it; to resolve the source again, set the annotation wasm.tcm.io/refresh "
        "to a new value",
        reason=Reason.PUBLISHED_MODULE_LOST,
    )
