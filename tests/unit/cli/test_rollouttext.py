"""What `wasmc rollout` prints."""

from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from autowasm.api.status import (
    Module,
    RolloutPhase,
    RolloutStatus,
    RolloutVariant,
    RolloutVerdict,
    StagedGroup,
    StagedPod,
    Status,
    StepUnit,
)
from autowasm.cli import rollout, rollouttext
from autowasm.cli.rollouttext import Shown
from tests.fakes.autowasms import autowasm, record

MODULE = Module.of(record(sha256="b" * 64), "2026-01-02T03:04:05Z")
OLD = Module.of(record(image="registry.example/team/filter:v0"), "2026-01-01T00:00:00Z")
STATE = RolloutStatus(
    phase=RolloutPhase.PROGRESSING,
    target=RolloutVariant("0123456789abcdef", 7, MODULE),
    stable=RolloutVariant("fedcba9876543210", 6, OLD),
    step=2,
    steps=4,
    size=3,
    pods=tuple(StagedPod("default", f"details-{n}", f"uid-{n}") for n in range(3)),
    healthy_seconds=12.4,
    waited_seconds=3.0,
    reason="NotAccepted",
    message="Envoy of Pod default/details-1 has not accepted the new filter yet",
    verdict=RolloutVerdict(
        pods=3, proven=2, requests=200, failures=3, stable_requests=1000, stable_failures=1
    ),
)


def shown(state: RolloutStatus | None = STATE, *, generation: int = 7, **fields: Any) -> Shown:
    if state is not None:
        state = msgspec.structs.replace(state, **fields)
    status = Status(
        rollout=state if state is not None else UNSET, module=MODULE, history=(MODULE, OLD)
    )
    return Shown("default/test", autowasm(spec={"rollout": {}}), status, generation)


def text(one: Shown, width: int = 80) -> str:
    return "\n".join(rollouttext.view(one, width=width, colour=False))


def test_view_tells_step_pods_figures_and_what_it_waits_for() -> None:
    assert text(shown()) == (
        "default/test: step 2 of 4, Progressing, 2 of 3 Pods proven\n"
        "  new         sha256:bbbbbbbbbbbb of registry.example/team/filter:v1\n"
        "              (0123456789abcdef, generation 7)\n"
        "  previous    sha256:aaaaaaaaaaaa of registry.example/team/filter:v0\n"
        "              (fedcba9876543210, generation 6)\n"
        "  steps       1  [10%]  50%  all\n"
        "  Pods        default/details-0, default/details-1, default/details-2\n"
        "  healthy     12s of 30s; not healthy 3s of 10m\n"
        "  proven      2 of 3 Pods\n"
        "  failed      3 of 200 requests (1.50%)\n"
        "  others      1 of 1000 requests (0.10%)\n"
        "  waits for   NotAccepted: Envoy of Pod default/details-1 has not accepted the\n"
        "              new filter yet"
    )


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    pods = tuple(StagedPod("n" * 63, f"{n:0253}", "u") for n in range(20))
    one = shown(pods=pods, message="x" * 3000)
    for line in rollouttext.view(one, width=width, colour=False):
        assert len(line) <= max(rollouttext.MIN_WIDTH, min(width, rollouttext.MAX_WIDTH))


def test_names_from_the_cluster_are_escaped() -> None:
    assert "\x1b" not in text(shown(message="\x1b[31m"))


@pytest.mark.parametrize(
    ("one", "headline", "status"),
    [
        (shown(), "default/test: step 2 of 4, Progressing, 2 of 3 Pods proven", None),
        (shown(phase=RolloutPhase.PAUSED), "default/test: step 2 of 4, Paused, 2 of 3", None),
        (shown(phase=RolloutPhase.SUCCEEDED), "default/test: rolled out to all Pods", 0),
        (shown(phase=RolloutPhase.ABORTED, message="why"), "default/test: aborted: why", 1),
        (shown(generation=8), "waiting for wasmer to begin the rollout of generation 8", None),
        (shown(generation=8, phase=RolloutPhase.ABORTED), "of generation 8", None),
        (shown(None), "default/test: no staged rollout yet", None),
    ],
)
def test_headline_and_exit_status_are_those_of_the_spec_as_it_is_now(
    one: Shown, headline: str, status: int | None
) -> None:
    assert headline in rollouttext.headline(one)
    assert rollout._exit_status(one) == status


def test_object_without_rollout_is_done_when_it_is_observed() -> None:
    one = Shown("default/test", autowasm(), Status(observed_generation=3), 3)
    assert rollout._exit_status(one) == 0
    assert rollout._exit_status(Shown("default/test", autowasm(), Status(), 3)) is None


def test_whole_nodes_and_many_pods_are_shortened() -> None:
    groups = tuple(StagedGroup(f"node-{n}") for n in range(12))
    pods = tuple(StagedPod("default", f"p-{n}", "u") for n in range(12))
    printed = " ".join(text(shown(groups=groups, by=StepUnit.NODE, pods=pods)).split())
    assert "Nodes node-0, node-1" in printed
    assert printed.count("and 4 more") == 2


def test_history_marks_the_module_in_place_and_names_aborted_filters() -> None:
    one = shown(phase=RolloutPhase.ABORTED, aborted=(RolloutVariant("0123456789abcdef", 7),))
    lines = rollouttext.history(one, width=80)
    assert lines[0].startswith("* 2026-01-02T03:04:05Z  sha256:bbbbbbbbbbbb  registry.example")
    assert lines[1].startswith("  2026-01-01T00:00:00Z  sha256:aaaaaaaaaaaa")
    assert lines[-1] == "  aborted: 0123456789abcdef, generation 7"
    assert rollouttext.history(Shown("a/b", None, Status(), 1), width=80) == [
        "no module was published yet"
    ]
