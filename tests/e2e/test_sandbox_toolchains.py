"""The sandbox compared with the real Envoy: filters from real toolchains behave the same, and start in both or in neither.

A separate file, because a module from Go has 2 MB: each program that runs it takes two seconds of processor time to compile it. The
sandbox compiles it once for all tests here, and Envoy once for all tests of starts.
"""

from pathlib import Path

import pytest

from autowasm.envoyversion import envoy_version
from autowasm.sandbox.verdict import Outcome, judge
from tests.e2e.sandboxcases import starts, toolchains
from tests.parts import comparison, pypi

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1200),
    pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS),
]


async def test_filters_do_the_same_and_none_that_starts_in_envoy_is_refused(
    version: str, tmp_path: Path
) -> None:
    cases = list(toolchains.cases())
    # Envoy starts with all of them or not at all.
    found = await comparison.http_differences({version: cases}, tmp_path)
    assert not found, found
    for case in cases:
        verdict = judge(
            comparison.compiled(case.module),
            case.plugin,
            envoy=envoy_version(version),
            smoke_request=False,
        )
        assert verdict.outcome not in {Outcome.REFUSED, Outcome.DOUBTFUL}, (case.name, verdict)


@pytest.mark.parametrize("name", starts.OF_GO)
async def test_verdicts_are_those_of_envoy(version: str, name: str, tmp_path: Path) -> None:
    await starts.OF_GO[name].compare(version, tmp_path)
