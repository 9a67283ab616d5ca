"""StartCheck: what is judged, what the verdict leads to in each mode, and what the status keeps."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import validation
from autowasm.api.record import Record
from autowasm.api.status import ConditionType, Preflight, Status, with_condition
from autowasm.api.v1alpha1 import PREFLIGHT_ANNOTATION, AutoWasm
from autowasm.controller.reconcilecontext import ReconcileContext
from autowasm.controller.startcheck import (
    StartCheck,
    StartDecision,
    StartPending,
    mode_of,
)
from autowasm.digest import Sha256Hex
from autowasm.errors import SpecError
from autowasm.kube.resources import ObjectKey
from autowasm.preflight.messages import NoVerdictReason
from autowasm.preflight.verdicts import Unknown
from autowasm.reasons import Reason
from autowasm.sandbox.errors import FailureKind
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.verdict import Doubt, Outcome, Verdict
from autowasm.sandbox.vm import StartPhase
from autowasm.settings import EnvoyFetch, PreflightMode
from tests.fakes.autowasms import IMAGE, document
from tests.fakes.modulesource import sha256_of

KEY = ObjectKey("default", "test")
SHA256 = sha256_of(b"a module")
RECORD = Record(source=f"registry:{IMAGE}", sha256=SHA256, size=8, abi="0.2.1")

STARTS = Verdict(Outcome.STARTS)
REFUSED = Verdict(
    Outcome.REFUSED,
    "proxy_on_configure returned false",
    phase=StartPhase.CONFIGURE,
    kind=FailureKind.RETURNED_FALSE,
    log=("one", "two", "three", "no rule named x"),
)
TRAPPED = Verdict(Outcome.REFUSED, "unreachable", phase=StartPhase.VM_START, kind=FailureKind.TRAP)
DOUBTFUL = Verdict(Outcome.DOUBTFUL, "the first request: unreachable", doubt=Doubt.REQUEST_FAILED)
NO_VERDICT = Unknown(NoVerdictReason.CRASHED, "the child that ran the module was killed by SIGSEGV")


class Judge:
    """Answers as a test says."""

    def __init__(self) -> None:
        self.result: Verdict | Unknown | Exception = STARTS
        self.judged: list[tuple[str, Plugin]] = []
        self.released = asyncio.Event()
        self.released.set()
        self.engine = "1"
        self.memory: Verdict | Unknown | None = None

    def known(self, sha256: Sha256Hex, plugin: Plugin) -> Verdict | Unknown | None:
        return self.memory

    def key(self, sha256: Sha256Hex, plugin: Plugin) -> str:
        return f"{self.engine} {sha256[:8]} {plugin}"

    async def judge(
        self, *, namespace: str, module: Path, sha256: Sha256Hex, plugin: Plugin
    ) -> Verdict | Unknown:
        self.judged.append((namespace, plugin))
        await self.released.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class CheckedAutoWasm:
    """A check, and the answers that it gives for an object."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.judge = Judge()
        self.mode = PreflightMode.ENFORCE
        self.may_weaken = False
        self.queued: list[ObjectKey] = []
        self.status = Status()
        self.live: dict[str, Any] | None = None
        self.check = StartCheck(
            self.judge,
            operators=lambda _: (self.mode, self.may_weaken),
            module_path=lambda sha256: Path("/blobs", sha256),
            tasks=tasks,
            on_change=self.queued.append,
        )

    def decide(self, autowasm: AutoWasm) -> StartDecision | StartPending:
        context = ReconcileContext(KEY, {}, None, self.status)
        wanted = envoyfilters.render(autowasm, RECORD, EnvoyFetch())
        return self.check.decide(context, autowasm, SHA256, wanted=wanted, live=self.live)

    async def decided(self, **fields: Any) -> StartDecision:
        """The decision after the run."""
        autowasm = object_of(**fields)
        async with asyncio.timeout(10):
            while isinstance(decision := self.decide(autowasm), StartPending):
                await asyncio.sleep(0)
        return decision

    def publish(self, decision: StartDecision, **fields: Any) -> None:
        """As the reconciler does."""
        self.live = envoyfilters.render(object_of(**fields), RECORD, EnvoyFetch())
        self.keep(decision)

    def keep(self, decision: StartDecision) -> None:
        conditions = with_condition(
            self.status.conditions, ConditionType.STARTS, decision.condition, now="now"
        )
        self.status = msgspec.structs.replace(
            self.status, conditions=conditions, preflight=decision.preflight
        )


def object_of(annotation: str = "", **fields: Any) -> AutoWasm:
    described = document()
    described["spec"]["filter"] |= fields
    if annotation:
        described["metadata"].setdefault("annotations", {})[PREFLIGHT_ANNOTATION] = annotation
    return validation.parse(described)


@pytest.fixture
async def checked() -> AsyncIterator[CheckedAutoWasm]:
    async with asyncio.TaskGroup() as tasks:
        checked = CheckedAutoWasm(tasks)
        yield checked
        checked.check.forget(KEY)


@pytest.mark.parametrize("verdict", [STARTS, NO_VERDICT])
async def test_verdict_in_memory_is_used_in_the_same_reconcile(
    checked: CheckedAutoWasm, verdict: Verdict | Unknown
) -> None:
    checked.judge.result = verdict
    expected = await checked.decided()
    checked.check.forget(KEY)
    checked.judge.judged.clear()
    checked.queued.clear()
    checked.judge.memory = verdict
    assert checked.decide(object_of()) == expected
    assert (checked.judge.judged, checked.queued) == ([], [])


async def test_module_is_judged_once_outside_the_reconcile_and_the_end_queues_the_key(
    checked: CheckedAutoWasm,
) -> None:
    checked.judge.released.clear()
    autowasm = object_of(pluginConfig="a", rootID="r", env=[{"name": "N", "value": "v"}])
    assert isinstance(checked.decide(autowasm), StartPending)
    await asyncio.sleep(0)
    assert isinstance(checked.decide(autowasm), StartPending)
    assert checked.queued == []
    checked.judge.released.set()
    async with asyncio.timeout(10):
        while not checked.queued:
            await asyncio.sleep(0)
    decision = checked.decide(autowasm)
    assert isinstance(decision, StartDecision)
    assert decision.error is None
    assert decision.condition is not None
    assert (decision.condition.status, decision.condition.reason) == ("True", Reason.STARTED)
    ((namespace, plugin),) = checked.judge.judged
    assert namespace == "default"
    assert (plugin.configuration, plugin.root_id) == (b"a", "r")
    assert dict(plugin.environment) == {"N": "v"}


@pytest.mark.parametrize(
    ("verdict", "reason", "refusing"),
    [
        (STARTS, Reason.STARTED, ""),
        (REFUSED, Reason.CONFIGURATION_REFUSED, "enforce strict"),
        (TRAPPED, Reason.START_FAILED, "enforce strict"),
        (DOUBTFUL, Reason.FIRST_REQUEST_FAILED, "strict"),
        (NO_VERDICT, Reason.PREFLIGHT_UNAVAILABLE, "strict"),
    ],
)
@pytest.mark.parametrize("mode", [PreflightMode.WARN, PreflightMode.ENFORCE, PreflightMode.STRICT])
async def test_table_of_outcomes_and_modes(
    checked: CheckedAutoWasm,
    verdict: Verdict | Unknown,
    reason: Reason,
    refusing: str,
    mode: PreflightMode,
) -> None:
    checked.mode, checked.judge.result = mode, verdict
    decision = await checked.decided()
    assert decision.condition is not None
    assert decision.condition.reason == reason
    refused = decision.error
    assert (refused is not None) == (mode.value in refusing.split())
    if refused is not None:
        assert refused.reason == reason


async def test_refusal_names_field_effect_and_the_last_log_lines(checked: CheckedAutoWasm) -> None:
    checked.judge.result = REFUSED
    decision = await checked.decided()
    assert str(decision.error) == (
        "spec.filter.pluginConfig: the module refuses it (proxy_on_configure returned false), so every sidecar would answer 503; "
        "its last log lines: two | three | no rule named x"
    )
    decision = await checked.decided(failStrategy="FAIL_OPEN")
    assert "every sidecar would pass requests without the filter" in str(decision.error)


async def test_hostile_log_lines_are_one_short_printable_line(checked: CheckedAutoWasm) -> None:
    checked.judge.result = Verdict(
        Outcome.REFUSED, "no", phase=StartPhase.START, log=("\x1b[2J\n" + "x" * 10_000,)
    )
    decision = await checked.decided()
    text = str(decision.error)
    assert text.isprintable()
    assert len(text) < 500


async def test_off_judges_nothing_and_removes_the_condition(checked: CheckedAutoWasm) -> None:
    checked.mode = PreflightMode.OFF
    assert await checked.decided() == StartDecision()
    assert checked.judge.judged == []


@pytest.mark.parametrize(
    "change",
    [{"applyPorts": [1, 2]}, {"priority": 7}, {"failStrategy": "FAIL_OPEN"}, {"vmID": "other"}],
)
async def test_combination_in_place_is_not_judged_again(
    checked: CheckedAutoWasm, change: dict[str, Any]
) -> None:
    first = await checked.decided(pluginConfig="a")
    checked.publish(first, pluginConfig="a")
    assert len(checked.judge.judged) == 1
    again = await checked.decided(pluginConfig="a", **change)
    assert len(checked.judge.judged) == 1
    assert again.error is None
    assert again.condition == checked.status.condition(ConditionType.STARTS)
    assert again.preflight == first.preflight


@pytest.mark.parametrize("result", [STARTS, DOUBTFUL])
async def test_combination_in_place_is_not_judged_again_after_an_upgrade(
    checked: CheckedAutoWasm, result: Verdict
) -> None:
    checked.judge.result = result
    first = await checked.decided()
    checked.publish(first)
    checked.judge.engine = "2"
    again = await checked.decided()
    assert len(checked.judge.judged) == 1
    assert again.condition == checked.status.condition(ConditionType.STARTS)
    assert again.preflight == first.preflight


async def test_upgrade_judges_a_refused_combination_again(checked: CheckedAutoWasm) -> None:
    checked.judge.result = REFUSED
    checked.keep(await checked.decided())
    checked.judge.engine, checked.judge.result = "2", STARTS
    assert (await checked.decided()).error is None
    assert len(checked.judge.judged) == 2


async def test_combination_in_place_is_reported_again_after_another_one_was_refused(
    checked: CheckedAutoWasm,
) -> None:
    checked.publish(await checked.decided(pluginConfig="a"), pluginConfig="a")
    checked.judge.result = REFUSED
    checked.keep(await checked.decided(pluginConfig="b"))
    checked.judge.result = STARTS
    checked.decide(object_of(pluginConfig="a"))
    async with asyncio.timeout(10):
        while len(checked.queued) < 3:
            await asyncio.sleep(0)
    again = checked.decide(object_of(pluginConfig="a"))
    assert isinstance(again, StartDecision)
    assert again.error is None
    assert again.condition is not None
    assert again.condition.status == "True"


@pytest.mark.parametrize(
    "edit",
    [
        {"status": "true"},
        {"status": ""},
        {"reason": ""},
        {"message": "x" * 40_000},
        {"key": ""},
        {"key": "ffff"},
    ],
)
async def test_verdict_that_another_client_damaged_is_replaced(
    checked: CheckedAutoWasm, edit: dict[str, str]
) -> None:
    checked.judge.result = REFUSED
    refused = await checked.decided()
    assert isinstance(refused.preflight, Preflight)
    checked.keep(refused)
    checked.status = msgspec.structs.replace(
        checked.status, preflight=msgspec.structs.replace(refused.preflight, **edit)
    )
    checked.check.forget(KEY)  # another process
    again = await checked.decided()
    assert (again.error is None, again.condition, again.preflight) == (
        False,
        refused.condition,
        refused.preflight,
    )
    assert len(checked.judge.judged) == 2


async def test_published_combination_of_an_older_version_is_neither_judged_nor_reported(
    checked: CheckedAutoWasm,
) -> None:
    checked.live = envoyfilters.render(object_of(), RECORD, EnvoyFetch())
    checked.judge.result = REFUSED
    assert await checked.decided() == StartDecision()
    assert checked.judge.judged == []


@pytest.mark.parametrize(
    "change",
    [{"pluginConfig": "b"}, {"rootID": "b"}, {"env": [{"name": "N", "value": "v"}]}],
)
async def test_new_combination_is_judged(checked: CheckedAutoWasm, change: dict[str, Any]) -> None:
    checked.publish(await checked.decided(pluginConfig="a"), pluginConfig="a")
    await checked.decided(**{"pluginConfig": "a", **change})
    assert len(checked.judge.judged) == 2


async def test_successor_uses_the_verdict_in_the_status(checked: CheckedAutoWasm) -> None:
    checked.judge.result = REFUSED
    refused = await checked.decided()
    checked.keep(refused)
    checked.check.forget(KEY)  # another process
    again = checked.decide(object_of())
    assert isinstance(again, StartDecision)
    assert again.error is not None
    assert str(again.error) == str(refused.error)
    assert again.error.reason == Reason.CONFIGURATION_REFUSED
    assert len(checked.judge.judged) == 1


async def test_verdict_of_another_version_with_an_unknown_reason_still_refuses(
    checked: CheckedAutoWasm,
) -> None:
    checked.judge.result = REFUSED
    refused = (await checked.decided()).preflight
    assert isinstance(refused, Preflight)
    checked.check.forget(KEY)  # another process
    newer = msgspec.structs.replace(refused, reason="New", message="no")
    checked.status = Status(preflight=newer)
    decision = await checked.decided()
    assert decision.error is not None
    assert decision.error.reason == Reason.START_FAILED


@pytest.mark.looptime
async def test_an_event_does_not_postpone_the_retry_of_a_strict_pre_flight(
    checked: CheckedAutoWasm,
) -> None:
    checked.mode, checked.judge.result = PreflightMode.STRICT, NO_VERDICT
    decision = await checked.decided()
    assert decision.retry_in is not None
    await asyncio.sleep(decision.retry_in - 1)
    later = await checked.decided()
    assert later.retry_in == pytest.approx(1, abs=0.1)


@pytest.mark.looptime
async def test_strict_mode_tries_again_without_a_verdict(checked: CheckedAutoWasm) -> None:
    checked.mode, checked.judge.result = PreflightMode.STRICT, NO_VERDICT
    decision = await checked.decided()
    assert decision.retry_in is not None
    checked.keep(decision)
    await checked.decided()
    assert len(checked.judge.judged) == 1, "not before it is due"
    await asyncio.sleep(decision.retry_in)
    checked.judge.result = STARTS
    assert (await checked.decided()).error is None
    assert len(checked.judge.judged) == 2


async def test_bug_of_the_judge_is_not_the_modules_fault(checked: CheckedAutoWasm) -> None:
    checked.judge.result = ValueError("a bug")
    decision = await checked.decided()
    assert decision.error is None
    assert decision.condition is not None
    assert decision.condition.status == "Unknown"


async def test_changed_spec_ends_the_run_of_the_old_one(checked: CheckedAutoWasm) -> None:
    checked.judge.released.clear()
    checked.decide(object_of(pluginConfig="a"))
    await asyncio.sleep(0)
    checked.decide(object_of(pluginConfig="b"))
    await asyncio.sleep(0)
    checked.judge.released.set()
    decision = await checked.decided(pluginConfig="b")
    assert decision.error is None
    assert [plugin.configuration for _, plugin in checked.judge.judged] == [b"a", b"b"]
    assert checked.queued == [KEY], "the first run was cancelled"


@pytest.mark.parametrize(
    ("operators", "annotation", "may_weaken", "expected"),
    [
        ("enforce", "", False, "enforce"),
        ("enforce", "strict", False, "strict"),
        ("warn", "enforce", False, "enforce"),
        ("enforce", "enforce", False, "enforce"),
        ("enforce", "off", True, "off"),
        ("enforce", "warn", False, None),
        ("strict", "enforce", False, None),
    ],
)
def test_annotation_may_only_be_stricter_than_the_operator(
    operators: str, annotation: str, may_weaken: bool, expected: str | None
) -> None:
    autowasm = object_of(annotation)
    allowed = lambda _: (PreflightMode(operators), may_weaken)  # noqa: E731
    if expected is not None:
        assert mode_of(autowasm, allowed) == expected
        return
    with pytest.raises(SpecError, match="is weaker than the operator's") as caught:
        mode_of(autowasm, allowed)
    assert caught.value.reason == Reason.POLICY_DENIED


def test_unknown_annotation_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(SpecError, match="'sometimes' is not one of off, warn, enforce, strict"):
        mode_of(object_of("sometimes"), lambda _: (PreflightMode.ENFORCE, False))
