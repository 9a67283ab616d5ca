"""decide(): use a record that is there, or resolve the source? Pure; ADR 7 and ADR 20 in one page.

Not the fetching. Invariant: a restart alone never leads to a resolution, and a moved tag rolls out only where the user
asked for it (another source, `pullPolicy: Always`, `refreshInterval`, the refresh annotation).

What to do once an origin says that it has no more what a record names (ADR 14).

Not for errors that say "later": those are tried again. Invariant: what is published is held on to until the user asks for
another; a record that is only remembered is given up, and its source resolved afresh.
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

PUBLISHED_MODULE_LOST = "PublishedModuleLost"


@dataclass(frozen=True, slots=True)
class UseRecord:
    """Fetch, if need be, and publish exactly this."""

    record: Record


@dataclass(frozen=True, slots=True)
class ResolveSource:
    """Ask the source what it names now. `resolve_key` differs whenever the user asks again."""

    resolve_key: str


def decide(
    autowasm: AutoWasm,
    *,
    live: Record | None,
    previous: Status,
    lost: Collection[Record] = (),
    found: Record | None = None,
) -> UseRecord | ResolveSource:
    """`live`: the record of the EnvoyFilter in place. `previous`: the status as it was last written.

    `lost`: records that their origin has no more; only what is live is held on to nevertheless.
    `found`: what a poll found to be named now, fetched and checked.
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
    """Not if the spec asks for another, or for a look that is later than the poll's."""
    spec = autowasm.spec.filter
    changed = autowasm.metadata.generation != previous.observed_generation
    return (
        belongs_to(found, str(spec.source))
        and spec.sha256 in {None, found.sha256}
        and not (changed and autowasm.pull_policy is PullPolicy.ALWAYS)
    )


def _resolve_key(autowasm: AutoWasm) -> str:
    # An edited `pluginConfig` must not begin a download anew, except where every generation is to be resolved.
    always = autowasm.pull_policy is PullPolicy.ALWAYS
    generation = autowasm.metadata.generation if always else ""
    return f"{generation} {autowasm.metadata.annotations.get(REFRESH_ANNOTATION, '')}"


def refresh_wanted(autowasm: AutoWasm, previous: Status) -> bool:
    """True if the refresh annotation holds a value that was not handled yet."""
    wanted = autowasm.metadata.annotations.get(REFRESH_ANNOTATION, "")
    return bool(wanted) and wanted != previous.refresh


def _candidates(live: Record | None, previous: Status) -> Iterator[Record]:
    if live is not None:
        yield live
    if previous.module is not UNSET:
        yield previous.module.record()
    for module in previous.history:
        yield module.record()


def _always_asks_again(autowasm: AutoWasm, previous: Status) -> bool:
    """`Always`: at every change of the spec, and until the resolution for that change has succeeded."""
    if autowasm.pull_policy is not PullPolicy.ALWAYS:
        return False
    if autowasm.metadata.generation != previous.observed_generation:
        return True
    if previous.phase is Phase.FETCHING:  # told to the other replicas, not published yet
        return True
    fetched = previous.condition(ConditionType.FETCHED)
    return (
        fetched is not None and fetched.status != "True" and fetched.reason != PUBLISHED_MODULE_LOST
    )


class GoneRecords:
    """Records that were given up, by object key, until something is published for it."""

    def __init__(self) -> None:
        self._lost: dict[ObjectKey, frozenset[Record]] = {}

    def of(self, key: ObjectKey) -> frozenset[Record]:
        """Those not to be used for this object."""
        return self._lost.get(key, frozenset())

    def give_up(
        self, context: ReconcileContext, decision: UseRecord | ResolveSource, error: AutoWasmError
    ) -> bool:
        """True if the record that was decided on is not in place and can be had no more: decide again."""
        if not isinstance(decision, UseRecord) or decision.record == context.live:
            return False
        if not isinstance(error, SourceNotFound):
            return False
        self._lost[context.key] = self.of(context.key) | {decision.record}
        return True

    def forget(self, key: ObjectKey) -> None:
        """Published, gone, or another replica's matter."""
        self._lost.pop(key, None)


def explain_lost(decision: UseRecord | ResolveSource, error: AutoWasmError) -> AutoWasmError:
    """`PublishedModuleLost` if the origin of what is published answered, and has other bytes or none; else the error."""
    if not isinstance(decision, UseRecord) or not isinstance(
        error, SourceNotFound | ContentRejected
    ):
        return error
    return AutoWasmError(
        f"the published module is stored nowhere and cannot be fetched again: {error}; proxies that "
        "have it keep running it; set the annotation wasm.tcm.io/refresh to a new value to "
        "resolve the source afresh",
        reason=PUBLISHED_MODULE_LOST,
    )
