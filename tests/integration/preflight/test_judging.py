"""Preflight with real children: verdicts, what is remembered, what is shared, and what is left behind."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from autowasm.digest import Sha256Hex
from autowasm.limits import PreflightLimits
from autowasm.preflight import runner
from autowasm.preflight.messages import COMPILE, NoVerdictReason
from autowasm.preflight.processes import Result
from autowasm.preflight.verdicts import Unknown
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.verdict import Outcome, Verdict
from autowasm.telemetry.metrics import Metrics
from tests.fakes import preflights
from tests.fakes.forkserver import alive, children_of, until
from tests.fakes.preflights import LYING, Judge, filter_text
from tests.parts import wat

LIMITS = PreflightLimits(run_seconds=60.0, restart_base=0.01)
CONFIGURED = """
  (drop (call $log (i32.const 3) (i32.const 16) (i32.const 15)))
  (i32.gt_u (local.get 1) (i32.const 3))"""
"""Starts with a configuration of more than three bytes."""


@pytest.fixture
async def judge(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Judge]:
    async with preflights.running(tmp_path, metrics, limits=LIMITS) as judge:
        yield judge


@pytest.fixture
async def lying(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Judge]:
    """Children do what the configuration names."""
    async with preflights.running(tmp_path, metrics, limits=LIMITS, module=LYING) as judge:
        yield judge


def module(configure: str = CONFIGURED, *, more: str = "") -> bytes:
    return wat.compile_text(filter_text(configure=configure, more=more))


def numbered(number: int) -> bytes:
    """Modules of different digests."""
    return module(more=f"(func (drop (i32.const {number})))")


async def test_the_verdict_depends_on_the_configuration(judge: Judge) -> None:
    started, refused = await judge(module(), b"long"), await judge(module(), b"abc")
    assert isinstance(started, Verdict)
    assert isinstance(refused, Verdict)
    assert started.outcome is Outcome.STARTS
    assert refused.outcome is Outcome.REFUSED
    assert any("says the module" in line for line in refused.log)
    assert judge.runs("compile") == 1
    assert (judge.judgements("starts"), judge.judgements("refused")) == (1, 1)


async def test_the_clock_of_a_child_is_right(judge: Judge) -> None:
    now = time.time_ns()
    imports = (
        '(import "env" "proxy_get_current_time_nanoseconds" (func $now (param i32) (result i32)))'
    )
    text = filter_text(
        configure=f"""
          (drop (call $now (i32.const 0)))
          (i32.and
            (i64.ge_u (i64.load (i32.const 0)) (i64.const {now}))
            (i64.lt_u (i64.load (i32.const 0)) (i64.const {now + 3600 * 10**9})))"""
    ).replace("(module", f"(module {imports}", 1)
    verdict = await judge(wat.compile_text(text), b"{}")
    assert isinstance(verdict, Verdict)
    assert verdict.outcome is Outcome.STARTS


async def test_the_isolation_of_children_is_known(judge: Judge) -> None:
    await judge(module(), b"long")
    assert judge.preflight.enforced is not None
    assert judge.preflight.enforced.seccomp


async def test_a_verdict_is_remembered(judge: Judge) -> None:
    assert await judge(module(), b"long") == await judge(module(), b"long", namespace="other")
    assert judge.runs("run") == 1
    await judge(module(), b"longer")
    assert judge.runs("run") == 2


async def test_only_a_good_verdict_is_known_for_another_name_of_the_plugin(judge: Judge) -> None:
    path, sha256 = judge.store(module())
    for configuration, is_shared in ((b"long", True), (b"abc", False)):
        plugin = Plugin(name="one", configuration=configuration)
        assert judge.preflight.known(sha256, plugin) is None
        found = await judge.preflight.judge(
            namespace="a", module=path, sha256=sha256, plugin=plugin
        )
        assert judge.preflight.known(sha256, plugin) == found
        other = judge.preflight.known(sha256, replace(plugin, name="other"))
        assert other == (found if is_shared else None)


async def test_compiled_code_serves_the_next_process(tmp_path: Path, metrics: Metrics) -> None:
    async with preflights.running(tmp_path, metrics, limits=LIMITS) as judge:
        await judge(module(), b"long")
    later = Metrics()
    async with preflights.running(tmp_path, later, limits=LIMITS) as judge:
        path, _ = judge.store(module())
        path.unlink()
        path.touch()  # no longer the module: only its code is needed
        assert isinstance(await judge(module(), b"abc"), Verdict)
        assert (judge.runs("compile"), judge.runs("run")) == (0, 1)


async def test_damaged_code_is_compiled_again_and_never_run(
    judge: Judge,
) -> None:
    await judge(module(), b"long")
    (file,) = judge.code.iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = await judge(module(), b"abc")
    assert isinstance(found, Verdict)
    assert judge.runs("compile") == 2
    assert judge.metrics.preflight_code_damaged._value.get() == 1


async def test_code_that_this_machine_cannot_load_is_compiled_again(judge: Judge) -> None:
    # As after a move of the volume to a node with another processor: a whole file, with the right hash.
    _, sha256 = judge.store(module())
    cache = judge.preflight._cache
    staged = await cache.stage()
    os.write(staged.fd, b"\x7fELF of another machine")
    await cache.commit(sha256, staged)
    os.close(staged.fd)
    found = await judge(module(), b"long")
    assert isinstance(found, Verdict)
    assert (judge.runs("compile"), judge.runs("run")) == (1, 2)
    assert await judge(module(), b"abc")
    assert judge.runs("compile") == 1


async def test_code_beyond_the_budget_still_gets_a_verdict(
    tmp_path: Path, metrics: Metrics
) -> None:
    async with preflights.running(tmp_path, metrics, limits=LIMITS, budget=100) as judge:
        assert isinstance(await judge(module(), b"long"), Verdict)
        assert list(judge.code.iterdir()) == []


async def test_more_modules_than_the_budget_holds_all_get_verdicts(
    tmp_path: Path, metrics: Metrics
) -> None:
    async with preflights.running(tmp_path, metrics, limits=LIMITS, budget=100_000) as judge:
        found = [await judge(numbered(number), b"long") for number in range(10)]
        assert all(isinstance(each, Verdict) for each in found)
        held = sum(file.stat().st_size for file in judge.code.iterdir())
        assert 0 < held <= 100_000
        assert judge.metrics.preflight_code_bytes._value.get() == held


async def test_a_module_with_another_digest_is_not_compiled(judge: Judge) -> None:
    path, _ = judge.store(module())
    found = await judge.preflight.judge(
        namespace="a", module=path, sha256=Sha256Hex("0" * 64), plugin=Plugin()
    )
    assert isinstance(found, Unknown)
    assert found.reason is NoVerdictReason.MODULE_UNAVAILABLE
    assert list(judge.code.iterdir()) == []


async def test_a_module_that_is_gone_is_reported(judge: Judge) -> None:
    path, sha256 = judge.store(module())
    path.unlink()
    found = await judge.preflight.judge(namespace="a", module=path, sha256=sha256, plugin=Plugin())
    assert isinstance(found, Unknown)
    assert found.reason is NoVerdictReason.MODULE_UNAVAILABLE


async def test_a_configuration_beyond_the_limit_is_reported(judge: Judge) -> None:
    found = await judge(module(), bytes(LIMITS.request_bytes))
    assert isinstance(found, Unknown)
    assert found.reason is NoVerdictReason.TOO_LARGE


async def test_a_directory_that_cannot_be_written_is_reported(
    tmp_path: Path, metrics: Metrics
) -> None:
    (tmp_path / "code").write_text("a file")
    async with preflights.running(tmp_path, metrics, limits=LIMITS) as judge:
        found = await judge(module(), b"long")
    assert isinstance(found, Unknown)
    assert found.reason is NoVerdictReason.STORAGE_UNAVAILABLE


async def test_equal_requests_at_one_time_share_a_run(judge: Judge) -> None:
    asked = (judge(module(), b"long", namespace=f"n{number % 5}") for number in range(20))
    assert len({str(found) for found in await asyncio.gather(*asked)}) == 1
    assert judge.runs("run") == judge.runs("compile") == 1


async def test_requests_of_many_namespaces_run_two_at_a_time(lying: Judge) -> None:
    asked = [
        asyncio.create_task(
            lying(
                numbered(number),
                b"wait_forever" if number < 2 else b"silent",
                namespace=f"n{number}",
            )
        )
        for number in range(5)
    ]
    gauges = lying.metrics.preflight_children, lying.metrics.preflight_waiting
    await until(
        lambda: (
            lying.runs("compile") >= 2
            and len(children_of(lying.server.pid)) == 2
            and [gauge._value.get() for gauge in gauges] == [2, 3]
        )
    )
    assert lying.runs("compile") == 2
    assert not any(task.done() for task in asked)
    for child in children_of(lying.server.pid):
        os.kill(child, signal.SIGKILL)
    await asyncio.gather(*asked)
    assert [gauge._value.get() for gauge in gauges] == [0, 0]


async def test_one_module_at_a_time_is_compiled_while_others_run(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    await judge(module(), b"long")  # compiled
    compiling, most, go_on = 0, 0, asyncio.Event()
    execute = judge.server.execute

    async def held(work: str, *arguments: Any, **more: Any) -> Result:
        nonlocal compiling, most
        if work != COMPILE:
            return await execute(work, *arguments, **more)
        compiling += 1
        most = max(most, compiling)
        try:
            await go_on.wait()
            return await execute(work, *arguments, **more)
        finally:
            compiling -= 1

    monkeypatch.setattr(judge.server, "execute", held)
    first = asyncio.create_task(judge(numbered(0), b"long", namespace="n0"))
    await until(lambda: compiling == 1)
    assert isinstance(await judge(module(), b"longer"), Verdict)
    go_on.set()
    others = (judge(numbered(n), b"long", namespace=f"n{n}") for n in range(1, 8))
    assert all(isinstance(found, Verdict) for found in await asyncio.gather(first, *others))
    assert (judge.runs("compile"), most) == (9, 1)


async def test_modules_that_wait_to_be_compiled_delay_no_module_that_is_compiled(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    await judge(module(), b"long")  # compiled
    compiling, execute = asyncio.Event(), judge.server.execute

    async def held(work: str, *arguments: Any, **more: Any) -> Result:
        if work == COMPILE:
            compiling.set()
            await asyncio.Event().wait()
        return await execute(work, *arguments, **more)

    monkeypatch.setattr(judge.server, "execute", held)
    waiting = [
        asyncio.create_task(judge(numbered(number), b"long", namespace=f"n{number}"))
        for number in (0, 1, 2, 0)
    ]
    await compiling.wait()
    async with asyncio.timeout(60):
        assert isinstance(await judge(module(), b"longer", namespace="other"), Verdict)
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_module_that_hangs_in_one_namespace_delays_no_other(lying: Judge) -> None:
    hanging = asyncio.create_task(lying(module(), b"wait_forever", namespace="bad"))
    queued = asyncio.create_task(lying(numbered(1), b"wait_forever", namespace="bad"))
    await until(lambda: lying.runs("compile") == 1 and len(children_of(lying.server.pid)) == 1)
    assert isinstance(await lying(module(), b"silent", namespace="good"), Unknown)
    assert not hanging.done()
    hanging.cancel()
    queued.cancel()
    await asyncio.gather(hanging, queued, return_exceptions=True)


async def test_requests_beyond_the_queue_and_bugs_are_counted(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(LIMITS, queued=0)
    async with preflights.running(tmp_path, metrics, limits=limits, module=LYING) as lying:
        hanging = asyncio.create_task(lying(module(), b"wait_forever"))
        await until(lambda: lying.runs("compile") == 1 and len(children_of(lying.server.pid)) == 1)
        found = await lying(numbered(1), b"silent")
        assert isinstance(found, Unknown)
        assert found.reason is NoVerdictReason.TOO_MANY_REQUESTS
        assert (lying.failures("TooManyRequests"), lying.judgements("unknown")) == (1, 1)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        await until(lambda: metrics.preflight_children._value.get() == 0)
        monkeypatch.setattr(runner, "answer_of", None)
        with pytest.raises(TypeError):
            await lying(module(), b"silent")
        assert (lying.failures("InternalError"), lying.judgements("unknown")) == (1, 2)


async def test_a_caller_that_leaves_ends_its_child_and_frees_its_slot(lying: Judge) -> None:
    asking = asyncio.create_task(lying(module(), b"wait_forever"))
    await until(lambda: len(children_of(lying.server.pid)) == 1 and lying.runs("compile") == 1)
    (child,) = children_of(lying.server.pid)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: not alive(child))
    assert isinstance(await lying(module(), b"silent"), Unknown)


async def test_a_caller_that_leaves_during_the_compilation_leaves_no_file(judge: Judge) -> None:
    for steps in range(0, 60, 3):
        asking = asyncio.create_task(judge(numbered(steps), b"long"))
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: not children_of(judge.server.pid))
    await until(lambda: not any(file.suffix != ".cwasm" for file in judge.code.iterdir()))
    assert isinstance(await judge(module(), b"long"), Verdict)


async def test_a_fork_server_that_dies_costs_one_verdict(lying: Judge) -> None:
    asking = asyncio.create_task(lying(module(), b"wait_forever"))
    await until(lambda: len(children_of(lying.server.pid)) == 1 and lying.runs("compile") == 1)
    (child,) = children_of(lying.server.pid)
    os.kill(cast(int, lying.server.pid), signal.SIGKILL)
    found = await asking
    assert isinstance(found, Unknown)
    assert found.reason is NoVerdictReason.NOT_STARTED
    await until(lambda: not alive(child))
    again = await lying(module(), b"silent")
    assert isinstance(again, Unknown)
    assert again.reason is NoVerdictReason.INVALID_ANSWER
    assert lying.metrics.preflight_restarts._value.get() == 1


async def test_judging_without_a_verdict_is_repeated(lying: Judge) -> None:
    for _ in range(2):
        assert isinstance(await lying(module(), b"silent"), Unknown)
    assert lying.runs("run") == 2


async def test_a_new_engine_forgets_verdicts(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    await judge(module(), b"long")
    monkeypatch.setattr(runner, "ENGINE_VERSION", "wasmtime-99")
    await judge(module(), b"long")
    assert judge.runs("run") == 2
