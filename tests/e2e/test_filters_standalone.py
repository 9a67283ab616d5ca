"""Filters from real toolchains behind `wasmer standalone`, on each Envoy: the input of the filter, and its effects on requests.

`test_filters_failing.py` tests filters that fail.
"""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from tests.e2e import filterstand
from tests.e2e.filterstand import Stand
from tests.parts import filters, pypi, wire

# A module from Go has 2 MB. Envoy needs a second to compile it, or many seconds on a busy machine.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

UNCOMMON = 'say "hällo" to: {a: [1]}\n\t- \\ & # %s\n '


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=pypi.ENVOY_VERSIONS)
async def stand(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stand]:
    async with filterstand.running(tmp_path_factory.mktemp("filters"), request.param) as found:
        yield found


# --- the input of the filter


@pytest.mark.parametrize("toolchain", filters.TOOLCHAINS)
async def test_filter_receives_configuration_environment_root_id_and_vm_id(
    stand: Stand, toolchain: str
) -> None:
    case = await stand.case("echo", toolchain)
    environment = {"PLAIN": "value", "EMPTY": "", "UNCOMMON": f"=a b,{UNCOMMON}"}
    case.apply(
        pluginConfig=UNCOMMON,
        rootID="echo",
        vmID="shared",
        env=[{"name": name, "value": value} for name, value in environment.items()],
    )

    received = await case.echo(lambda echo: echo.configuration != b"")

    assert received.configuration.decode() == UNCOMMON
    assert dict(received.environment) == environment
    assert received.root_id == "echo"
    assert received.vm_id.startswith(f"shared-{case.digest[:12]}")
    assert received.plugin_name == case.name


async def test_filter_receives_nothing_that_the_object_does_not_have(stand: Stand) -> None:
    case = await stand.case("echo", "c")
    case.apply()
    await case.runs()

    received = await case.echo(lambda _: True)

    assert (received.configuration, received.vm_configuration) == (b"", b"")
    assert (received.root_id, dict(received.environment)) == ("", {})
    assert received.vm_id == f"default.{case.name}-{case.digest[:12]}"


async def test_running_filter_receives_a_changed_configuration_and_root_id(stand: Stand) -> None:
    case = await stand.case("echo", "c")
    case.apply(pluginConfig="first", rootID="one")
    before = await case.echo(lambda echo: echo.configuration == b"first")

    case.apply(pluginConfig="second", rootID="two")
    after = await case.echo(lambda echo: echo.configuration == b"second")

    assert (before.root_id, after.root_id) == ("one", "two")


async def test_two_objects_with_one_module_and_one_vm_id_receive_their_own_configuration(
    stand: Stand,
) -> None:
    case = await stand.case("echo", "c")
    other = replace(case, name=f"{case.name}-other")
    case.apply(vmID="common", pluginConfig="first", rootID="one")
    other.apply(vmID="common", pluginConfig="second", rootID="two")

    for each, configuration, root in ((case, "first", "one"), (other, "second", "two")):
        received = await case.echo(lambda echo: echo.configuration != b"", plugin=each.name)
        assert (received.configuration.decode(), received.root_id) == (configuration, root)


# --- effects of filters on requests


@pytest.mark.parametrize("toolchain", ["c", "assemblyscript"])
async def test_filter_answers_in_place_of_the_service(stand: Stand, toolchain: str) -> None:
    case = await stand.case("deny", toolchain)
    case.apply(rootID="deny")

    answer = await case.wait_for(lambda one: one.status == 403)

    assert answer.body == b"denied by the filter deny\n"


@pytest.mark.parametrize("toolchain", ["c", "go"])
async def test_filter_reads_a_whole_request_body_and_the_service_receives_it(
    stand: Stand, toolchain: str
) -> None:
    case = await stand.case("buffer-body", toolchain)
    case.apply()
    await case.runs()
    body = bytes(range(256)) * 1000

    answer = await wire.request("POST", f"http://{case.host}/", body=body)

    assert answer.status == 200
    assert answer.headers["x-body"] == f"{len(body)} {sum(body)}"


@pytest.mark.parametrize(
    ("toolchain", "configuration", "outcome"),
    [
        ("c", "web /?status=207", "207"),
        ("go", "web /?status=207", "207"),
        ("c", "gone /", "503"),
        ("c", "unknown /", "error 2"),
    ],
)
async def test_filter_calls_another_cluster_before_the_request_passes(
    stand: Stand, toolchain: str, configuration: str, outcome: str
) -> None:
    case = await stand.case("callout", toolchain)
    case.apply(pluginConfig=configuration)
    answer = await case.runs()

    assert (answer.status, answer.headers["x-callout"]) == (200, outcome)
    assert f'"x-callout": "{outcome}"'.encode() in answer.body  # the request at the service
