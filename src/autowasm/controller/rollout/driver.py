"""RolloutDriver: connects the state machine with the API server, the Pods and their statistics. Leader only.

For each object in a staged rollout, it keeps data that a new leader can do without: the state between two writes, the variants,
the readings. `controller/rollout/publisher.py` writes its decisions. Invariants: an EnvoyFilter that gives Pods the target is not
due until each of these Pods was read once (the reading from before the change); sidecars are read only while a rollout is in
progress, one batch at a time for an object, outside the reconcile path; a state in the status that is not our last write replaces
ours.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog
from msgspec import UNSET

from autowasm.api import staged
from autowasm.api.envoyfilter import Variant, plugin_name_of
from autowasm.api.status import (
    MAX_STAGED,
    Module,
    RolloutPhase,
    RolloutStatus,
    RolloutVariant,
    Status,
)
from autowasm.api.v1alpha1 import REFRESH_ANNOTATION, ROLLOUT_ANNOTATION, AutoWasm, Rollout
from autowasm.controller.ownership import replacement
from autowasm.controller.pods.envoystats import Reading
from autowasm.controller.pods.podmatching import Pod, has_ended
from autowasm.controller.rollout import effects
from autowasm.controller.rollout.effects import Action, BeginCounts, LookAgain, RecordEvent
from autowasm.controller.rollout.guards import choice_of, is_same
from autowasm.controller.rollout.observation import Observation, PodObservation, StepReadings
from autowasm.controller.rollout.placement import placement
from autowasm.controller.rollout.placement import render as render_placement
from autowasm.controller.rollout.selection import Candidate
from autowasm.controller.rollout.statemachine import advance
from autowasm.kube.resources import ObjectKey
from autowasm.settings import EnvoyFetch
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

Document = Mapping[str, Any]

READ_EACH: Final = 1.0
"""Seconds between two readings of the Pods of a rollout; a reading of many Pods takes longer by itself (`StatsLimits.rate`)."""
BATCH: Final = 50
"""Pods whose readings count together: in a large step, readings already count while other Pods are still read."""
STABLE_SAMPLE: Final = 50
"""Pods with the stable variant that are read, for their share of failures."""
_ABORTED: Final = RolloutPhase.ABORTED
_IN_PROGRESS: Final = frozenset({RolloutPhase.PROGRESSING, RolloutPhase.PAUSED})


class RolloutPods(Protocol):
    """The Pods of an AutoWasm (`controller/cluster.py`)."""

    @property
    def are_listed(self) -> bool:
        """Whether all Pods are known."""

    def matched(self, key: ObjectKey, /) -> Iterable[Pod]:
        """The Pods that its selector matches and that have not ended."""


class SidecarReader(Protocol):
    """`StatsReader`."""

    async def read(self, pods: Iterable[Pod], /) -> dict[bytes, Reading]:
        """The readings by the Pods' uids."""


@dataclass(slots=True, eq=False)
class _Memory:
    """The state that this leader keeps for one object besides the status."""

    state: RolloutStatus | None
    stored: RolloutStatus | None
    """As it was in the status when `state` was taken from it or written to it."""
    variants: dict[str, Variant] = field(default_factory=dict)
    readings: StepReadings = field(default_factory=StepReadings)
    unwritten: list[RecordEvent] = field(default_factory=list)
    """Events of states that are not in the status yet."""
    looked: float | None = None
    """The clock at the last observation."""
    read_ended: float = float("-inf")
    step_began: float | None = None
    """The clock when the step began, if it began while this leader led."""
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """The result of one observation: the state to write, the actions, and the EnvoyFilter of the state."""

    state: RolloutStatus | None
    actions: tuple[Action, ...]
    document: Document | None
    """None: leave the EnvoyFilter in place as it is."""
    is_due: bool
    """Whether `document` may be published now. False: Pods that get the target have to be read first."""
    is_published: bool
    """Whether `document` is in place already."""

    @property
    def look_again(self) -> float | None:
        """Seconds until the next observation; None: an event queues the key."""
        waits = [action.seconds for action in self.actions if isinstance(action, LookAgain)]
        return min(waits, default=None)


class RolloutDriver:
    """One per process. Calls `on_change` with the key of an object whose Pods were read."""

    def __init__(
        self,
        pods: RolloutPods,
        reader: SidecarReader,
        *,
        envoy: EnvoyFetch,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
        on_change: Callable[[ObjectKey], None],
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wall`: seconds since the epoch. `clock`: the clock of `SidecarStats.read_at`, which is never set."""
        self._pods = pods
        self._reader = reader
        self._envoy = envoy
        self._metrics = metrics
        self._tasks = tasks
        self._on_change = on_change
        self._wall = wall
        self._clock = clock
        self._memories: dict[ObjectKey, _Memory] = {}

    def look(
        self,
        key: ObjectKey,
        autowasm: AutoWasm,
        *,
        rollout: Rollout,
        previous: Status,
        live: Document | None,
        target: Variant | None,
        resend: Callable[[str], int],
    ) -> Look:
        """Observe the rollout, and advance it once.

        `previous`: the status; `live`: our EnvoyFilter in place; `target`: the variant of the spec, None while its module is not
        ready; `resend`: the wanted resend count of a module.
        """
        stored = previous.rollout if previous.rollout is not UNSET else None
        memory = self._memory(key, stored)
        before, now = memory.state, self._clock()
        in_place = self._learn(memory, live, target)
        pods = self._listed(key)
        document = self._document(autowasm, memory, before, resend) if before is not None else None
        observation = Observation(
            target=_described(target, autowasm.metadata.generation) if target else None,
            base=_described(in_place.base, 0) if in_place.base is not None else None,
            is_readable=in_place.base is not None
            or in_place.override is not None
            or not _has_patches(live),
            found=frozenset(memory.variants),
            is_published=_is_in_place(live, document),
            pods=self._observed(autowasm, memory, pods, now) if pods is not None else None,
            elapsed=now - memory.looked if memory.looked is not None else None,
            watched=now - memory.readings.counted_since
            if memory.readings.counted_since is not None
            else 0.0,
            capacity=self._capacity(autowasm, memory, before, target, pods or {}),
            command=autowasm.metadata.annotations.get(ROLLOUT_ANNOTATION, ""),
            refresh=autowasm.metadata.annotations.get(REFRESH_ANNOTATION, ""),
        )
        state, actions = advance(before, observation, rollout, self._wall())
        memory.state, memory.looked = state, now
        if pods is None:  # the end of the first list queues no key
            actions = (*actions, LookAgain(effects.LOOK))
        if state is None:
            return Look(None, actions, None, False, False)
        self._begin_counts(memory, before, actions, now=now)
        self._measure(key, memory, before, actions, now=now)
        self._forget_variants(memory, state, target)
        if before is not None and before.phase in _IN_PROGRESS and state.phase is _ABORTED:
            _log_verdict(key, memory, pods or {})
        memory.unwritten += [one for one in actions if isinstance(one, RecordEvent)]
        if pods == {}:
            memory.readings.add({}, plugin="", begun=now)  # only time has to pass
        members = _members(state, pods or {})
        is_read = pods is not None and memory.readings.has_all(members.keys())
        is_due = is_read or not _gives_target(state)
        self._read_if_needed(key, autowasm, memory, members, pods or {}, now=now)
        if before is None or placement(before) != placement(state):
            document = self._document(autowasm, memory, state, resend)
        return Look(state, actions, document, is_due, _is_in_place(live, document))

    def written(self, key: ObjectKey, state: RolloutStatus) -> tuple[RecordEvent, ...]:
        """The state is in the status. Returns the Events of all states since the previously written one."""
        memory = self._memories.get(key)
        if memory is None:
            return ()
        memory.stored = memory.state = state
        events, memory.unwritten = tuple(memory.unwritten), []
        return events

    def placing(self, key: ObjectKey) -> None:
        """The EnvoyFilter of the state is about to be written, which gives the Pods of the step the target."""
        memory = self._memories.get(key)
        if memory is not None and memory.state is not None and _gives_target(memory.state):
            memory.readings.place(_members(memory.state, self._listed(key) or {}).keys())

    def forget(self, key: ObjectKey) -> None:
        """The object is gone, has no rollout, or another replica leads now."""
        memory = self._memories.pop(key, None)
        self._metrics.objects.waiting((key.namespace, key.name), None)
        if memory is not None and memory.task is not None:
            memory.task.cancel()

    def _memory(self, key: ObjectKey, stored: RolloutStatus | None) -> _Memory:
        memory = self._memories.get(key)
        if memory is None:
            memory = self._memories[key] = _Memory(stored, stored)
        elif memory.stored != stored:  # another client wrote the status
            memory.state = memory.stored = stored
        return memory

    @staticmethod
    def _learn(memory: _Memory, live: Document | None, target: Variant | None) -> staged.Variants:
        """Remember the variants in place and the spec's variant."""
        found = staged.variants_of(live) if live is not None else staged.Variants()
        for one in (found.base, found.override):
            # Another client may have changed the record, which is not in the digest.
            if one is not None and (one.record is not None or one.digest not in memory.variants):
                memory.variants[one.digest] = one
        if target is not None:
            memory.variants[target.digest] = target
        return found

    @staticmethod
    def _forget_variants(memory: _Memory, state: RolloutStatus, target: Variant | None) -> None:
        needed = {state.target.digest}
        if state.stable is not UNSET:
            needed.add(state.stable.digest)
        if target is not None:
            needed.add(target.digest)
        memory.variants = {
            digest: one for digest, one in memory.variants.items() if digest in needed
        }

    def _listed(self, key: ObjectKey) -> dict[str, tuple[Candidate, Pod]] | None:
        """The Pods with a sidecar, by uid; None: not known yet."""
        if not self._pods.are_listed:
            return None
        found = {}
        for pod in self._pods.matched(key):
            if pod.injected and not has_ended(pod):
                uid = str(uuid.UUID(bytes=pod.uid))
                found[uid] = _candidate(pod, uid), pod
        return found

    def _observed(
        self,
        autowasm: AutoWasm,
        memory: _Memory,
        pods: Mapping[str, tuple[Candidate, Pod]],
        now: float,
    ) -> tuple[PodObservation, ...]:
        state = memory.state
        if state is None or state.phase not in _IN_PROGRESS:
            return tuple(PodObservation(candidate=candidate) for candidate, _ in pods.values())
        plugin = plugin_name_of(autowasm, state.target.digest)
        memory.readings.retain(pods.keys())
        return tuple(
            memory.readings.observed(candidate, plugin=plugin, now=now)
            for candidate, _ in pods.values()
        )

    def _document(
        self,
        autowasm: AutoWasm,
        memory: _Memory,
        state: RolloutStatus,
        resend: Callable[[str], int],
    ) -> Document | None:
        """The EnvoyFilter of the state; None: leave the current one in place, because a variant is not known (any more)."""
        wanted = placement(state)
        if wanted is None:
            return None
        find = memory.variants.get
        return render_placement(autowasm, self._envoy, wanted, find=find, resend=resend)

    def _capacity(
        self,
        autowasm: AutoWasm,
        memory: _Memory,
        state: RolloutStatus | None,
        target: Variant | None,
        pods: Mapping[str, tuple[Candidate, Pod]],
    ) -> int:
        """How many names the EnvoyFilter can hold in addition to the configurations of both variants."""
        digest = ""
        if state is not None and state.phase is RolloutPhase.SUCCEEDED:
            digest = state.target.digest
        elif state is not None and state.stable is not UNSET:
            digest = state.stable.digest
        stable = memory.variants.get(digest)
        target = target or (memory.variants.get(state.target.digest) if state is not None else None)
        if target is None or len(pods) < 2:
            return MAX_STAGED
        proxies = (
            {"NAME": candidate.name, "NAMESPACE": candidate.namespace}
            for candidate, _ in pods.values()
        )
        return staged.capacity(autowasm, self._envoy, stable=stable, target=target, proxies=proxies)

    @staticmethod
    def _begin_counts(
        memory: _Memory, before: RolloutStatus | None, actions: Iterable[Action], *, now: float
    ) -> None:
        state = memory.state
        if state is None or not any(isinstance(action, BeginCounts) for action in actions):
            return
        continues = (
            before is not None
            and before.phase in _IN_PROGRESS
            and is_same(before.target, state.target)
            and before.step > 0
            and state.step > before.step
        )
        if not continues:
            memory.readings = StepReadings()
        memory.readings.begin_step(now=now)

    def _measure(
        self,
        key: ObjectKey,
        memory: _Memory,
        before: RolloutStatus | None,
        actions: Iterable[Action],
        *,
        now: float,
    ) -> None:
        state, metrics = memory.state, self._metrics
        if state is None:
            return
        is_begun = any(isinstance(action, BeginCounts) for action in actions)
        was_in_progress = before is not None and before.phase in _IN_PROGRESS
        has_ended = was_in_progress and state.phase not in _IN_PROGRESS
        is_aborted = has_ended and state.phase is _ABORTED
        if memory.step_began is not None and (is_begun or has_ended):
            result = "aborted" if is_aborted else "passed"
            metrics.staged_rollouts.step_seconds.labels(result).observe(now - memory.step_began)
            memory.step_began = None
        if is_begun:
            metrics.staged_rollouts.steps.inc()
            memory.step_began = now
        if is_aborted:
            metrics.staged_rollouts.aborts.labels(state.reason).inc()
        waits = state.phase in _IN_PROGRESS and not state.healthy_since
        metrics.objects.waiting((key.namespace, key.name), state.reason if waits else None)

    def _read_if_needed(
        self,
        key: ObjectKey,
        autowasm: AutoWasm,
        memory: _Memory,
        members: Mapping[str, tuple[Candidate, Pod]],
        pods: Mapping[str, tuple[Candidate, Pod]],
        *,
        now: float,
    ) -> None:
        """Read the Pods of the step, and some with the stable variant."""
        state = memory.state
        if state is None or state.phase not in _IN_PROGRESS or memory.task is not None:
            return
        is_new = not memory.readings.has_all(members.keys())
        if not is_new and now - memory.read_ended < READ_EACH:
            return
        others = [pod for uid, (_, pod) in pods.items() if uid not in members]
        wanted = [pod for _, pod in members.values()] + others[:STABLE_SAMPLE]
        if not wanted:
            return
        plugin = plugin_name_of(autowasm, state.target.digest)
        memory.task = self._tasks.create_task(
            self._read(key, memory, memory.readings, wanted, plugin=plugin),
            name=f"read sidecars of {key}",
        )

    async def _read(
        self,
        key: ObjectKey,
        memory: _Memory,
        readings: StepReadings,
        pods: list[Pod],
        *,
        plugin: str,
    ) -> None:
        try:
            for first in range(0, len(pods), BATCH):
                begun = self._clock()
                found = await self._reader.read(pods[first : first + BATCH])
                by_uid = {str(uuid.UUID(bytes=uid)): one for uid, one in found.items()}
                readings.add(by_uid, plugin=plugin, begun=begun)
        except Exception:  # supervised edge: a bug must not stop the rollouts of other objects
            _log.exception("reading of sidecars failed unexpectedly", key=str(key))
            self._metrics.unexpected_errors.labels("rollout").inc()
        memory.task, memory.read_ended = None, self._clock()
        self._on_change(key)


def _log_verdict(
    key: ObjectKey, memory: _Memory, pods: Mapping[str, tuple[Candidate, Pod]]
) -> None:
    """Log the figures behind an abort: the status has only the message."""
    state = memory.state
    verdict = state.verdict if state is not None else UNSET
    if state is None or verdict is UNSET:
        return
    uids = [uid for uid, (one, _) in pods.items() if f"{one.namespace}/{one.name}" == verdict.pod]
    before, after = memory.readings.evidence(uids[0]) if uids else (None, None)
    _log.warning(
        "rollout aborted",
        key=str(key),
        reason=state.reason,
        error=state.message,
        pod=verdict.pod,
        before=repr(before),
        after=repr(after),
    )


def _members(
    state: RolloutStatus, pods: Mapping[str, tuple[Candidate, Pod]]
) -> dict[str, tuple[Candidate, Pod]]:
    """The Pods that have the target or will get it."""
    if state.phase not in _IN_PROGRESS:
        return {}
    if state.step == state.steps:
        return dict(pods)
    chosen = choice_of(state).members(candidate for candidate, _ in pods.values())
    return {one.uid: pods[one.uid] for one in chosen}


def _gives_target(state: RolloutStatus) -> bool:
    return state.phase in _IN_PROGRESS and state.step > 0


def _described(variant: Variant, generation: int) -> RolloutVariant:
    module = Module.of(variant.record, "") if variant.record is not None else UNSET
    return RolloutVariant(variant.digest, generation, module)


def _is_in_place(live: Document | None, document: Document | None) -> bool:
    return live is not None and document is not None and replacement(live, document) is None


def _has_patches(live: Document | None) -> bool:
    return bool(((live or {}).get("spec") or {}).get("configPatches"))


def _candidate(pod: Pod, uid: str) -> Candidate:
    return Candidate(pod.namespace, pod.name, uid, pod.node, pod.workload, pod.ready)
