"""Filters from real toolchains behind `wasmer standalone`, on each Envoy: the input of the filter, and the response to the client.

One Envoy for all cases of a version, with one worker, so that a filter that crashed is met again by the next request. Each
case has a listener of its own.
"""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.parts import envoy as envoys
from tests.parts import filters, ports, pypi, registry, wasmer, wat, wire
from tests.parts.envoy import Envoy
from tests.parts.filters import Echo
from tests.parts.registry import RegistryServer
from tests.parts.upstream import upstream
from tests.parts.wasmer import Wasmer
from tests.parts.wire import Answer

# A module from Go has 2 MB. Envoy compiles it for a second, or for many if other programs use the processor, too.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LISTENERS = 48  # at least one for each case
TIMEOUT = 90
LOG_TAIL = 4000
"""Characters of Envoy's log in the note of a failure."""
STRATEGIES = ("FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD")
UNCOMMON = 'say "hällo" to: {a: [1]}\n\t- \\ & # %s\n '


@dataclass
class Case:
    """One AutoWasm, and the listener that it is for."""

    stand: "Stand"
    name: str
    port: int
    image: str
    digest: str

    @property
    def host(self) -> str:
        """Where the listener is."""
        return f"{ports.LOOPBACK}:{self.port}"

    def apply(self, image: str = "", **fields: Any) -> None:
        """Apply the AutoWasm with these fields in `spec.filter`; `image` is in place of the case's own."""
        source = {"registry": {"image": image or self.image}}
        self.stand.wasmer.apply(
            {
                "apiVersion": "wasm.tcm.io/v1alpha1",
                "kind": "AutoWasm",
                "metadata": {"name": self.name, "namespace": "default"},
                "spec": {
                    "filter": {"applyPorts": [self.port], "source": source, **fields},
                    "selector": {"matchLabels": {"app": "details"}},
                },
            }
        )

    async def ask(self, **headers: str) -> Answer:
        """A request with these headers; `_` in a name stands for `-`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await wire.get(f"http://{self.host}/", headers=given)

    async def wait_for(self, condition: Callable[[Answer], bool]) -> Answer:
        """The first answer that fulfils the condition. Raises TimeoutError with the status and the end of Envoy's log."""
        try:
            return await filters.until_answer(self.host, condition)
        except TimeoutError as error:
            status = await asyncio.to_thread(self.stand.wasmer.status, self.name)
            error.add_note(f"status of {self.name}: {status}")
            error.add_note((await self.stand.envoy.log_text())[-LOG_TAIL:])
            raise

    async def runs(self) -> Answer:
        """The first answer that the filter has seen."""
        return await self.wait_for(lambda answer: "x-filter" in answer.headers)

    async def wait_for_header(self, name: str, value: str) -> Answer:
        """The first answer of 200 with this header."""
        return await self.wait_for(
            lambda answer: answer.status == 200 and answer.headers.get(name) == value
        )

    async def echo(self, wanted: Callable[[Echo], bool], *, plugin: str = "any") -> Echo:
        """The input that the filter echo reports, once it has the wanted values."""
        return await filters.until_echo(self.host, wanted, plugin=plugin)


@dataclass
class Stand:
    """The running parts: a registry, wasmer, an Envoy with many listeners, and a service that echoes requests."""

    directory: Path
    registry: RegistryServer
    wasmer: Wasmer
    envoy: Envoy
    service: str
    free: Iterator[int]
    numbers: Iterator[int] = field(default_factory=itertools.count)
    pushed: set[str] = field(default_factory=set)

    async def case(self, filter_: str, toolchain: str) -> Case:
        """A listener and a pushed module of the filter; nothing is applied yet."""
        path = await asyncio.to_thread(filters.build, filter_, toolchain=toolchain)
        image = f"{self.registry.host}/filters/{filter_}:{toolchain}"
        if image not in self.pushed:
            await wasmer.wasmc(self.directory).run("push", image, "-f", str(path))
            self.pushed.add(image)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = f"{filter_}-{toolchain}-{next(self.numbers)}"
        return Case(self, name, next(self.free), image, digest)

    async def push_another(self, filter_: str, toolchain: str, *, tag: str) -> str:
        """Push the filter with other bytes, so that Envoy does not have it in its cache; the reference."""
        path = await asyncio.to_thread(filters.build, filter_, toolchain=toolchain)
        module = path.read_bytes()
        file = self.directory / f"{tag}.wasm"
        file.write_bytes(wat.padded(module, size=len(module) + 16 + next(self.numbers)))
        image = f"{self.registry.host}/filters/{filter_}:{tag}"
        await wasmer.wasmc(self.directory).run("push", image, "-f", str(file))
        return image

    async def logged(self, text: str) -> None:
        """Until Envoy's log has the text."""
        async with asyncio.timeout(TIMEOUT):
            while text not in await self.envoy.log_text():
                await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=pypi.ENVOY_VERSIONS)
async def stand(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stand]:
    directory = tmp_path_factory.mktemp("filters")
    listeners = ports.free_ports(LISTENERS)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        web = await enter(upstream())
        store = await enter(registry.distribution(directory / "registry"))
        server = await enter(
            wasmer.standalone(
                directory / "wasmer",
                template=envoys.listeners_yaml(listeners, cluster="web"),
                plain_http=[store.host],
                arguments=["--preflight", "off"],  # refusals are to reach Envoy
            )
        )
        clusters = {
            "web": web.host,
            "gone": f"{ports.LOOPBACK}:{ports.free_port()}",
            wasmer.ENVOY_CLUSTER: server.host,
        }
        proxy = await enter(
            envoys.envoy(
                directory / "envoy",
                lds=server.lds,
                clusters=clusters,
                version=request.param,
                concurrency=1,
                log_level="info",
            )
        )
        yield Stand(directory, store, server, proxy, web.host, iter(listeners))


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


# --- the response of a filter that fails: the table of docs/explanation/envoy.md


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
async def test_filter_asks_another_cluster_before_the_request_passes(
    stand: Stand, toolchain: str, configuration: str, outcome: str
) -> None:
    case = await stand.case("callout", toolchain)
    case.apply(pluginConfig=configuration)
    answer = await case.runs()

    assert (answer.status, answer.headers["x-callout"]) == (200, outcome)
    assert f'"x-callout": "{outcome}"'.encode() in answer.body  # the request at the service
