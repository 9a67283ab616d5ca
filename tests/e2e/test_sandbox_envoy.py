"""The sandbox against the real Envoy: the same filters with the same requests do the same.

One Envoy of each version for each group of cases. The permitted differences are those of `DIFFERENCES`, and no case shows one.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

from autowasm.envoyversion import envoy_version
from autowasm.sandbox.errors import FailureKind
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.verdict import Outcome, judge
from tests.e2e.sandboxcases import hostcalls, http, starts, tcp, toolchains
from tests.parts import comparison, pypi, tcpcomparison
from tests.parts.filteringenvoy import plugin_of
from tests.parts.loading import envoy_failure

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS),
]

DIFFERENCES = {
    "codec": "the sandbox does not encode messages: transfer-encoding, connection and content-length: 0 are Envoy's",
    "lengths": "a content-length that a filter makes wrong breaks the message on the wire, and is passed on here",
    "machine": "addresses, ports, ids of connections, durations and dates are those of an example",
    "environment": "environment variables come in the order of a hash table there, and in that of the configuration here",
    "map order": "properties that are maps (request.headers) list their entries in the order of a hash table there",
    "messages": "a property that is a whole protobuf message other than metadata is not serialised here",
    "start": "Envoy starts the filter in a canary and in each worker: logs and metrics of the start are there several times",
    "twice": "a filter that resumes a stream in the callback that gets its headers, and does not pause, makes Envoy pass the "
    "headers on twice: here it is a warning; so are trailers of a request",
    "crash": "where Envoy crashes, the sandbox reports that",
    "stack": "a recursion without end fails in Envoy, and is a limit of the sandbox here, because frames have other sizes",
    "expressions": "CEL expressions, signatures and the filter state of other extensions are not here: the module is `unsupported`",
}
"""What may differ, by name."""


GROUPS = {**http.GROUPS, "toolchains": toolchains.cases}


@pytest.mark.parametrize("group", GROUPS)
async def test_http_filters_do_the_same(version: str, group: str, tmp_path: Path) -> None:
    await _compare(version, list(GROUPS[group]()), tmp_path)


async def test_every_host_function_returns_the_same(version: str, tmp_path: Path) -> None:
    await _compare(version, list(hostcalls.cases(version)), tmp_path)


async def _compare(version: str, cases: Sequence[comparison.Case], tmp_path: Path) -> None:
    found = {each.name: comparison.in_sandbox(each, version) for each in cases}
    assert len(found) == len(cases)
    real = await comparison.in_envoy(version, cases, found, tmp_path)

    differing = {name: comparison.difference(real[name], ours) for name, ours in found.items()}
    assert not "\n".join(f"{name}\n{text}" for name, text in differing.items() if text)


async def test_tcp_filters_do_the_same(version: str, tmp_path: Path) -> None:
    cases = list(tcp.cases())

    found = {each.name: tcpcomparison.in_sandbox(each, version) for each in cases}
    assert len(found) == len(cases)
    real = await tcpcomparison.in_envoy(version, cases, found, tmp_path)

    differing = {name: comparison.difference(real[name], ours) for name, ours in found.items()}
    assert not "\n".join(f"{name}\n{text}" for name, text in differing.items() if text)


@pytest.mark.parametrize("name", starts.CASES)
async def test_verdicts_are_those_of_envoy(version: str, name: str, tmp_path: Path) -> None:
    case = starts.CASES[name]
    module = case.module()
    plugin = case.plugin
    config = plugin_of(plugin, tmp_path / "module.wasm")

    said = await envoy_failure(version, module, tmp_path, plugin=config)
    verdict = judge(
        comparison.compiled(module), plugin, envoy=envoy_version(version), smoke_request=False
    )

    assert bool(said) == (verdict.outcome is Outcome.REFUSED), (said, verdict)
    assert verdict.outcome is not Outcome.DOUBTFUL
    for part in case.says:
        assert part in said
    for part in case.we_say:
        assert part in verdict.message


@pytest.mark.parametrize("name", starts.CRASHES)
async def test_what_crashes_envoy_is_called_a_crash(
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
