"""The commands of `wasmc rollout`, against the state machine that carries them out."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from autowasm.api.status import RolloutPhase, RolloutStatus
from autowasm.cli import rolloutview
from autowasm.cli.rolloutview import Outcome, view_of
from autowasm.controller.rollout.observation import Command
from autowasm.controller.rollout.statemachine import advance
from autowasm.errors import AutoWasmError, UsageError
from tests.fakes.rollouts import (
    ABORTED,
    BEGUN,
    FAILED,
    KEY,
    LOST,
    PAUSED,
    SUCCEEDED,
    WAITING,
    status,
    view,
)
from tests.unit.controller.rollout import states

TIME = datetime(2026, 11, 28, 4, 42, 1, 5000, UTC)
VERBS = ("pause", "resume", "promote", "abort", "retry")


def test_a_value_is_a_command_for_one_generation_and_never_equal_to_another() -> None:
    value = rolloutview.command_value("pause", generation=7, now=TIME)
    assert value == "pause@7 2026-11-28T04:42:01.005Z"
    assert Command.parse(value) == Command("pause", 7)
    later = rolloutview.command_value("pause", generation=7, now=TIME + timedelta(milliseconds=1))
    assert later != value


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("phase", list(RolloutPhase))
def test_a_command_is_allowed_only_where_it_changes_the_state_machine(
    verb: str, phase: RolloutPhase
) -> None:
    """The table of the state machine decides, not a copy of it."""
    given = rolloutview.command_value(verb, generation=7, now=TIME)
    fields = {} if phase is not RolloutPhase.ABORTED else {"aborted": (states.variant(),)}
    before = states.state(phase, **fields)
    after, _ = advance(before, states.observation(command=given), states.SPEC, states.NOW)
    assert after is not None
    changes = after.phase is not phase
    try:
        rolloutview.check_command(verb, view(before))
    except AutoWasmError:
        assert not changes
    else:
        assert changes
        rolloutview.check_result(verb, view(after))
        assert rolloutview.is_handled(given, view(after, command=given))


@pytest.mark.parametrize(
    ("verb", "rollout", "says"),
    [
        ("resume", WAITING, "is Progressing, so resume changes nothing; possible now: pause, promote, abort"),
        ("pause", SUCCEEDED, "with the annotation wasm.tcm.io/rollout: pause, it waits in its first step"),
        ("abort", FAILED, "is Aborted, so abort changes nothing; possible now: promote, retry"),
        ("resume", LOST, "resume cannot help: the EnvoyFilter no longer has the previous filter"),
        ("pause", None, "the rollout has not begun (Synced: published)"),
    ],
)  # fmt: skip
def test_a_command_that_changes_nothing_is_refused_with_those_that_do(
    verb: str, rollout: RolloutStatus | None, says: str
) -> None:
    with pytest.raises(AutoWasmError) as raised:
        rolloutview.check_command(verb, view(rollout))
    assert says in str(raised.value)


@pytest.mark.parametrize("verb", ["promote", "retry"])
def test_a_command_for_a_spec_whose_rollout_has_not_begun_is_refused(verb: str) -> None:
    with pytest.raises(
        AutoWasmError, match="the rollout is of generation 7, the spec has generation 8"
    ):
        rolloutview.check_command(verb, view(FAILED, generation=8))
    assert rolloutview.check_command("abort", view(WAITING, generation=8)) is WAITING


def test_a_lost_stable_filter_still_allows_promotion() -> None:
    assert rolloutview.check_command("promote", view(LOST, generation=8)) is LOST


def test_a_command_is_waited_for_until_wasmer_has_read_it() -> None:
    value = rolloutview.command_value("pause", generation=7, now=TIME)
    assert not rolloutview.is_handled(value, view(WAITING, command=value))
    handled = msgspec.structs.replace(PAUSED, command=value)
    assert rolloutview.is_handled(value, view(handled, command=value))
    assert rolloutview.is_handled(value, view(handled, command="abort@7"))
    with pytest.raises(AutoWasmError, match="another command has replaced this one: abort@7"):
        rolloutview.is_handled(value, view(WAITING, command="abort@7"))


def test_a_command_that_came_too_late_is_a_failure() -> None:
    with pytest.raises(
        AutoWasmError, match=r"pause was not carried out.*it is Aborted: step 2 of 4"
    ):
        rolloutview.check_result("pause", view(FAILED))
    rolloutview.check_result("abort", view(ABORTED))


@pytest.mark.parametrize(
    ("rollout", "generation", "outcome"),
    [
        (BEGUN, 7, Outcome.IN_PROGRESS),
        (PAUSED, 7, Outcome.IN_PROGRESS),
        (SUCCEEDED, 7, Outcome.SUCCEEDED),
        (FAILED, 7, Outcome.ABORTED),
        (SUCCEEDED, 8, Outcome.IN_PROGRESS),
        (FAILED, 8, Outcome.IN_PROGRESS),
        (None, 7, Outcome.IN_PROGRESS),
    ],
)
def test_only_the_rollout_of_the_spec_counts(
    rollout: RolloutStatus | None, generation: int, outcome: Outcome
) -> None:
    assert view(rollout, generation=generation).outcome is outcome


def test_an_object_is_read_with_its_annotation_and_its_default_steps() -> None:
    document = {
        "apiVersion": "wasm.tcm.io/v1alpha1",
        "kind": "AutoWasm",
        "metadata": {
            "name": "hello",
            "namespace": "team",
            "generation": 7,
            "annotations": {"wasm.tcm.io/rollout": "pause"},
        },
        "spec": {
            "filter": {"source": {"registry": {"image": "registry.example/team/hello:v2"}}},
            "selector": {"matchLabels": {"app": "hello"}},
            "rollout": {},
        },
        "status": status(WAITING).to_dict(),
    }
    found = view_of(KEY, document)
    assert found == view(WAITING, command="pause")
    assert found.pods == 12
    del document["status"]
    assert view_of(KEY, document).rollout is None


def test_an_object_without_a_staged_rollout_is_a_usage_error() -> None:
    document = {"metadata": {"generation": 1}, "spec": {}}
    with pytest.raises(
        UsageError,
        match=r"AutoWasm team/hello has no spec\.rollout: a changed filter reaches all Pods",
    ):
        view_of(KEY, document)
    # An operator's default: the spec has none, and there is a rollout all the same.
    assert view_of(KEY, {**document, "status": status(WAITING).to_dict()}).rollout == WAITING
