"""The state machine: each entry of its table, and the stories that people read in `status.rollout`."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from autowasm.api.status import (
    MAX_ABORTED,
    MAX_STAGED,
    RolloutPhase,
    RolloutStatus,
    StagedPod,
    Status,
)
from autowasm.controller.pods.runstate import RunState
from autowasm.controller.rollout.effects import Action, BeginCounts, LookAgain, RecordEvent
from autowasm.controller.rollout.guards import Facts
from autowasm.controller.rollout.observation import (
    Command,
    Figures,
    Observation,
    PodObservation,
)
from autowasm.controller.rollout.placement import Placement, placement
from autowasm.controller.rollout.statemachine import (
    EVENTS,
    PHASES,
    TABLE,
    Event,
    advance,
    event_of,
    is_worth_writing,
)
from tests.unit.controller.rollout.states import (
    NEW,
    NOW,
    OLD,
    OTHER,
    PODS,
    SPEC,
    observation,
    observed,
    state,
    variant,
)

PROGRESSING, PAUSED = RolloutPhase.PROGRESSING, RolloutPhase.PAUSED
SUCCEEDED, ABORTED = RolloutPhase.SUCCEEDED, RolloutPhase.ABORTED

ENTRIES = [
    (event, phase)
    for event, row in TABLE.items()
    for phase, transition in zip(PHASES, row, strict=True)
    if transition is not None
]


def state_and_observation(
    event: Event, phase: RolloutPhase | None
) -> tuple[RolloutStatus | None, Observation]:
    """A state in this phase, and an observation that means the event to it."""
    known = state(phase) if phase is not None else None
    if known is not None and phase is SUCCEEDED:
        known = msgspec.structs.replace(known, stable=UNSET)
    seen = observation()
    healthy = {"healthy_since": "x", "healthy_seconds": 60.0}
    match event:
        case Event.TARGET_IN_PLACE:
            seen = replace(seen, target=variant(NEW if phase is SUCCEEDED else OLD, 8))
        case Event.TARGET_ABORTED:
            known = change(known, aborted=(variant(OTHER), variant("x", 1)))
            seen = replace(seen, target=variant(OTHER))
        case Event.NEW_TARGET:
            seen = replace(seen, target=variant(OTHER, 8))
        case Event.ABORT | Event.PROMOTE | Event.PAUSE | Event.RESUME | Event.RETRY:
            seen = replace(seen, command=f"{event.name.lower()} 1")
        case Event.OTHER_COMMAND:
            seen = replace(seen, command="dance")
        case Event.STABLE_LOST if phase in {None, SUCCEEDED}:
            unreadable = replace(seen, base=None, is_readable=False, found=frozenset({OTHER}))
            seen = replace(unreadable, target=variant(OTHER, 8))
        case Event.STABLE_LOST:
            seen = replace(seen, found=frozenset({NEW}))
        case Event.POD_FAILED:
            seen = observation(observed(0, run=RunState.CRASHING))
        case Event.MEMBERS_CHANGED:
            seen = replace(seen, pods=seen.pods[1:] if seen.pods else None)
        case Event.OVERDUE:
            known = change(known, waited_seconds=58.0)
            seen = observation(observed(0, run=RunState.NOT_ACCEPTED))
        case Event.NOT_HEALTHY:
            seen = observation(observed(0, run=RunState.NOT_ACCEPTED))
        case Event.TARGET_PENDING:
            seen = replace(seen, target=None)
        case Event.LAST_STEP_PASSED:
            known = change(known, step=3, pods=(), **healthy)
            seen = replace(seen, watched=60.0)
        case Event.STEP_PASSED:
            known = change(known, **healthy)
            seen = replace(seen, watched=60.0)
        case _:
            pass
    return known, seen


def change(known: RolloutStatus | None, **fields: Any) -> RolloutStatus:
    assert known is not None
    return msgspec.structs.replace(known, **fields)


@pytest.mark.parametrize(("event", "phase"), ENTRIES, ids=str)
def test_each_event_leads_to_the_phase_of_the_table(
    event: Event, phase: RolloutPhase | None
) -> None:
    known, seen = state_and_observation(event, phase)
    look = Facts(known, seen, SPEC, NOW, 2.0)
    assert event_of(look) is event
    transition = TABLE[event][PHASES.index(phase)]
    after, _ = advance(known, seen, SPEC, NOW)
    assert after is not None
    assert transition is not None
    assert after.phase is transition.phase


def test_table_has_every_event_once_and_a_column_for_every_phase() -> None:
    assert [event for event, _ in EVENTS] == list(Event)
    assert list(TABLE) == list(Event)
    assert set(PHASES) == {None, *RolloutPhase}
    assert {len(row) for row in TABLE.values()} == {len(PHASES)}


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_happens_while_pods_are_not_listed(phase: RolloutPhase | None) -> None:
    known = state(phase) if phase is not None else None
    seen = observation(pods=None, target=variant(OTHER, 8), command="abort")
    after, actions = advance(known, seen, SPEC, NOW)
    assert actions == ()
    if known is None:
        assert after is None
    else:
        assert after is not None
        assert not is_worth_writing(known, after) or phase is PROGRESSING


class Story:
    """A rollout, look by look: every two seconds, with Pods that run what the state gives them."""

    def __init__(self, known: RolloutStatus | None, **fields: Any) -> None:
        self.state, self.fields, self.now = known, fields, NOW
        self.watched = 0.0
        self.pods: dict[int, dict[str, Any]] = {}
        self.actions: list[Action] = []
        self.published: Placement | None = None

    def look(self, times: int = 1, **fields: Any) -> RolloutStatus:
        for _ in range(times):
            self.now += 2.0
            self.watched += 2.0
            pods = tuple(self.pod(number) for number in range(len(PODS)))
            wanted = placement(self.state) if self.state is not None else None
            seen = observation(
                pods=pods,
                watched=self.watched,
                is_published=self.published == wanted,
                **{"refresh": "", **self.fields, **fields},
            )
            self.state, actions = advance(self.state, seen, SPEC, self.now)
            self.actions += actions
            if any(isinstance(one, BeginCounts) for one in actions):
                self.watched = 0.0
            assert self.state is not None
            self.published = placement(self.state)
        assert self.state is not None
        return self.state

    def pod(self, number: int) -> PodObservation:
        target = self.published.target if self.published is not None else ""
        names = self.published.proxies if self.published is not None else ()
        has = target and (names is None or PODS[number].name in {one["NAME"] for one in names})
        run = RunState.RUNNING if has else RunState.NOT_ACCEPTED
        return observed(number, **{"run": run, **(self.pods.get(number, {}) if has else {})})

    def events(self) -> list[str]:
        return [one.name for one in self.actions if isinstance(one, RecordEvent)]


def test_good_filter_passes_every_step_in_turn_and_each_after_its_pause() -> None:
    story = Story(None)
    seen = []
    for _ in range(40):
        known = story.look()
        seen.append((known.step, known.phase, len(known.pods)))
        if known.phase is SUCCEEDED:
            break
    ends = [max(n for n, (step, *_) in enumerate(seen) if step == number) for number in (1, 2)]
    assert [one for n, one in enumerate(seen) if n == 0 or one != seen[n - 1]] == [
        (1, PROGRESSING, 1),
        (2, PROGRESSING, 3),
        (3, PROGRESSING, 0),
        (3, SUCCEEDED, 0),
    ]
    # One look begins the step, one finds it healthy, and the fifth after that one, ten seconds later, passes it.
    assert ends == [5, 11]
    assert story.events() == ["RolloutStarted", "RolloutStep", "RolloutStep", "RolloutSucceeded"]
    assert placement(story.look()) == Placement(NEW)


def test_placement_of_each_step_is_stable_for_all_and_the_target_for_the_chosen() -> None:
    story = Story(None)
    first = story.look()
    assert placement(first) == Placement(
        OLD, NEW, ({"NAME": first.pods[0].name, "NAMESPACE": "default"},)
    )
    assert placement(state(step=3, pods=())) == Placement(OLD, NEW, None)
    assert placement(state(ABORTED)) == Placement(OLD)
    assert placement(state(stable=UNSET, pods=())) == Placement("", NEW, ())
    assert placement(state(ABORTED, stable=UNSET)) == Placement("")
    assert placement(state(PAUSED, reason="StableLost")) is None


def test_failing_canary_restores_the_stable_filter_with_the_reason() -> None:
    story = Story(None)
    chosen = int(story.look().pods[0].name[1:])
    story.look(2)
    story.pods[chosen] = {"figures": Figures(200, 40)}
    after = story.look()
    assert after.phase is ABORTED
    assert after.reason == "FailureRatio"
    assert after.message == (
        f"step 1 of 3: Pod default/p{chosen} failed 40 of 200 requests (20.00%), more than 1.00%; "
        "all Pods have the previous filter"
    )
    assert after.verdict is not UNSET
    assert (after.verdict.pod, after.verdict.failures) == (f"default/p{chosen}", 40)
    assert after.pods == ()
    assert placement(after) == Placement(OLD)
    assert story.events()[-1] == "RolloutFailed"
    assert story.look(50) == after, "nothing to write"


def test_aborted_filter_starts_again_on_request_only() -> None:
    aborted = state(ABORTED, aborted=(variant(),), pods=(), reason="Crashing")
    assert Story(aborted).look(20).phase is ABORTED
    for fields in (
        {"command": "retry"},
        {"refresh": "new"},
        {"target": variant(NEW, 8)},
        {"target": variant(OTHER, 7)},
    ):
        begun = Story(aborted, **fields).look()
        assert (begun.phase, begun.step, len(begun.pods)) == (PROGRESSING, 1, 1), fields
        assert begun.stable == aborted.stable


def test_refresh_during_a_rollout_does_not_retry_it_after_an_abort() -> None:
    story = Story(state(), refresh="new")
    story.published = placement(state())
    story.pods[0] = {"figures": Figures(200, 40)}
    assert story.look().phase is ABORTED
    assert story.look(5).phase is ABORTED


def test_tag_that_moves_back_to_an_aborted_module_is_not_tried_again() -> None:
    story = Story(state(ABORTED, aborted=(variant(),)))
    assert story.look(target=variant(OTHER)).phase is PROGRESSING
    assert story.look(target=variant(NEW)).phase is ABORTED
    assert story.look(target=variant(NEW, 8)).phase is PROGRESSING, "another generation is"


def test_aborted_filters_of_one_generation_are_bounded() -> None:
    known = state(aborted=tuple(variant(f"{n}") for n in range(MAX_ABORTED)))
    after, _ = advance(known, observation(command="abort"), SPEC, NOW)
    assert after is not None
    assert [one.digest for one in after.aborted] == [NEW, "0", "1", "2", "3"]
    begun, _ = advance(after, observation(target=variant(OTHER, 8)), SPEC, NOW)
    assert begun is not None
    assert begun.aborted == ()


def test_edit_during_a_rollout_begins_again_from_stable() -> None:
    story = Story(state(step=2, size=3, pods=tuple(one.pod for one in PODS[:3])))
    after = story.look(target=variant(OTHER, 8))
    assert (after.step, len(after.pods)) == (1, 1)
    assert after.stable == variant(OLD, 6)
    assert after.target == variant(OTHER, 8)


def test_edit_to_the_stable_filter_ends_the_rollout_of_the_target() -> None:
    after = Story(state()).look(target=variant(OLD, 8))
    assert placement(after) == Placement(OLD)
    assert after.phase is SUCCEEDED


def test_edit_that_keeps_the_variant_begins_no_rollout() -> None:
    done = state(SUCCEEDED, stable=UNSET, pods=())
    after, actions = advance(done, observation(target=variant(NEW, 8)), SPEC, NOW)
    assert actions == ()
    assert after is not None
    assert after.phase is SUCCEEDED
    assert after.target == variant(NEW, 8)


def test_filter_in_place_when_rollouts_are_switched_on_is_not_rolled_out() -> None:
    after, _ = advance(None, observation(target=variant(OLD, 7)), SPEC, NOW)
    assert after is not None
    assert (after.phase, placement(after)) == (SUCCEEDED, Placement(OLD))


def test_first_filter_is_introduced_in_steps_and_removed_by_an_abort() -> None:
    story = Story(None, base=None, found=frozenset({NEW}))
    first = story.look()
    assert first.stable is UNSET
    assert placement(first) == Placement(
        "", NEW, ({"NAME": first.pods[0].name, "NAMESPACE": "default"},)
    )
    aborted = story.look(command="abort")
    assert placement(aborted) == Placement("")
    assert aborted.message.endswith("no Pod has the filter")


def test_after_a_success_the_target_is_stable() -> None:
    done = state(SUCCEEDED, stable=UNSET, pods=())
    seen = observation(target=variant(OTHER, 8), found=frozenset({OLD, NEW, OTHER}))
    begun, _ = advance(done, seen, SPEC, NOW)
    assert begun is not None
    assert begun.stable == variant(NEW), "also if the EnvoyFilter still has the variant before it"


def test_deadline_counts_the_time_without_health_only() -> None:
    story = Story(None)
    chosen = int(story.look().pods[0].name[1:])
    story.pods[chosen] = {"candidate": replace(PODS[chosen], ready=False)}
    waiting = story.look(10)
    assert waiting.reason == "PodNotReady"
    assert waiting.waited_seconds == 20.0
    del story.pods[chosen]
    healthy = story.look(3)
    assert (healthy.reason, healthy.waited_seconds) == ("Pause", 20.0)
    story.pods[chosen] = {"candidate": replace(PODS[chosen], ready=False)}
    assert story.look(19).phase is PROGRESSING
    after = story.look()
    assert (after.phase, after.reason) == (ABORTED, "DeadlineExceeded")
    assert f"not healthy for 1m: Pod default/p{chosen} is not ready" in after.message


def test_pause_begins_anew_after_a_moment_without_health() -> None:
    story = Story(None)
    chosen = int(story.look().pods[0].name[1:])
    story.look(5)
    story.pods[chosen] = {"candidate": replace(PODS[chosen], ready=False)}
    assert story.look().healthy_since == ""
    del story.pods[chosen]
    assert story.look(5).step == 1
    assert story.look(1).step == 2


@pytest.mark.parametrize(("run", "ready"), [(RunState.RUNNING, False), (RunState.CRASHING, True)])
def test_ignored_command_hides_no_moment_without_health(run: RunState, ready: bool) -> None:
    story = Story(None)
    chosen = int(story.look().pods[0].name[1:])
    story.look(5)
    story.pods[chosen] = {"run": run, "candidate": replace(PODS[chosen], ready=ready)}
    ignored = story.look(command="pause@6")
    assert (ignored.phase, ignored.command, ignored.healthy_since) == (PROGRESSING, "pause@6", "")
    assert ignored.waited_seconds == 2.0
    del story.pods[chosen]
    assert story.look(5, command="pause@6").step == 1
    assert story.look(1, command="pause@6").step == 2


def test_ignored_command_keeps_the_watched_time_of_a_healthy_step() -> None:
    story = Story(None)
    story.look(5)
    before = story.look()
    ignored = story.look(command="pause@6")
    assert ignored.healthy_since == before.healthy_since != ""
    assert ignored.healthy_seconds == before.healthy_seconds


def test_a_step_passes_only_when_each_pod_was_read_after_the_pause() -> None:
    story = Story(None)
    chosen = int(story.look().pods[0].name[1:])
    story.look(2)
    story.pods[chosen] = {"age": 3.0}  # so many Pods are read that each is read seldom
    assert story.look(4).step == 1  # healthy for 10 s, of which the last reading proves 7
    story.pods[chosen] = {"age": 1.0}
    assert story.look(1).step == 2


def test_new_leader_watches_the_step_for_the_whole_pause() -> None:
    story = Story(None)
    story.look(6)
    story.watched = 0.0  # its counts are lost
    assert story.look(4).step == 1
    assert story.look(1).step == 2


@pytest.mark.parametrize("jump", [-86_400.0, -1.0, 30.0, 86_400.0])
def test_clock_that_is_set_neither_passes_nor_ends_a_step(jump: float) -> None:
    plain, set_ = Story(None), Story(None)
    for story in (plain, set_):
        story.look(3)
    set_.now += jump
    for _ in range(30):
        one, other = plain.look(), set_.look()
        assert (one.step, one.phase) == (other.step, other.phase)


def test_gap_between_two_leaders_counts_for_a_minute_at_most() -> None:
    known = state(waited_seconds=0.0)
    seen = observation(observed(0, run=RunState.NOT_ACCEPTED), elapsed=None)
    for pause, counted in ((24.0, 24.0), (3600.0, 60.0), (-3600.0, 0.0)):
        spec = msgspec.structs.replace(SPEC, deadline="1h")
        after, _ = advance(known, seen, spec, NOW - 2 + pause)
        assert after is not None
        assert after.waited_seconds == counted


def test_paused_rollout_keeps_pods_and_waited_time_until_resumed() -> None:
    story = Story(None)
    before = story.look(3)
    paused = story.look(command="pause")
    assert (paused.phase, paused.pods) == (PAUSED, before.pods)
    paused = story.look(100, command="pause")
    assert paused.waited_seconds == before.waited_seconds
    assert placement(paused) == placement(before)
    resumed = story.look(command="resume")
    assert (resumed.phase, resumed.step) == (PROGRESSING, 1)
    assert story.look(10, command="resume").step == 2


def test_paused_rollout_still_ends_if_a_pod_fails() -> None:
    story = Story(None, command="pause")
    chosen = int(story.look().pods[0].name[1:])
    assert story.look(2).phase is PAUSED
    story.pods[chosen] = {"figures": Figures(200, 100)}
    assert story.look().phase is ABORTED


def test_paused_rollout_stays_so_after_an_edit_with_the_first_step_in_place() -> None:
    story = Story(None, command="pause")
    story.look(3)
    after = story.look(2, target=variant(OTHER, 8))
    assert (after.phase, after.step, after.target.digest) == (PAUSED, 1, OTHER)


def test_pause_of_an_object_without_a_rollout_waits_for_the_next_one() -> None:
    story = Story(state(SUCCEEDED, stable=UNSET, pods=()), command="pause")
    assert story.look(3).phase is SUCCEEDED
    assert story.look(2, target=variant(OTHER, 8)).phase is PAUSED


def test_promotion_gives_all_pods_the_target_at_once() -> None:
    for known in (state(), state(PAUSED), state(ABORTED, aborted=(variant(),))):
        after = Story(known, command="promote").look()
        assert (after.phase, placement(after)) == (SUCCEEDED, Placement(NEW))
        assert after.aborted == ()


def test_command_is_carried_out_once_and_for_its_generation_only() -> None:
    story = Story(None, command="promote@6")
    assert story.look(3).phase is PROGRESSING
    assert story.look(command="abort@8").phase is PROGRESSING, "of another generation"
    assert story.look(command="abort@7 again").phase is ABORTED
    assert story.look(command="retry").phase is PROGRESSING
    assert story.look(3, command="retry").phase is PROGRESSING
    assert story.look(command="abort").phase is ABORTED
    assert story.look(3, command="retry").phase is PROGRESSING


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pause", Command("pause")),
        ("abort@12", Command("abort", 12)),
        ("retry 2026-11-25T10:00:00Z", Command("retry")),
        ("retry@3\nx", Command("retry", 3)),
        ("Pause", None),
        ("abort@", None),
        ("abort@x", None),
        ("", None),
    ],
)
def test_commands_are_a_verb_and_perhaps_a_generation(text: str, expected: Command | None) -> None:
    assert Command.parse(text) == expected


def test_command_that_is_older_than_the_first_rollout_gives_no_pod_a_filter() -> None:
    assert Story(None, command="promote").look(3).phase is PROGRESSING
    assert Story(None, command="abort").look(2).phase is ABORTED


def test_lost_stable_filter_stops_everything_until_a_person_decides() -> None:
    story = Story(state())
    lost = story.look(found=frozenset({NEW}))
    assert (lost.phase, lost.reason, placement(lost)) == (PAUSED, "StableLost", None)
    assert story.look(5, found=frozenset({NEW})).reason == "StableLost"
    promoted = story.look(found=frozenset({NEW}), command="promote")
    assert placement(promoted) == Placement(NEW)
    edited = Story(lost).look(target=variant(OTHER, 8), base=variant("edited", 0))
    assert edited.stable == variant("edited", 0), "what is in place is what can be kept"


def test_step_is_proven_again_after_its_stable_filter_was_lost_and_restored() -> None:
    story = Story(None)
    story.look(6)
    lost = story.look(found=frozenset({NEW}))
    assert (lost.reason, lost.healthy_since, lost.healthy_seconds) == ("StableLost", "", 0.0)
    assert story.look(3).phase is PAUSED
    story.look(command="resume")
    assert story.look(5, command="resume").step == 1
    assert story.look(1, command="resume").step == 2


def test_gone_pod_of_a_step_is_replaced_and_the_step_is_proven_again() -> None:
    story = Story(None)
    before = story.look(5)
    number = int(before.pods[0].name[1:])
    others = tuple(one for n, one in enumerate(observation().pods or ()) if n != number)
    after, _ = advance(before, observation(pods=others, watched=60.0), SPEC, story.now)
    assert after is not None
    assert len(after.pods) == 1
    assert after.pods != before.pods
    assert (after.placed_seconds, after.healthy_seconds, after.step) == (0.0, 0.0, 1)


def test_step_does_not_grow_with_the_workload_but_shrinks() -> None:
    known = state(step=2, size=2, pods=tuple(one.pod for one in PODS[:2]))
    assert Story(known).look().size == 2
    few = tuple(observed(number) for number in range(2))
    after, _ = advance(known, observation(pods=few), SPEC, NOW)
    assert after is not None
    assert len(after.pods) == 2, "what was chosen stays chosen"


def test_steps_that_add_no_pod_are_passed_over() -> None:
    spec = msgspec.structs.replace(SPEC, steps=(3, "10%", "50%", 4))
    known = state(steps=5, size=3, pods=tuple(one.pod for one in PODS[:3]))
    known = msgspec.structs.replace(known, healthy_since="x", healthy_seconds=60.0)
    after, _ = advance(known, observation(watched=60.0), spec, NOW)
    assert after is not None
    assert (after.step, after.size) == (4, 4)


def test_limit_of_names_is_reported() -> None:
    begun, actions = advance(None, observation(capacity=0), SPEC, NOW)
    assert begun is not None
    assert "0 of 6 Pods have the new filter instead of 1" in begun.message
    nodes = msgspec.structs.replace(state(), healthy_since="x", healthy_seconds=60.0)
    whole = replace(observation(watched=60.0), capacity=1)
    after, actions = advance(nodes, whole, SPEC, NOW)
    assert after is not None
    assert any("because one EnvoyFilter cannot hold" in one.message for one in actions if isinstance(one, RecordEvent))  # fmt: skip


def test_each_advance_schedules_the_next_check_unless_final() -> None:
    for known in (state(), state(PAUSED)):
        _, actions = advance(known, observation(), SPEC, NOW)
        assert [type(one) for one in actions] == [LookAgain]
    for known in (state(SUCCEEDED, stable=UNSET), state(ABORTED)):
        assert advance(known, observation(), SPEC, NOW)[1] == ()


def test_spec_with_other_steps_makes_a_state_of_the_same_generation_unusable() -> None:
    """Any client may write a status."""
    for bad in (state(step=0), state(step=4), state(steps=9, step=7)):
        after, _ = advance(bad, observation(), SPEC, NOW)
        assert after is not None
        assert (after.step, after.steps) == (1, 3)


def test_state_is_written_before_anything_changes_and_its_figures_now_and_then() -> None:
    known = state()
    assert is_worth_writing(None, known)
    assert not is_worth_writing(None, None)
    later = {"placed_seconds": 9.0, "waited_seconds": 9.0, "healthy_seconds": 9.0, "message": "x"}
    assert not is_worth_writing(known, change(known, **later))
    old = "2020-01-01T00:00:00.000Z"
    assert is_worth_writing(change(known, time=old), known)
    done = change(known, phase=SUCCEEDED)
    assert not is_worth_writing(change(done, time=old), done)
    for lasting in ({"reason": "Pause"}, {"step": 2}, {"pods": ()}, {"command": "pause"}):
        assert is_worth_writing(known, change(known, **lasting))


def test_status_with_the_most_pods_stays_small() -> None:
    pods = tuple(StagedPod("n" * 63, f"{n:0253}", "u" * 36) for n in range(MAX_STAGED))
    status = Status(rollout=state(pods=pods)).to_dict()
    assert len(json.dumps(status)) < 250_000
    assert msgspec.convert(status, Status).rollout == state(pods=pods)
