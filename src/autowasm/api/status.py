"""The status of an AutoWasm: phases, conditions, the record, the history, the staged rollout. Pure data.

Invariants: `lastTransitionTime` changes only with a condition's status, so an unchanged state gives an unchanged status and
wasmer writes nothing (ADR 12); the history is newest first, one entry for each source, at most `MAX_HISTORY`.
Not the decision about a phase (see `controller/reconciler.py`).
"""

import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from autowasm.api.record import Record

MAX_HISTORY = 5
MAX_MESSAGE = 2048
"""Characters; longer messages are cut, because etcd stores them. The list of all missing functions fits."""
MAX_ABORTED = 5
"""Without a limit, a tag that moves every minute would fill the status."""
MAX_STAGED = 500
"""Pods, workloads and nodes that a step names: 50 to 150 KB in the status, and as many patches in the EnvoyFilter."""


MAX_PER_POD = 10
"""Pods of a step whose requests the status has: a kilobyte, written every quarter of a minute."""


class Phase(enum.Enum):
    """`status.phase`: see docs/reference/conditions.md."""

    PENDING = "Pending"
    FETCHING = "Fetching"
    PROGRESSING = "Progressing"
    SYNCED = "Synced"
    DEGRADED = "Degraded"
    FAILED = "Failed"


class ConditionType(enum.Enum):
    """`status.conditions[].type`."""

    FETCHED = "Fetched"
    PUBLISHED = "Published"
    READY = "Ready"
    RECONCILING = "Reconciling"
    """Present, and True, while `Ready` is not True and may become so without a person (kstatus)."""
    STALLED = "Stalled"
    """Present, and True, while only a change by a person can make `Ready` True (kstatus)."""
    STARTS = "Starts"
    """Whether the module starts with its configuration, as far as it is known before it is published (ADR 37)."""
    LOADED = "Loaded"
    """Whether the Pods that the selector matches fetched the published module. No other condition depends on it."""
    RUNNING = "Running"
    """Whether the published module runs in their sidecars, by the statistics of these. No other condition depends on it."""


_ORDER: Final = {kind.value: number for number, kind in enumerate(ConditionType)}


class Condition(Struct, frozen=True, rename="camel"):
    """As metav1.Condition."""

    type: str
    status: str
    reason: str
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int = 0

    def same_state(self, other: "Condition") -> bool:
        """True if all but the times is equal."""
        mine = (self.type, self.status, self.reason, self.message, self.observed_generation)
        return mine == (
            other.type,
            other.status,
            other.reason,
            other.message,
            other.observed_generation,
        )


class Module(Record, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """`status.module`, and an entry of `status.history`: a record with the time at which it was fetched."""

    fetched_at: str = ""

    def record(self) -> Record:
        """The record without the time."""
        return Record(**{name: getattr(self, name) for name in Record.__struct_fields__})

    @classmethod
    def of(cls, record: Record, fetched_at: str) -> "Module":
        """The record with the time, RFC 3339."""
        values = {name: getattr(record, name) for name in Record.__struct_fields__}
        return cls(**values, fetched_at=fetched_at)


class Preflight(Struct, frozen=True, omit_defaults=True):
    """`status.preflight`: the last verdict on the module with its configuration, for the next leader."""

    key: str
    """The combination that was judged: hexadecimal digits."""
    status: str = ""
    """As of the condition `Starts`: True, False or Unknown."""
    reason: str = ""
    message: str = ""


class MissingPod(Struct, frozen=True):
    """A Pod that is not known to have fetched the module, and why."""

    namespace: str
    name: str
    reason: str
    message: str = ""


class NotRunningPod(Struct, frozen=True):
    """A Pod whose sidecar is not known to run the module, and why."""

    namespace: str
    name: str
    reason: str
    message: str = ""


class Pods(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """`status.pods`: the numbers of Pods that the selector matches, that have a sidecar, that have the module, and that run it."""

    matched: int
    injected: int
    fetched: int | UnsetType = UNSET
    """Unset if no module is published, or if an older version wrote the status."""
    missing: tuple[MissingPod, ...] = ()
    """The first Pods that are not known to have fetched the module."""
    running: int | UnsetType = UNSET
    """Unset if no module is published, or if an older version wrote the status."""
    not_running: tuple[NotRunningPod, ...] = ()
    """The first Pods with a sidecar that is not known to run the module."""
    time: str = ""
    """When these values last changed, RFC 3339."""

    def without_running(self) -> "Pods":
        """The same counts without those of running modules."""
        return msgspec.structs.replace(self, running=UNSET, not_running=())

    def same(self, other: "Pods | UnsetType") -> bool:
        """True if all but the time is equal."""
        return other is not UNSET and msgspec.structs.replace(self, time=other.time) == other


class RolloutPhase(enum.Enum):
    """`status.rollout.phase`."""

    PROGRESSING = "Progressing"
    PAUSED = "Paused"
    SUCCEEDED = "Succeeded"
    ABORTED = "Aborted"


class StepUnit(enum.Enum):
    """`status.rollout.by`: the kind of object that the patches of a step name."""

    POD = "Pod"
    WORKLOAD = "Workload"
    NODE = "Node"


class RolloutVariant(Struct, frozen=True, omit_defaults=True):
    """One variant of the filter: module, configuration, environment, failStrategy, context, ports, position and allowOnHeadersStopIteration."""

    digest: str
    """`api.envoyfilter.Variant.digest`; Envoy's statistics name it."""
    generation: int = 0
    """The generation of the spec that asked for it; 0 if unknown."""
    module: Module | UnsetType = UNSET


class StagedPod(Struct, frozen=True):
    """A Pod that a step chose."""

    namespace: str
    name: str
    uid: str


class StagedGroup(Struct, frozen=True, omit_defaults=True):
    """A workload or a node that a step chose; a node has no namespace."""

    name: str
    namespace: str = ""


class PodRequests(Struct, frozen=True, omit_defaults=True):
    """Requests to one Pod of a step since the step began. `pod` is `namespace/name`."""

    pod: str
    requests: int = 0
    failures: int = 0


class RolloutVerdict(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The last judgement of a step. Requests are counted from the start of the step, or of the leader's watch if that is later."""

    pods: int = 0
    """Pods that the step has to prove."""
    proven: int = 0
    requests: int = 0
    failures: int = 0
    """Responses with a status of 500 or more."""
    stable_requests: int = 0
    stable_failures: int = 0
    is_by_time: bool = field(default=False, name="byTime")
    """Some Pod had too few requests, or could not be read: only the elapsed time is evidence."""
    pod: str = ""
    """`namespace/name` of the Pod that `status.rollout.reason` is about."""
    per_pod: tuple[PodRequests, ...] = ()
    """Pods of the step, the one with the largest share of failures first; at most `MAX_PER_POD`."""


class RolloutStatus(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """`status.rollout`: everything that the next leader needs to continue (ADR 39). At most `MAX_STAGED` Pods and groups.

    The durations count watched time only, so setting a clock does not change them; the times are for people.
    """

    phase: RolloutPhase
    target: RolloutVariant
    stable: RolloutVariant | UnsetType = UNSET
    """Unset: no filter was in place before."""
    aborted: tuple[RolloutVariant, ...] = ()
    """Targets that were aborted for the generation of the target, the last one first; at most `MAX_ABORTED`."""
    step: int = 0
    """From 1; the last of `steps` has all Pods."""
    steps: int = 0
    size: int = 0
    """The number of Pods that the step may have; meaningless in the last step."""
    by: StepUnit = StepUnit.POD
    pods: tuple[StagedPod, ...] = ()
    groups: tuple[StagedGroup, ...] = ()
    started: str = ""
    """When the step began."""
    healthy_since: str = ""
    placed_seconds: float = 0.0
    """Watched time since the Pods of the step last changed."""
    healthy_seconds: float = 0.0
    waited_seconds: float = 0.0
    """Watched time in which the step was not healthy."""
    time: str = ""
    """When this was last observed."""
    reason: str = ""
    message: str = ""
    verdict: RolloutVerdict | UnsetType = UNSET
    command: str = ""
    """The last value of the rollout annotation that was handled."""
    refresh: str = ""
    """The value of the refresh annotation when the target was chosen."""


class Status(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """`status`. Unknown fields are dropped: only wasmer owns the status."""

    phase: Phase = Phase.PENDING
    message: str = ""
    observed_generation: int = 0
    module: Module | UnsetType = UNSET
    history: tuple[Module, ...] = ()
    pods: Pods | UnsetType = UNSET
    preflight: Preflight | UnsetType = UNSET
    refresh: str = ""
    """The last value of the refresh annotation that was handled."""
    rollout: RolloutStatus | UnsetType = UNSET
    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of this type, None if it is absent."""
        return next((c for c in self.conditions if c.type == kind.value), None)

    def to_dict(self) -> dict[str, Any]:
        """As decoded JSON."""
        result: dict[str, Any] = msgspec.to_builtins(self)
        result.setdefault("phase", self.phase.value)
        return result


_STATUS: Final = msgspec.json.Decoder(Status)


def read(document: Mapping[str, Any] | None) -> Status:
    """Read a status that any version or another client wrote. An unreadable one counts as absent."""
    if document is None or not is_written(document):
        return Status()
    try:
        return msgspec.convert(document, _STATUS.type)
    except (msgspec.ValidationError, ValueError):
        return Status()


def is_written(document: Mapping[str, Any] | None) -> bool:
    """Whether wasmer has written this status. A new object has the default of the CRD, which only states that it was not observed."""
    return document is not None and "phase" in document


def utc_now() -> str:
    """RFC 3339, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def with_conditions(
    previous: Status, wanted: tuple[Condition, ...], *, now: str
) -> tuple[Condition, ...]:
    """`wanted` with transition times: the one in `previous` if the condition's status is unchanged, else `now`."""
    result = []
    for condition in wanted:
        old = next((c for c in previous.conditions if c.type == condition.type), None)
        time = old.last_transition_time if old and old.status == condition.status else now
        result.append(msgspec.structs.replace(condition, last_transition_time=time or now))
    return tuple(result)


def with_condition(
    conditions: tuple[Condition, ...],
    kind: ConditionType,
    condition: Condition | None,
    *,
    now: str,
) -> tuple[Condition, ...]:
    """`conditions` with this one of type `kind`, its time as in `with_conditions`; None removes it.

    They have the order of `ConditionType`, so that the same conditions always give the same status.
    """
    others = [one for one in conditions if one.type != kind.value]
    if condition is not None:
        old = next((one for one in conditions if one.type == kind.value), None)
        time = old.last_transition_time if old and old.status == condition.status else now
        others.append(msgspec.structs.replace(condition, last_transition_time=time or now))
    return tuple(sorted(others, key=lambda one: _ORDER.get(one.type, len(_ORDER))))


def remember(history: tuple[Module, ...], module: Module) -> tuple[Module, ...]:
    """The history with `module` first, without an older entry for the same source."""
    others = tuple(entry for entry in history if entry.source != module.source)
    return (module, *others)[:MAX_HISTORY]
