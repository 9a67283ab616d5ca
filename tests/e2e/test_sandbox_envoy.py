"""The sandbox compared with the real Envoy: the same filters with the same requests behave the same.

Envoys of each version run the cases of a group, side by side. The permitted differences are those of `DIFFERENCES`, and no case shows
one. Filters from real toolchains are in `test_sandbox_toolchains.py`, starts of modules in `test_sandbox_starts.py`.
"""

from pathlib import Path

import pytest

from tests.e2e.sandboxcases import hostcalls, http, tcp
from tests.parts import comparison, pypi, tcpcomparison

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1200)]

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
"""Permitted differences, by name."""


@pytest.mark.parametrize("group", http.GROUPS)
async def test_http_filters_do_the_same(group: str, tmp_path: Path) -> None:
    cases = list(http.GROUPS[group]())
    found = await comparison.http_differences(dict.fromkeys(pypi.ENVOY_VERSIONS, cases), tmp_path)
    assert not found, found


async def test_every_host_function_returns_the_same(tmp_path: Path) -> None:
    cases = {version: list(hostcalls.cases(version)) for version in pypi.ENVOY_VERSIONS}
    found = await comparison.http_differences(cases, tmp_path)
    assert not found, found


async def test_tcp_filters_do_the_same(tmp_path: Path) -> None:
    cases = {version: list(tcp.cases()) for version in pypi.ENVOY_VERSIONS}
    found = await comparison.differences(
        cases,
        tmp_path,
        in_sandbox=tcpcomparison.in_sandbox,
        in_envoy=tcpcomparison.in_envoy,
    )
    assert not found, found
