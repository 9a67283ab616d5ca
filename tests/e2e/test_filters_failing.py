"""Filters from real toolchains that fail behind `wasmer standalone`, on each Envoy: the response to the client.

The expected responses are the table of docs/explanation/envoy.md.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e import filterstand
from tests.e2e.filterstand import Stand
from tests.parts import filters, pypi

# A module from Go has 2 MB. Envoy needs a second to compile it, or many seconds on a busy machine.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

STRATEGIES = ("FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=pypi.ENVOY_VERSIONS)
async def stand(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stand]:
    async with filterstand.running(tmp_path_factory.mktemp("filters"), request.param) as found:
        yield found


@pytest.mark.parametrize(
    ("toolchain", "phase"),
    [("c", "request"), ("go", "request"), ("c", "response"), ("assemblyscript", "response")],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_filter_that_fails_on_a_request_or_its_response(
    stand: Stand, strategy: str, toolchain: str, phase: str
) -> None:
    case = await stand.case("fail-on-request", toolchain)
    case.apply(failStrategy=strategy, rootID="fail-on-request")
    assert (await case.runs()).status == 200

    at_once = await case.ask(x_fail=phase)
    assert at_once.status == (200 if strategy == "FAIL_OPEN" else 503)

    if strategy == "FAIL_CLOSE":
        for _ in range(5):
            assert (await case.ask()).status == 503
        case.apply(failStrategy=strategy, rootID="fail-on-request", pluginConfig="changed")
        assert (await case.runs()).status == 200
    elif strategy == "FAIL_OPEN":
        for _ in range(5):
            answer = await case.ask()
            assert (answer.status, answer.headers.get("x-filter")) == (200, None)
    else:
        assert (await case.runs()).status == 200


@pytest.mark.parametrize("toolchain", filters.TOOLCHAINS)
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_configuration_that_a_filter_refuses_is_rejected_by_an_envoy_that_has_the_module(
    stand: Stand, strategy: str, toolchain: str
) -> None:
    case = await stand.case("refuse-config", toolchain)

    def apply(configuration: str) -> None:
        case.apply(failStrategy=strategy, rootID="refuse-config", pluginConfig=configuration)

    apply("accepted")
    await case.wait_for_header("x-configuration", "accepted")

    apply(f"refuse {case.name}")
    await stand.logged(f"the configuration contains the word refuse: refuse {case.name}")
    await stand.logged(f"Plugin {case.name} failed to load")
    for _ in range(5):
        answer = await case.ask()
        assert (answer.status, answer.headers["x-configuration"]) == (200, "accepted")

    apply("good")
    await case.wait_for_header("x-configuration", "good")


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_new_module_that_refuses_its_configuration_takes_the_place_of_the_old_one(
    stand: Stand, strategy: str
) -> None:
    case = await stand.case("refuse-config", "c")
    case.apply(failStrategy=strategy, pluginConfig="accepted")
    await case.wait_for_header("x-configuration", "accepted")
    new = await stand.push_another("refuse-config", "c", tag=case.name)

    case.apply(new, failStrategy=strategy, pluginConfig="refuse this")

    if strategy == "FAIL_OPEN":
        await case.wait_for(lambda one: one.status == 200 and "x-filter" not in one.headers)
    else:
        await case.wait_for(lambda one: one.status == 503)

    case.apply(new, failStrategy=strategy, pluginConfig="good")
    await case.wait_for_header("x-configuration", "good")
