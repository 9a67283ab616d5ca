"""Malicious modules run in a real child: each gets a verdict, or a reason why there is none, and leaves nothing behind."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from autowasm.limits import MIB, PreflightLimits
from autowasm.preflight.messages import NoVerdictReason
from autowasm.preflight.verdicts import Unknown
from autowasm.sandbox.verdict import Doubt, Outcome, Verdict
from autowasm.telemetry.metrics import Metrics
from tests.fakes import preflights
from tests.fakes.preflights import LYING, Judge, filter_text
from tests.parts import wat

LIMITS = PreflightLimits(run_seconds=60.0)
"""Seconds: even on a busy machine the fuel ends a loop, not the time limit."""

LOOP = "(loop br 0) unreachable"
RECURSE = "(func $f (param i32) (result i32) (i32.add (call $f (local.get 0)) (i32.const 1)))"
GROW_AND_FILL = """
  (drop (memory.grow (i32.const 16000)))
  (loop
    (i32.store (local.get 2) (i32.const 1))
    (local.set 2 (i32.add (local.get 2) (i32.const 4096)))
    br 0)
  unreachable"""
GROW_ONLY = "(drop (memory.grow (i32.const 16000))) i32.const 1"
GROW_TOO_MUCH = "(i32.eq (memory.grow (i32.const 65535)) (i32.const -1))"
LOG_10_MB = """
  (loop
    (drop (call $log (i32.const 2) (i32.const 0) (i32.const 1024)))
    (local.set 2 (i32.add (local.get 2) (i32.const 1)))
    (br_if 0 (i32.lt_u (local.get 2) (i32.const 10240))))
  i32.const 0"""

_STEP = """
  (local.set 0 (i64.add (i64.load (i32.wrap_i64 (local.get 0))) (i64.const {number})))
  (if (i64.eqz (local.get 0)) (then (i64.store (i32.const {number}) (local.get 0))))"""
MUCH_CODE = f"(func (local i64) {''.join(_STEP.format(number=n) for n in range(20_000))})"
"""Takes a second of one core to compile."""


@pytest.fixture
async def judge(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Judge]:
    async with preflights.running(tmp_path, metrics, limits=LIMITS) as judge:
        yield judge


def module(**parts: str) -> bytes:
    return wat.compile_text(filter_text(**parts))  # type: ignore[arg-type]


async def verdict(judge: Judge, data: bytes, configuration: bytes | None = b"{}") -> Verdict:
    found = await judge(data, configuration)
    assert isinstance(found, Verdict), found
    return found


async def test_an_endless_loop_ends_by_fuel(judge: Judge) -> None:
    found = await verdict(judge, module(configure=LOOP))
    assert (found.outcome, found.doubt) == (Outcome.DOUBTFUL, Doubt.LIMIT)
    assert found.message


async def test_a_start_function_that_never_returns_ends_by_fuel(judge: Judge) -> None:
    found = await verdict(judge, module(more=f"(func $s {LOOP}) (start $s)"))
    assert (found.outcome, found.doubt) == (Outcome.DOUBTFUL, Doubt.LIMIT)


async def test_a_stack_overflow_is_a_trap(judge: Judge) -> None:
    found = await verdict(judge, module(configure="(call $f (i32.const 1))", more=RECURSE))
    assert found.outcome is not Outcome.STARTS
    assert "stack" in found.message


async def test_memory_that_is_reserved_and_not_used_is_no_reason_to_refuse(judge: Judge) -> None:
    assert (await verdict(judge, module(configure=GROW_ONLY))).outcome is Outcome.STARTS


async def test_more_memory_than_envoy_grants_is_not_granted(judge: Judge) -> None:
    assert (await verdict(judge, module(configure=GROW_TOO_MUCH))).outcome is Outcome.STARTS


async def test_a_module_that_fills_its_memory_is_ended_and_not_refused(judge: Judge) -> None:
    found = await judge(module(configure=GROW_AND_FILL), b"{}")
    assert isinstance(found, Unknown)
    assert found.reason is NoVerdictReason.OUT_OF_MEMORY
    assert judge.failures("OutOfMemory") == judge.judgements("unknown") == 1


async def test_ten_megabytes_of_log_lines_are_cut(judge: Judge) -> None:
    found = await verdict(judge, module(configure=LOG_10_MB))
    assert found.outcome is Outcome.REFUSED
    assert found.log
    assert sum(map(len, found.log)) <= LIMITS.log_bytes


async def test_content_that_is_no_module_gets_cannot_compile(judge: Judge) -> None:
    found = await judge(b"\0asm and nothing else")
    assert isinstance(found, Unknown)
    assert found.reason is NoVerdictReason.CANNOT_COMPILE
    again = await judge(b"\0asm and nothing else")
    assert again == found
    assert judge.runs("compile") == 1
    assert judge.failures("CannotCompile") == 1


async def test_a_module_that_takes_too_long_to_compile_is_not_refused(
    tmp_path: Path, metrics: Metrics
) -> None:
    limits = replace(LIMITS, compile_seconds=0.1)
    async with preflights.running(tmp_path, metrics, limits=limits) as judge:
        found = await judge(module(more=MUCH_CODE))
        assert isinstance(found, Unknown)
        assert found.reason is NoVerdictReason.DEADLINE_EXCEEDED
        assert list(judge.code.iterdir()) == []


async def test_a_module_too_large_to_compile_in_its_memory_is_not_refused(
    tmp_path: Path, metrics: Metrics
) -> None:
    limits = replace(LIMITS, compile_memory=64 * MIB)
    async with preflights.running(tmp_path, metrics, limits=limits) as judge:
        found = await judge(module(more=MUCH_CODE))
        assert isinstance(found, Unknown)
        assert found.reason is NoVerdictReason.OUT_OF_MEMORY


async def test_compiled_code_beyond_its_limit_is_not_kept(tmp_path: Path, metrics: Metrics) -> None:
    limits = replace(LIMITS, code_bytes=100)
    async with preflights.running(tmp_path, metrics, limits=limits) as judge:
        found = await judge(module())
        assert isinstance(found, Unknown)
        assert found.reason is NoVerdictReason.TOO_LARGE
        assert list(judge.code.iterdir()) == []


async def test_a_run_beyond_its_deadline_is_not_refused(tmp_path: Path, metrics: Metrics) -> None:
    limits = PreflightLimits(run_seconds=0.2, run_fuel=10**15)
    async with preflights.running(tmp_path, metrics, limits=limits) as judge:
        found = await judge(module(configure=LOOP), b"{}")
        assert isinstance(found, Unknown)
        assert found.reason is NoVerdictReason.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ("garbage", NoVerdictReason.INVALID_ANSWER),
        ("nested", NoVerdictReason.INVALID_ANSWER),
        ("forged", NoVerdictReason.INVALID_ANSWER),
        ("half", NoVerdictReason.INVALID_ANSWER),
        ("silent", NoVerdictReason.INVALID_ANSWER),
        ("abort", NoVerdictReason.CRASHED),
        ("fail", NoVerdictReason.CRASHED),
        ("wait_forever", NoVerdictReason.DEADLINE_EXCEEDED),
        ("hang_up_and_wait", NoVerdictReason.DEADLINE_EXCEEDED),
        ("endless", NoVerdictReason.CRASHED),  # wasmer closes the connection
    ],
)
async def test_a_module_that_took_over_its_child_gets_no_verdict(
    tmp_path: Path, metrics: Metrics, lie: str, reason: NoVerdictReason
) -> None:
    hangs = reason is NoVerdictReason.DEADLINE_EXCEEDED
    limits = PreflightLimits(run_seconds=1.0) if hangs else LIMITS
    async with preflights.running(tmp_path, metrics, limits=limits, module=LYING) as judge:
        found = await judge(module(), lie.encode())
        assert isinstance(found, Unknown)
        assert found.reason is reason
        assert found.message.isprintable()
        assert len(found.message) < 500
        assert judge.failures(reason) == 1


async def test_a_child_that_runs_cannot_change_the_code_that_others_use(
    tmp_path: Path, metrics: Metrics
) -> None:
    async with preflights.running(tmp_path, metrics, module=LYING) as judge:
        await judge(module(), b"report")  # tries to write to all its descriptors
        (file,) = judge.code.iterdir()
        hashed = hashlib.sha256(file.read_bytes()).hexdigest()
        assert hashed in file.name
