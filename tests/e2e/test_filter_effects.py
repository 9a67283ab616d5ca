"""The input of a filter and the client's response, for each field of the EnvoyFilter, as the filter itself reports them.

The filter `echo` answers with the bytes that it received. `trap` stops with an error at a request with many headers.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.e2e.conftest import Standalone, StandaloneStarter
from tests.parts import filters, ports, pypi, wat, wire
from tests.parts.filters import Echo

CONFIG = (
    '{"zulu": {"y": "y", "rate": 0.5, "list": [1, "0X1F", null, true]}, "alpha": "é\\u2028", '
    '"big": 9007199254740993, "id": 9223372036854775807, "one": 1, "whole": 1.0}'
)
RECEIVED = (
    '{"zulu":{"y":"y","rate":0.5,"list":[1,"0X1F",null,true]},"alpha":"é\u2028",'
    '"big":9007199254740993,"id":9223372036854775807,"one":1,"whole":1}'
)

TRAP = """
(module
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "hello") (data (i32.const 32) "trap")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 4096))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (if (i32.gt_u (local.get 1) (i32.const 20)) (then unreachable))
    (i32.const 0))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (drop (call $add (i32.const 2) (i32.const 16) (i32.const 5) (i32.const 32) (i32.const 4)))
    (i32.const 0))
  (func (export "proxy_on_done") (param i32) (result i32) (i32.const 1))
  (func (export "proxy_on_log") (param i32))
  (func (export "proxy_on_delete") (param i32)))
"""


async def received(standalone: Standalone, plugin: str = "test", **wanted: Any) -> Echo:
    """The input of `echo`, once its attributes have the `wanted` values. Raises TimeoutError with the last answer."""
    last: Echo | None = None
    host = f"{ports.LOOPBACK}:{standalone.port}"
    try:
        async with asyncio.timeout(20):
            while True:
                last = await filters.ask_echo(host, plugin=plugin)
                if last and all(getattr(last, name) == value for name, value in wanted.items()):
                    return last
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise TimeoutError(f"echo does not receive {wanted}; its last answer: {last}") from error


async def echo_standalone(
    start_standalone: StandaloneStarter, version: str
) -> tuple[Standalone, str]:
    standalone = await start_standalone(version=version)
    module = await asyncio.to_thread(lambda: filters.build("echo").read_bytes())
    return standalone, await standalone.push("echo", module)


def env(**variables: str) -> list[Mapping[str, str]]:
    return [{"name": name, "value": value} for name, value in variables.items()]


@pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)
async def test_filter_receives_its_configuration_and_each_change_of_it(
    start_standalone: StandaloneStarter, version: str
) -> None:
    standalone, image = await echo_standalone(start_standalone, version)
    standalone.wasmer.apply(
        standalone.autowasm(image, pluginConfig=json.loads(CONFIG), rootID="root")
    )
    got = await received(standalone, root_id="root")
    assert got.configuration.decode() == RECEIVED

    for text in ('{"as": "text",  "it": 1.0}', "y", "0X1F", "", "two\nlines\u0085"):
        standalone.wasmer.apply(standalone.autowasm(image, pluginConfig=text))
        await received(standalone, configuration=text.encode())
    standalone.wasmer.apply(standalone.autowasm(image, pluginConfig={}))
    await received(standalone, configuration=b"{}")


@pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)
async def test_filter_receives_a_changed_environment_and_never_that_of_another(
    start_standalone: StandaloneStarter, version: str
) -> None:
    standalone, image = await echo_standalone(start_standalone, version)
    standalone.wasmer.apply(standalone.autowasm(image, vmID="shared", env=env(A="one")))
    await received(standalone, environment={"A": "one"})
    standalone.wasmer.apply(
        standalone.autowasm(image, name="other", vmID="shared", env=env(A="two"))
    )
    await received(standalone, plugin="other", environment={"A": "two"})
    assert (await received(standalone, environment={"A": "one"})).plugin_name == "test"

    standalone.wasmer.apply(standalone.autowasm(image, vmID="shared", env=env(A="three", B="")))
    await received(standalone, environment={"A": "three", "B": ""})
    standalone.wasmer.apply(standalone.autowasm(image, vmID="shared"))
    await received(standalone, environment={})
    await received(standalone, plugin="other", environment={"A": "two"})


async def in_force(standalone: Standalone, strategy: str) -> None:
    """Wait until the listener in use has the filter with this failStrategy. Raises TimeoutError."""
    async with asyncio.timeout(20):
        while True:
            dump = await standalone.envoy.config_dump()
            (listeners,) = (
                part["dynamic_listeners"]
                for part in dump["configs"]
                if part["@type"].endswith("ListenersConfigDump")
            )
            active = json.dumps([each.get("active_state") for each in listeners])
            has_filter = "envoy.wasm.runtime.v8" in active
            if has_filter and ('"fail_open": true' in active) == (strategy == "FAIL_OPEN"):
                return
            await asyncio.sleep(0.05)


async def after_a_trap(standalone: Standalone) -> int:
    """The status of requests after one that crashed the filter; it must be the same on every worker."""
    url = f"http://{ports.LOOPBACK}:{standalone.port}/"
    many = {f"x-{number}": "" for number in range(30)}
    for _ in range(20):
        await wire.request("GET", url, headers=many)
    answers = [await wire.get(url) for _ in range(20)]
    assert not any("hello" in answer.headers for answer in answers), "the filter did not trap"
    statuses = {answer.status for answer in answers}
    assert len(statuses) == 1, statuses
    return statuses.pop()


@pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)
async def test_changed_fail_strategy_takes_effect(
    start_standalone: StandaloneStarter, version: str
) -> None:
    """Found on 1.36: after FAIL_OPEN → FAIL_CLOSE a crashed filter still let requests pass."""
    standalone = await start_standalone(version=version)
    image = await standalone.push("trap", await asyncio.to_thread(wat.compile_text, TRAP))
    before = "FAIL_CLOSE"
    for strategy, status in (("FAIL_OPEN", 200), ("FAIL_CLOSE", 503), ("FAIL_OPEN", 200)):
        standalone.wasmer.apply(standalone.autowasm(image, failStrategy=before, rootID=strategy))
        await standalone.load.wait_for("trap")
        standalone.wasmer.apply(standalone.autowasm(image, failStrategy=strategy, rootID=strategy))
        await in_force(standalone, strategy)
        await standalone.load.wait_for("trap")
        assert await after_a_trap(standalone) == status, strategy
        before = strategy


@pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)
async def test_filter_that_is_first_is_before_those_of_a_lower_priority(
    start_standalone: StandaloneStarter, version: str
) -> None:
    standalone = await start_standalone(version=version)
    for name, fields in (("first", {"position": "First"}), ("lowest", {"priority": -5})):
        image = await standalone.push_header(name)
        standalone.wasmer.apply(standalone.autowasm(image, name=name, **fields))
    host = f"{ports.LOOPBACK}:{standalone.port}"
    # A response passes the filters in reverse order.
    await filters.until_answer(host, lambda one: one.headers.get("hello") == "lowest, first")


@pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)
async def test_filter_gets_the_body_of_headers_that_it_holds_where_it_is_allowed(
    start_standalone: StandaloneStarter, version: str
) -> None:
    standalone = await start_standalone(version=version)
    module = await asyncio.to_thread(lambda: filters.build("probe").read_bytes())
    image = await standalone.push("probe", module)
    host = f"{ports.LOOPBACK}:{standalone.port}"
    script = "request_headers return 1\nrequest_body reply 200 got-it"
    held = standalone.autowasm(image, pluginConfig=script, allowOnHeadersStopIteration=True)
    standalone.wasmer.apply(held)
    async with asyncio.timeout(90):
        while True:
            answer = await wire.request("POST", f"http://{host}/", body=b"body")
            if answer.body == b"got-it":
                break
            await asyncio.sleep(0.05)  # until Envoy runs the filter
