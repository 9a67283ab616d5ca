"""The text of `wasmc rollout`, in each state of a rollout and at each size of a terminal."""

import itertools

import msgspec
import pytest
from msgspec import UNSET

from autowasm.api.envoyfilter import Variant
from autowasm.api.staged import Variants
from autowasm.api.status import (
    Module,
    PodRequests,
    RolloutPhase,
    RolloutStatus,
    RolloutVariant,
    StagedPod,
)
from autowasm.cli import rollouttext
from autowasm.cli.stdio import UNWRAPPED
from tests.fakes import rollouts
from tests.fakes.rollouts import (
    ABORTED,
    BEGUN,
    FAILED,
    FIRST,
    HEALTHY,
    LARGE,
    LOST,
    NEW,
    OLD,
    PAUSED,
    STATES,
    SUCCEEDED,
    WAITING,
    view,
)
from tests.parts.explained import RECORD, SHA256

each_state = pytest.mark.parametrize("rollout", STATES.values(), ids=STATES)


def shown(rollout: RolloutStatus | None, **fields: object) -> str:
    return rollouttext.block(view(rollout), width=80, **fields)  # type: ignore[arg-type]


@each_state
@pytest.mark.parametrize("generation", [7, 8])
def test_a_block_fits_the_terminal(rollout: RolloutStatus, generation: int) -> None:
    given = view(rollout, generation=generation)
    for width, height in itertools.product((10, 40, 79, 80, 200), (1, 10, 16, 24, 60)):
        lines = rollouttext.block(given, width=width, height=height).splitlines()
        assert max(map(len, lines)) <= max(40, min(width, 80))
        assert len(lines) <= max(10, min(height, 24))
        assert all(line.isprintable() for line in lines)


@each_state
def test_a_low_terminal_still_has_phase_step_and_message(rollout: RolloutStatus) -> None:
    found = rollouttext.block(view(rollout), width=80, height=10)
    assert rollout.phase.value in found
    if rollout.message and rollout is not PAUSED:
        assert rollout.message[:20] in found.replace("\n", " ")


@each_state
def test_in_a_pipe_nothing_is_broken_or_left_out(rollout: RolloutStatus) -> None:
    lines = rollouttext.block(view(rollout), width=UNWRAPPED).splitlines()
    assert "…" not in "".join(lines)
    assert all(line.isprintable() for line in lines)
    listed = [line for line in lines if line.startswith(("  Pods ", "  Workloads "))]
    names = [*rollout.pods, *rollout.groups]
    assert len(listed) == bool(rollout.pods) + bool(rollout.groups)
    assert [one.name for one in names if one.name not in "".join(listed)] == []
    if rollout.phase is not RolloutPhase.SUCCEEDED:
        steps = [line for line in lines if line.startswith("  step ")]
        assert [int(line.split()[1]) for line in steps] == [*range(1, rollout.steps + 1)]


def test_a_waiting_step_names_its_reason() -> None:
    assert shown(WAITING).splitlines() == [
        "AutoWasm team/hello: Progressing, step 2 of 4, generation 7",
        "",
        "  step 1   1 Pod     passed",
        "  step 2   10%       1 of 2 Pods proven",
        "  step 3   50%",
        "  step 4   all Pods",
        "",
        "  new         registry.example/team/hello:v2, filter 1f0c44a0b1d3e2f4",
        "              2 of 1204 requests failed (0.17%)",
        "  previous    registry.example/team/hello:v1, filter 77aa44a0b1d3e2f4",
        "              9 of 9820 requests failed (0.09%), so the limit is 1.09%",
        "  each Pod      0.33%     2 of 604      hello-7d4c9b8f6-x1",
        "                0.00%     0 of 600      hello-7d4c9b8f6-x0",
        "  Pods        2 of 12: hello-7d4c9b8f6-x0, hello-7d4c9b8f6-x1",
        "  unhealthy   for 12s, aborts after 10m",
        "",
        "NotAccepted: Envoy of Pod team/hello-7d4c9b8f6-x1 has not accepted the new",
        "filter yet",
    ]


def test_of_many_pods_those_with_the_most_failures_are_shown() -> None:
    assert WAITING.verdict is not UNSET
    many = tuple(PodRequests(f"team/p{n}", 100, 10 - n) for n in range(10))
    pods = tuple(StagedPod("team", f"p{n}", str(n)) for n in range(200))
    verdict = msgspec.structs.replace(WAITING.verdict, pods=200, per_pod=many)
    rollout = msgspec.structs.replace(WAITING, pods=pods, verdict=verdict)
    rows = [line for line in shown(rollout).splitlines() if " of 100 " in line]
    assert [row.split()[-1] for row in rows] in (
        [f"p{n}" for n in range(most)] for most in (2, 3, 5)
    )
    assert rows[0].startswith("  worst Pods   10.00%")
    piped = rollouttext.block(view(rollout), width=UNWRAPPED)
    assert piped.count(" of 100 ") == 10
    one = msgspec.structs.replace(verdict, pods=1, per_pod=many[:1])
    alone = msgspec.structs.replace(rollout, pods=pods[:1], verdict=one)
    assert "each Pod" not in shown(alone), "its requests are those of the new filter"
    unread = (PodRequests("team/p0"), PodRequests("team/p1"))
    none = msgspec.structs.replace(verdict, pods=2, per_pod=unread)
    text = shown(msgspec.structs.replace(rollout, pods=pods[:2], verdict=none))
    assert "  each Pod          -     0 of 0        p0" in text


def test_time_goes_on_between_two_reports_up_to_its_end() -> None:
    assert "  healthy     for 5s, must stay so for 30s" in shown(HEALTHY)
    assert "  healthy     for 12s, must stay so for 30s" in shown(HEALTHY, ahead=7.9)
    assert "  healthy     for 30s, must stay so for 30s" in shown(HEALTHY, ahead=500.0)
    assert "  unhealthy   for 12s, aborts after 10m" in shown(HEALTHY, ahead=500.0)
    assert "  unhealthy   for 14s, aborts after 10m" in shown(WAITING, ahead=2.0)
    assert shown(PAUSED) == shown(PAUSED, ahead=60.0)


def test_text_explains_that_pods_with_few_requests_pass_by_time() -> None:
    sentence = "for Pods with few requests or no statistics, only the time counts"
    assert sentence in shown(HEALTHY)
    assert sentence not in shown(WAITING)


def test_the_limit_is_reported_only_if_the_status_has_all_of_it() -> None:
    assert WAITING.verdict is not UNSET
    few = msgspec.structs.replace(WAITING.verdict, stable_requests=99)
    assert "limit" not in shown(msgspec.structs.replace(WAITING, verdict=few))
    assert "9 of 99 requests failed (9.09%)" in shown(msgspec.structs.replace(WAITING, verdict=few))


def test_a_failed_rollout_has_pod_figures_and_the_way_on() -> None:
    text = " ".join(shown(FAILED).split())
    assert "AutoWasm team/hello: Aborted, step 2 of 4, generation 7" in text
    assert "step 2 10% aborted here" in text
    assert "3 of 104 requests failed (2.88%)" in text
    assert "FailureRatio: step 2 of 4: Pod team/hello-7d4c9b8f6-x1 failed 3 of 104 requests" in text
    assert "try the same again: wasmc rollout retry hello -n team" in text


def test_a_paused_rollout_names_the_commands() -> None:
    text = " ".join(shown(PAUSED).split())
    assert "step 2 10% 1 of 2 Pods proven, paused" in text
    assert "wasmc rollout resume hello -n team" in text
    assert "wasmc rollout abort hello -n team" in text
    assert "wasmc rollout promote hello -n team" in " ".join(shown(LOST).split())
    assert "resume" not in shown(LOST)


def test_a_first_filter_has_no_previous_one() -> None:
    assert "  previous    no filter" in shown(FIRST)
    assert "no filter" not in shown(SUCCEEDED)


def test_of_many_steps_those_around_the_current_one_are_shown() -> None:
    lines = [line for line in shown(LARGE).splitlines() if line.startswith("  step ")]
    assert [int(line.split()[1]) for line in lines] in (
        [*range(8, 15)],
        [*range(9, 14)],
        [10, 11, 12],
    )
    assert lines[0].endswith("…")
    assert lines[-1].endswith("…")


def test_steps_of_another_spec_have_no_sizes() -> None:
    text = rollouttext.block(view(WAITING, generation=8), width=80)
    assert " ".join(text.split()).startswith(
        "AutoWasm team/hello: the rollout of generation 8 has not begun (Synced: published)"
    )
    assert "generation 7" in text
    assert "10%" not in text
    assert "wasmc rollout retry" not in rollouttext.block(view(FAILED, generation=8), width=80)


def test_before_the_first_rollout_the_phase_of_the_object_is_reported() -> None:
    assert " ".join(shown(None).split()) == (
        "AutoWasm team/hello: the rollout of generation 7 has not begun (Synced: published)"
    )


def test_a_terminal_gets_colours_only_when_asked() -> None:
    assert "\x1b" not in shown(FAILED)
    assert shown(FAILED, colour=True).startswith("AutoWasm team/hello: \x1b[31mAborted\x1b[0m,")


def test_lines_for_pipes_change_with_events_not_with_figures() -> None:
    line = rollouttext.line(view(WAITING))
    assert line == (
        "Progressing: step 2 of 4: NotAccepted: Envoy of Pod team/hello-7d4c9b8f6-x1 has not accepted the new filter yet "
        "(1 of 2 Pods proven)"
    )
    assert WAITING.verdict is not UNSET
    later = msgspec.structs.replace(
        WAITING,
        waited_seconds=20.0,
        time="2026-11-28T04:02:00.000Z",
        verdict=msgspec.structs.replace(WAITING.verdict, requests=3000),
    )
    assert rollouttext.line(view(later)) == line
    assert rollouttext.line(view(HEALTHY)) != line


@pytest.mark.parametrize(
    ("rollout", "line"),
    [
        (BEGUN, "Progressing: NotPublished: step 2 of 4: 2 of 12 Pods have the new filter"),
        (HEALTHY, "Progressing: step 2 of 4 is healthy, and must stay so for 30s (2 of 2 Pods proven)"),
        (PAUSED, "Paused in step 2 of 4"),
        (ABORTED, "Aborted: AbortedByCommand: step 2 of 4: aborted by command; all Pods have the previous filter"),
        (SUCCEEDED, f"Succeeded: all Pods have the new filter ({NEW})"),
        (None, "the rollout of generation 7 has not begun (Synced: published)"),
    ],
)  # fmt: skip
def test_each_state_has_one_line(rollout: RolloutStatus | None, line: str) -> None:
    assert rollouttext.line(view(rollout)) == line


@each_state
def test_a_line_is_one_line(rollout: RolloutStatus) -> None:
    assert rollouttext.line(view(rollout)).isprintable()


@pytest.mark.parametrize(
    ("verb", "rollout", "says"),
    [
        ("pause", PAUSED, ["paused in step 2 of 4", "wasmc rollout resume hello -n team"]),
        ("resume", WAITING, ["continues in step 2 of 4", "wasmc rollout status hello -n team -w"]),
        ("promote", SUCCEEDED, ["all Pods get the new filter now", "wasmc rollout history"]),
        ("abort", ABORTED, ["all Pods get the previous filter", "wasmc rollout retry hello"]),
        (
            "abort",
            msgspec.structs.replace(ABORTED, stable=UNSET),
            ["all Pods get no filter"],
        ),
        ("retry", FIRST, ["begins again: step 1 of 4", "wasmc rollout status hello -n team -w"]),
    ],
)
def test_message_of_a_command_states_what_happens_next(
    verb: str, rollout: RolloutStatus, says: list[str]
) -> None:
    text = rollouttext.done(verb, view(rollout))
    assert [each for each in says if each not in text] == []


def test_history_has_each_filter_once_and_the_modules() -> None:
    modules = tuple(
        Module.of(
            msgspec.structs.replace(RECORD, source=f"registry:registry.example/a:{tag}"), time
        )
        for tag, time in (("v2", "2026-11-28T04:00:00Z"), ("v1", ""))
    )
    live = Variants(
        base=Variant(sha256=SHA256, vm_id="a"), override=Variant(sha256=SHA256, vm_id="b")
    )
    text = rollouttext.history(view(FAILED, history=modules), live, width=80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    filters = [line for line in lines if line[:16].strip().isalnum() and len(line.split()[0]) == 16]
    assert [line.split()[0] for line in filters] == [
        NEW,
        OLD,
        "9b" * 8,
        live.base.digest if live.base else "",
        live.override.digest if live.override else "",
    ]
    assert filters[0].endswith("new: aborted")
    assert filters[1].endswith("previous: all Pods have it")
    assert filters[2].endswith("aborted")
    assert filters[3].endswith("in the EnvoyFilter")
    assert "aaaaaaaaaaaa  2026-11-28T04:00:00Z  registry.example/a:v2" in lines
    assert "aaaaaaaaaaaa  ?                     registry.example/a:v1" in lines


def test_history_takes_the_module_from_the_envoyfilter_where_the_status_has_none() -> None:
    variant = Variant(sha256=SHA256, vm_id="a")
    rollout = msgspec.structs.replace(FAILED, aborted=(RolloutVariant(variant.digest, 7),))
    text = rollouttext.history(view(rollout), Variants(base=variant), width=80)
    row = next(line for line in text.splitlines() if line.startswith(variant.digest))
    assert row.split()[1:] == ["7", SHA256[:12], "aborted"]


def test_history_in_a_pipe_has_whole_digests_and_a_line_for_each_row() -> None:
    module = Module.of(msgspec.structs.replace(RECORD, source=f"object:https://{'x' * 300}"), "")
    text = rollouttext.history(view(FAILED, history=(module,)), None, width=UNWRAPPED)
    rows = [line.split() for line in text.splitlines()]
    assert [NEW, "7", SHA256, "new:", "aborted"] in rows
    assert [SHA256, "?", f"https://{'x' * 300}"] in rows
    columns = [line.index("STATE") for line in text.splitlines() if line.startswith("FILTER")]
    assert columns == [line.index("new:") for line in text.splitlines() if "new:" in line]


@each_state
@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_history_fits_the_terminal(rollout: RolloutStatus, width: int) -> None:
    module = rollouts.BEGUN.target.module
    assert module is not UNSET
    long = msgspec.structs.replace(
        module, source=f"object:https://example.com/{'x' * 300}?secret=1"
    )
    text = rollouttext.history(view(rollout, history=(long,)), None, width=width)
    assert max(map(len, text.splitlines())) <= max(40, min(width, 80))
    assert "secret" not in text
