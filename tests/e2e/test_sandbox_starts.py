"""Starts of modules: Envoy loads, refuses or crashes on each, and the sandbox predicts the same.

Filters written in Go are in `test_sandbox_toolchains.py`: Envoy takes seconds to compile each of them.
"""

from pathlib import Path

import pytest

from autowasm.envoyversion import envoy_version
from autowasm.sandbox.errors import FailureKind
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.verdict import Outcome, judge
from tests.e2e.sandboxcases import starts
from tests.parts import comparison, pypi
from tests.parts.loading import envoy_failure

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS),
]


@pytest.mark.parametrize("name", starts.CASES)
async def test_verdicts_are_those_of_envoy(version: str, name: str, tmp_path: Path) -> None:
    await starts.CASES[name].compare(version, tmp_path)


@pytest.mark.parametrize("name", starts.CRASHES)
async def test_module_that_crashes_envoy_gets_the_verdict_crash(
    version: str, name: str, tmp_path: Path
) -> None:
    module = starts.CRASHES[name].module()
    said = await envoy_failure(version, module, tmp_path)
    verdict = judge(
        comparison.compiled(module), Plugin(), envoy=envoy_version(version), smoke_request=False
    )
    assert said.startswith("exit status -")
    assert verdict.kind is FailureKind.CRASH


@pytest.mark.parametrize("name", starts.LATER)
async def test_a_module_that_fails_unnoticed_at_the_start_is_refused_because_requests_fail(
    version: str, name: str, tmp_path: Path
) -> None:
    module = starts.LATER[name].module()
    plugin = Plugin(name="later", vm_id="vm-later")
    case = comparison.Case("later", module)

    assert await envoy_failure(version, module, tmp_path) == ""
    nothing = comparison.Observed((), (), ())
    real = await comparison.in_envoy(version, [case], {case.name: nothing}, tmp_path / "envoy")
    verdict = judge(comparison.compiled(module), plugin, envoy=envoy_version(version))

    assert [each.first for each in real["later"].answers if each] == [("503",)]
    assert verdict.outcome is Outcome.REFUSED
