"""Staged rollouts, for any order of events: Pods come and go, crash or are not readable; leaders crash between two writes; the spec is
edited; clocks are set.

The real state machine, selection and rendering over a model of the mesh, which applies the rendered patches as istiod does. Asserted is
what the Pods have, and what a person at the API server sees: never what the machine believes.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import UNSET

from autowasm.api import rolloutsteps
from autowasm.api.envoyfilter import Variant, variant_of
from autowasm.api.staged import Variants, render, variants_of
from autowasm.api.status import MAX_STAGED, Module, RolloutPhase, RolloutStatus, RolloutVariant
from autowasm.api.v1alpha1 import AutoWasm, OnUnknown, Rollout
from autowasm.controller.pods.runstate import RunState
from autowasm.controller.rollout.observation import (
    Figures,
    Observation,
    PodObservation,
)
from autowasm.controller.rollout.placement import placement
from autowasm.controller.rollout.selection import Candidate
from autowasm.controller.rollout.statemachine import advance, is_worth_writing
from autowasm.settings import EnvoyFetch
from autowasm.units import parse_duration
from tests.fakes.autowasms import autowasm, record

MODULES = "abc"
PORTS: tuple[list[int] | None, ...] = ([9080], None)
STEPS = ([1, "10%", "50%"], ["34%"], [2, 3], ["100%"])
# A run looks at few different objects, and at each thousands of times.
_AUTOWASMS: dict[Any, AutoWasm] = {}
_RENDERED: dict[Any, dict[str, Any]] = {}
_VARIANTS: dict[int, Variants] = {}
_FILTERS: dict[Any, list[str]] = {}
IN_PROGRESS = {RolloutPhase.PROGRESSING, RolloutPhase.PAUSED}


@dataclass(slots=True)
class Pod:
    """A Pod, and what its Envoy says."""

    candidate: Candidate
    run: RunState = RunState.RUNNING
    """As long as it has the filter of the target."""
    failures: int = 0
    ready_since: float = 0.0
    """True time since when it is ready, as long as it is."""
    healthy_since: float | None = None
    """True time since when every look showed it healthy, by what it really has."""


@dataclass(slots=True)
class Attempt:
    """One rollout, from its begin to its end."""

    target: RolloutVariant
    step: int = 0
    began: float = 0.0
    allowed: int = 0
    before: Any = None
    """The EnvoyFilter when it began: that of a rollout of the same target may name more Pods, until it is replaced."""
    names: bool = True
    """Whether the step names Pods: only then a new Pod has to be healthy for the whole pause."""


class Memory:
    """What a leader loses by a crash."""

    def __init__(self, now: float) -> None:
        self.state: RolloutStatus | None = None
        self.is_read = False
        self.counted_since = now
        self.last_look: float | None = None


@dataclass(slots=True)
class Stored:
    """What the API server has."""

    rollout: Any = None
    envoyfilter: dict[str, Any] | None = None
    annotations: dict[str, str] = field(default_factory=dict)


def filters(document: Mapping[str, Any] | None, pod: Candidate, port: int) -> list[str]:
    """The modules of our filters in the Pod's chain for this port. `document`: of `_RENDERED`."""
    key = (id(document), pod.name, pod.node, pod.workload, port)
    if key not in _FILTERS:
        _FILTERS[key] = _filters(document, pod, port)
    return _FILTERS[key]


def live_variants(document: dict[str, Any] | None) -> Variants:
    """The variants in an EnvoyFilter of `_RENDERED`."""
    if id(document) not in _VARIANTS:
        _VARIANTS[id(document)] = variants_of(document or {})
    return _VARIANTS[id(document)]


def _filters(document: Mapping[str, Any] | None, pod: Candidate, port: int) -> list[str]:
    """As istiod applies the patches (`test_staged_listeners.py`)."""
    chain: list[tuple[str, str]] = [("envoy.filters.http.router", "")]
    metadata = {
        "NAME": pod.name,
        "NAMESPACE": pod.namespace,
        "NODE_NAME": pod.node,
        "WORKLOAD_NAME": pod.workload,
    }
    for each in (document or {"spec": {"configPatches": []}})["spec"]["configPatches"]:
        match, patch = each["match"], each["patch"]
        listener = match["listener"]
        wanted = match.get("proxy", {}).get("metadata", {})
        if "name" in listener or listener.get("portNumber") not in {None, port}:
            continue
        if any(metadata[name] != value for name, value in wanted.items()):
            continue
        anchor = listener["filterChain"]["filter"]["subFilter"]["name"]
        places = [place for place, (name, _) in enumerate(chain) if name == anchor]
        if not places:
            continue
        value = patch.get("value", {})
        config = value.get("typedConfig", {}).get("value", {}).get("config", {})
        new = (value.get("name", ""), config.get("name", ""))
        match patch["operation"]:
            case "INSERT_BEFORE":
                chain.insert(places[0], new)
            case "REPLACE":
                chain[places[0]] = new
            case "REMOVE":
                chain = [one for one in chain if one[0] != anchor]
    return [plugin.rpartition("-")[2] for name, plugin in chain if name.startswith("autowasm/")]


class Rollouts(RuleBasedStateMachine):
    """One AutoWasm with a rollout, its leader, and its Pods."""

    @initialize(
        steps=st.sampled_from(STEPS),
        pods=st.integers(0, 12),
        on_unknown=st.sampled_from(OnUnknown),
        is_first=st.booleans(),
        capacity=st.sampled_from([MAX_STAGED, 3, 0]),
    )
    def begin(
        self, steps: Any, pods: int, on_unknown: OnUnknown, is_first: bool, capacity: int
    ) -> None:
        self.true = 0.0
        self.skew = 1_700_000_000.0
        self.generation = 1
        self.rollout = {
            "steps": steps,
            "pause": "10s",
            "deadline": "40s",
            "onUnknown": on_unknown.value,
        }
        self.module, self.ports = "a", PORTS[0]
        self.pods: dict[str, Pod] = {}
        self.made = 0
        self.capacity = capacity
        self.stored = Stored()
        self.memory = Memory(self.true)
        self.attempt: Attempt | None = None
        self.refused: set[tuple[int, str]] = set()
        self.proven = {""}
        """Variants that an abort may restore: the last that all Pods got. Two between the writes of a success."""
        for _ in range(pods):
            self.add_pod(0, True)
        if not is_first:
            stable = variant_of(self.autowasm(), self.record())
            self.stored.envoyfilter = self.rendered(stable, None, ())
            self.proven = {stable.digest}

    # The object, as the API server and the reconciler have it.

    def autowasm(self) -> AutoWasm:
        fields: dict[str, Any] = {"applyPorts": self.ports} if self.ports else {}
        key = json.dumps([self.generation, self.rollout, fields])
        if key not in _AUTOWASMS:
            _AUTOWASMS[key] = autowasm(
                generation=self.generation, spec={"rollout": self.rollout}, **fields
            )
        return _AUTOWASMS[key]

    def spec_rollout(self) -> Rollout:
        rollout = self.autowasm().spec.rollout
        assert rollout is not None
        return rollout

    def record(self) -> Any:
        return record(sha256=self.module * 64)

    def spec_variant(self) -> Variant:
        return variant_of(self.autowasm(), self.record())

    def rendered(self, stable: Variant | None, new: Variant | None, proxies: Any) -> dict[str, Any]:
        names = None if proxies is None else tuple(json.dumps(one) for one in proxies)
        if (stable, new, names) not in _RENDERED:
            document = render(
                self.autowasm(), EnvoyFetch(), stable=stable, target=new, proxies=proxies
            )
            _RENDERED[stable, new, names] = json.loads(json.dumps(document))
        return _RENDERED[stable, new, names]

    def read(self) -> RolloutStatus | None:
        """The status, as another process reads it."""
        if self.stored.rollout is None:
            return None
        return msgspec.json.decode(self.stored.rollout, type=RolloutStatus)

    def document_of(self, state: RolloutStatus) -> dict[str, Any] | None:
        """The EnvoyFilter of a state; None: that in place."""
        wanted = placement(state)
        if wanted is None:
            return None
        live = live_variants(self.stored.envoyfilter)
        spec = self.spec_variant()

        def find(digest: str) -> Variant | None:
            if not digest:
                return None
            return spec if digest == spec.digest else live.find(digest)

        stable, new = find(wanted.stable), find(wanted.target)
        # A crash after the status of a success, then an edit: the variant is stored nowhere, and no Pod got it.
        is_unwritten = state.phase is RolloutPhase.SUCCEEDED and len(self.proven) == 2
        assert is_unwritten or (stable is not None) == bool(wanted.stable), "a variant is lost"
        if (wanted.stable and stable is None) or (wanted.target and new is None):
            return None  # the spec was edited: the next look restarts
        return self.rendered(stable, new, wanted.proxies)

    # Events.

    @rule(node=st.integers(0, 3), is_ready=st.booleans())
    def add_pod(self, node: int, is_ready: bool) -> None:
        if len(self.pods) >= 14:
            return
        self.made += 1
        name = f"details-v{self.made % 2}-{self.made}"
        candidate = Candidate(
            "default", name, f"uid-{self.made}", f"node-{node}", name[:10], is_ready
        )
        self.pods[candidate.uid] = Pod(candidate, ready_since=self.true)

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def remove_pod(self, data: st.DataObject) -> None:
        del self.pods[data.draw(st.sampled_from(sorted(self.pods)))]

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def recreate_pod_with_its_name(self, data: st.DataObject) -> None:
        old = self.pods.pop(data.draw(st.sampled_from(sorted(self.pods)))).candidate
        self.made += 1
        uid = f"uid-{self.made}"
        self.pods[uid] = Pod(
            Candidate(old.namespace, old.name, uid, old.node, old.workload, True),
            ready_since=self.true,
        )

    @precondition(lambda self: self.pods)
    @rule(data=st.data(), run=st.sampled_from(RunState), failures=st.sampled_from([0, 0, 50]))
    def change_what_a_pod_says(self, data: st.DataObject, run: RunState, failures: int) -> None:
        pod = self.pods[data.draw(st.sampled_from(sorted(self.pods)))]
        pod.run, pod.failures = run, failures

    @precondition(lambda self: self.pods)
    @rule(data=st.data(), is_ready=st.booleans())
    def change_readiness(self, data: st.DataObject, is_ready: bool) -> None:
        pod = self.pods[data.draw(st.sampled_from(sorted(self.pods)))]
        self.set_readiness(pod, is_ready)

    def set_readiness(self, pod: Pod, is_ready: bool) -> None:
        if is_ready and not pod.candidate.ready:
            pod.ready_since = self.true
        pod.candidate = dataclasses.replace(pod.candidate, ready=is_ready)

    @rule()
    def make_all_pods_good(self) -> None:
        for pod in self.pods.values():
            self.set_readiness(pod, True)
            pod.run, pod.failures = RunState.RUNNING, 0

    @rule(module=st.sampled_from(MODULES), ports=st.sampled_from(PORTS))
    def edit_spec(self, module: str, ports: Any) -> None:
        self.module, self.ports = module, ports
        self.generation += 1

    @rule(module=st.sampled_from(MODULES))
    def move_tag(self, module: str) -> None:
        self.module = module

    @rule(
        verb=st.sampled_from(["pause", "resume", "promote", "abort", "retry", "dance"]),
        old=st.booleans(),
    )
    def command(self, verb: str, old: bool) -> None:
        self.made += 1
        generation = f"@{self.generation - 1}" if old else ""
        self.stored.annotations["command"] = f"{verb}{generation} {self.made}"

    @rule()
    def refresh(self) -> None:
        self.made += 1
        self.stored.annotations["refresh"] = str(self.made)

    @rule(seconds=st.sampled_from([-3600.0, -5.0, 5.0, 59.0, 86_400.0]))
    def set_clock(self, seconds: float) -> None:
        self.skew += seconds

    @rule()
    def crash(self) -> None:
        self.memory = Memory(self.true)

    @rule(seconds=st.sampled_from([0.0, 1.0, 2.0, 5.0, 12.0, 70.0]))
    def pass_time(self, seconds: float) -> None:
        self.true += seconds

    @rule(
        crash=st.sampled_from([None, None, None, "before", "between", "after"]),
        knows_pods=st.sampled_from([True, True, True, True, False]),
        is_stored=st.sampled_from([True, True, True, True, False]),
    )
    def reconcile(self, crash: str | None, knows_pods: bool, is_stored: bool) -> None:
        self.look(crash, knows_pods=knows_pods, is_stored=is_stored)

    @rule(failures=st.sampled_from([50, 200]))
    def fail_whatever_is_new(self, failures: int) -> None:
        for pod in self.pods.values():
            pod.failures = failures
        self.reconcile_often(4)
        self.make_all_pods_good()

    @rule(times=st.integers(2, 30))
    def reconcile_often(self, times: int) -> None:
        for _ in range(times):
            self.true += 2.0
            self.look(None, knows_pods=True, is_stored=True)
            self.check()

    # The leader.

    def look(self, crash: str | None, *, knows_pods: bool, is_stored: bool) -> None:
        memory = self.memory
        before = memory.state if memory.is_read else self.read()
        observation = self.observe(before, knows_pods=knows_pods, is_stored=is_stored)
        if knows_pods:
            self.note_health(before)
        state, actions = advance(before, observation, self.spec_rollout(), self.true + self.skew)
        memory.state, memory.is_read = state, True
        if crash == "before" or state is None:
            self.memory = Memory(self.true) if crash else memory
            return
        if is_worth_writing(self.read(), state):
            self.write(before, state, observation)
        if any(type(one).__name__ == "BeginCounts" for one in actions):
            memory.counted_since = self.true
        if crash == "between":
            self.memory = Memory(self.true)
            return
        document = self.document_of(state)
        if document is not None:
            self.stored.envoyfilter = document
            if state.phase is RolloutPhase.SUCCEEDED:
                self.proven = {state.target.digest}
        if crash == "after":
            self.memory = Memory(self.true)

    def observe(
        self, state: RolloutStatus | None, *, knows_pods: bool, is_stored: bool
    ) -> Observation:
        last, self.memory.last_look = self.memory.last_look, self.true
        live = live_variants(self.stored.envoyfilter)
        variant = self.spec_variant()
        wanted = self.variant_status(variant, self.generation)
        digests = {one.digest for one in (live.base, live.override) if one is not None}
        published = state is not None and self.document_of(state) == self.stored.envoyfilter
        pods = tuple(self.observed(pod, state) for pod in self.pods.values())
        return Observation(
            target=wanted if is_stored else None,
            base=self.variant_status(live.base, 0) if live.base is not None else None,
            found=frozenset(digests | {variant.digest}),
            is_published=published,
            pods=pods if knows_pods else None,
            elapsed=None if last is None else self.true - last,
            watched=self.true - self.memory.counted_since,
            capacity=self.capacity,
            command=self.stored.annotations.get("command", ""),
            refresh=self.stored.annotations.get("refresh", ""),
        )

    def variant_status(self, variant: Variant, generation: int) -> RolloutVariant:
        module = Module.of(variant.record, "") if variant.record is not None else UNSET
        return RolloutVariant(variant.digest, generation, module)

    def observed(self, pod: Pod, state: RolloutStatus | None) -> PodObservation:
        has_target = state is not None and self.digest_of(pod) == state.target.digest
        run = pod.run if has_target else RunState.NOT_ACCEPTED
        return PodObservation(
            candidate=pod.candidate,
            run=run,
            age=0.0,
            figures=Figures(200, pod.failures if has_target else 0),
            downloaded=None,
        )

    def write(
        self, before: RolloutStatus | None, state: RolloutStatus, observation: Observation
    ) -> None:
        self.judge(before, state, observation)
        self.stored.rollout = msgspec.json.encode(state)

    # What the Pods have.

    def digest_of(self, pod: Pod) -> str:
        """The variant of the Pod's filter; empty: it has none."""
        found = {
            digest
            for port in (9080, 9081)
            for digest in filters(self.stored.envoyfilter, pod.candidate, port)
        }
        assert len(found) <= 1, "a Pod never has both"
        return next(iter(found), "")

    def note_health(self, state: RolloutStatus | None) -> None:
        """Since when each Pod was healthy at every look, by what it has and says."""
        wait = self.rollout["onUnknown"] == "Wait"
        good = {RunState.RUNNING} if wait else {
            RunState.RUNNING,
            RunState.STATS_UNREACHABLE,
            RunState.UNKNOWN,
        }  # fmt: skip
        for pod in self.pods.values():
            is_good = (
                state is not None
                and self.digest_of(pod) == state.target.digest
                and pod.run in good
                and not pod.failures
                and pod.candidate.ready
            )
            if not is_good:
                pod.healthy_since = None
            elif pod.healthy_since is None:
                pod.healthy_since = self.true

    # What must hold.

    def judge(
        self, before: RolloutStatus | None, state: RolloutStatus, observation: Observation
    ) -> None:
        """Whether this write of the status may follow the one before."""
        is_begin = state.phase is RolloutPhase.PROGRESSING and state.step == 1
        key = (state.target.generation, state.target.digest)
        stored = self.read()
        is_same_step = (
            stored is not None
            and stored.target == state.target
            and stored.step == state.step
            and stored.phase in IN_PROGRESS
            and stored.started == state.started
        )
        if state.phase in IN_PROGRESS and not is_same_step and state.reason != "StableLost":
            if is_begin:
                assert key not in self.refused or self.was_asked_to_retry(stored, observation)
                self.refused.discard(key)
                stable = state.stable.digest if state.stable is not UNSET else ""
                assert stable in self.proven, (
                    "an abort would go back to a filter that is not proven"
                )
                self.attempt = Attempt(state.target, before=self.stored.envoyfilter)
            self.judge_step(state)
        if state.phase is RolloutPhase.SUCCEEDED:
            if stored is not None:
                self.judge_success(stored, state, observation)
            self.proven.add(state.target.digest)
        if state.phase is RolloutPhase.ABORTED:
            self.refused.add(key)
            self.attempt = None

    def was_asked_to_retry(self, stored: RolloutStatus | None, seen: Observation) -> bool:
        if stored is None:
            return False
        is_command = seen.command.startswith("retry") and seen.command != stored.command
        return is_command or (seen.refresh != "" and seen.refresh != stored.refresh)

    def judge_step(self, state: RolloutStatus) -> None:
        """A step begins: every step between was one that adds no Pod, and the one before was proven."""
        attempt = self.attempt
        assert attempt is not None
        steps = self.spec_rollout().steps
        if attempt.step:
            assert state.step > attempt.step, "a step was repeated"
            self.judge_proof()
        members = sum(self.digest_of(pod) == attempt.target.digest for pod in self.pods.values())
        if attempt.step == 0:
            members = 0  # the Pods of an attempt before
        for skipped in steps[attempt.step : state.step - 1]:
            assert rolloutsteps.size(skipped, len(self.pods)) <= members, "a step was skipped"
        attempt.step, attempt.began = state.step, self.true
        attempt.names = state.step < state.steps and not state.groups
        is_last = state.step == len(steps) + 1
        attempt.allowed = (
            len(self.pods) if is_last else rolloutsteps.size(steps[state.step - 1], len(self.pods))
        )

    def judge_proof(self) -> None:
        """Every ready Pod with the target was healthy for the pause, in true time, at each look."""
        attempt = self.attempt
        assert attempt is not None
        pause = parse_duration(self.rollout["pause"])
        for pod in self.pods.values():
            if self.digest_of(pod) != attempt.target.digest or not pod.candidate.ready:
                continue
            assert pod.healthy_since is not None, "a step passed without proof"
            is_new = not attempt.names and pod.ready_since >= attempt.began
            assert is_new or self.true - pod.healthy_since >= pause, "a step passed too early"

    def judge_success(
        self, stored: RolloutStatus, state: RolloutStatus, observation: Observation
    ) -> None:
        is_promoted = observation.command.startswith("promote") and stored.command != state.command
        was_in_place = state.step == 0 or stored.phase is RolloutPhase.SUCCEEDED
        if is_promoted or was_in_place:
            self.attempt = None
            return
        assert stored.phase in IN_PROGRESS
        self.judge_proof()
        target = state.target.digest
        without = [pod for pod in self.pods.values() if self.digest_of(pod) != target]
        assert stored.step == stored.steps or not without, "the last step was skipped"
        self.attempt = None

    @invariant()
    def check(self) -> None:
        if not hasattr(self, "stored"):
            return
        state = self.read()
        has = {pod.candidate.uid: self.digest_of(pod) for pod in self.pods.values()}
        if state is None:
            return
        target_digest = state.target.digest
        with_target = sum(digest == target_digest for digest in has.values())
        stable = state.stable.digest if state.stable is not UNSET else ""
        is_staged = state.phase in IN_PROGRESS and state.step < state.steps
        attempt = self.attempt
        if attempt is None or self.stored.envoyfilter is attempt.before or state.groups:
            is_staged = False
        if is_staged and attempt is not None:
            assert with_target <= attempt.allowed, "more Pods than the step allows"
            assert len(state.pods) <= attempt.allowed
        if stable or (state.phase is RolloutPhase.SUCCEEDED and self.published(state)):
            assert "" not in has.values() or not self.stored.envoyfilter, "a Pod has no filter"
        if state.phase is RolloutPhase.ABORTED and self.published(state):
            assert set(has.values()) <= {stable}
        assert len(state.pods) + len(state.groups) <= MAX_STAGED

    def published(self, state: RolloutStatus) -> bool:
        return self.document_of(state) == self.stored.envoyfilter

    def teardown(self) -> None:
        """In the end, with Pods that are good, every rollout ends unless a person stopped it."""
        if not hasattr(self, "stored"):
            return
        self.make_all_pods_good()
        self.memory = Memory(self.true)
        for _ in range(80):
            self.true += 2.0
            self.look(None, knows_pods=True, is_stored=True)
            self.check()
        state = self.read()
        assert state is not None
        if state.phase is RolloutPhase.PROGRESSING:
            raise AssertionError(f"never ends: {state}")
        if state.phase is RolloutPhase.SUCCEEDED:
            digests = {self.digest_of(pod) for pod in self.pods.values()}
            assert digests <= {self.spec_variant().digest}


TestRollouts = Rollouts.TestCase
