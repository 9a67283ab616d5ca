"""Input and output files of `wasmer standalone`, by their effect on Envoy, on a client's response, and on the status."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Standalone, StandaloneStarter
from tests.parts import envoy as envoys
from tests.parts import ports, pypi, wasmer, wire

ODD = [
    "y",
    "N",
    "0X1F",
    "1_000",
    ".inf",
    "~",
    "22:22",
    "0o17",
    "1e3",
    "null",
    "a\n b\n",
    " # ",
    "\u2028\x85",
    "2021-10-27",
]
"""Texts that some YAML reader parses as another type."""


async def until(condition: Callable[[], Awaitable[bool]], *, timeout: float = 30) -> None:
    async with asyncio.timeout(timeout):
        while not await condition():
            await asyncio.sleep(0.05)


async def header(port: int, name: str) -> str | None:
    """The header of Envoy's answer; None if there is none."""
    try:
        answer = await wire.get(f"http://{ports.LOOPBACK}:{port}/")
    except OSError:
        return None
    return answer.headers.get(name)


@pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)
async def test_envoy_takes_every_text_that_an_autowasm_may_hold(
    start_standalone: StandaloneStarter, version: str
) -> None:
    """The same for an Envoy that starts: it has no older listeners to fall back on."""
    standalone = await start_standalone(version=version)
    image = await standalone.push_header("world")
    env = [{"name": f"N{number}", "value": text} for number, text in enumerate(ODD)]
    env += [{"name": name, "value": name} for name in ("y", "n", "NULL")]
    config = {text: [text] for text in ODD if text.isprintable()}
    fields: dict[str, Any] = {"env": env, "rootID": "y", "vmID": "0X1F", "pluginConfig": config}
    standalone.wasmer.apply(standalone.autowasm(image, name="y", **fields), file="y.yaml")

    await standalone.wasmer.wait_phase("y", "Synced")

    fresh = await standalone.another_envoy("fresh", version=version)
    for proxy in (standalone.envoy, fresh):
        await until(lambda proxy=proxy: takes(proxy))  # type: ignore[misc]
    kept = await variables(fresh)
    assert kept == {each["name"]: each["value"] for each in env}
    assert await header(standalone.port, "hello") == "world"


async def takes(proxy: envoys.Envoy) -> bool:
    """Whether the listener in use has the filter: until its module has arrived, the previous listener answers."""
    stats = await proxy.stats("listener_manager.")
    assert stats.get("listener_manager.lds.update_rejected", 0) == 0
    listeners = [
        each.get("active_state")
        for part in (await proxy.config_dump())["configs"]
        for each in part.get("dynamic_listeners", ())
    ]
    return "envoy.wasm.runtime.v8" in json.dumps(listeners) and await proxy.ready()


async def variables(proxy: envoys.Envoy) -> dict[str, str]:
    """The environment of the filter in Envoy's configuration."""
    found: list[dict[str, str]] = []

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if "key_values" in node or "keyValues" in node:
                found.append(node.get("key_values") or node["keyValues"])
            for each in node.values():
                look(each)
        elif isinstance(node, list):
            for each in node:
                look(each)

    look(await proxy.config_dump())
    return found[0]


TEMPLATE = """\
# The listeners of this laptop.
version_info: 1_000
resources:
  - "@type": type.googleapis.com/envoy.config.listener.v3.Listener
    name: 0b11   # a number to some
    address: {socket_address: {address: 127.0.0.1, port_value: %(port)s}}
    !ignore shared: &router
      name: envoy.filters.http.router
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
    filter_chains:
      - filters:
          - name: envoy.filters.network.http_connection_manager
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
              stat_prefix: 1e3
              route_config:
                virtual_hosts:
                  - name: 22:22
                    domains: ["*"]
                    response_headers_to_add:
                      - {header: {key: x-version, value: 1.10}}
                      - {header: {key: x-time, value: 22:22}}
                      - {header: {key: x-many, value: 1_000}}
                      - {header: {key: x-binary, value: 0b11}}
                      - {header: {key: x-float, value: .inf}}
                      - {header: {key: x-text, value: 'y'}}
                    routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: details}}}]
              http_filters:
                # The last one.
                - *router
"""
HEADERS = {"x-version": "1.10", "x-time": "22:22", "x-many": "1_000", "x-binary": "0b11", "x-float": ".inf", "x-text": "y"}  # fmt: skip


@pytest.mark.parametrize("form", ["document", "windows", "list", "one listener"])
async def test_template_keeps_its_meaning_for_envoy_with_and_without_a_filter(
    standalone: Standalone, tmp_path: Path, form: str
) -> None:
    port, folder = ports.free_port(), tmp_path / "laptop"
    template = TEMPLATE % {"port": port}
    rest = template.partition("resources:\n")[2]
    if form == "windows":
        template = template.replace("\n", "\r\n")
    elif form == "list":
        template = rest
    elif form == "one listener":
        template = "".join(f"{line[4:]}\n" for line in rest.splitlines()[1:])
    async with wasmer.standalone(
        folder, template=template, plain_http=[standalone.registry.host]
    ) as server:
        before = server.lds.read_bytes().decode()
        clusters = {wasmer.ENVOY_CLUSTER: server.host}
        async with envoys.envoy(tmp_path / "proxy", lds=server.lds, clusters=clusters):
            assert await headers(port, *HEADERS) == HEADERS
            document = standalone.autowasm(await standalone.push_header("world"))
            document["spec"]["filter"]["applyPorts"] = [port]
            server.apply(document)
            await until(lambda: says(port, "hello", "world"))
            assert await headers(port, *HEADERS) == HEADERS
        after = server.lds.read_bytes().decode()
    if form in {"document", "windows"}:
        assert before == template
    # Every line of it remains, in the same order, including comments.
    lines = iter(after.splitlines(keepends=True))
    assert all(line in lines for line in before.splitlines(keepends=True))
    assert [line.strip() for line in after.splitlines() if "#" in line] == [
        line.strip() for line in template.splitlines() if "#" in line
    ]


async def headers(port: int, *names: str) -> dict[str, str | None]:
    return {name: await header(port, name) for name in names}


async def says(port: int, name: str, value: str) -> bool:
    return await header(port, name) == value


DAMAGE = {
    "half-written": (lambda text: text[: text.index("source:")] + "source: {", "line "),
    "a tab": (lambda text: text.replace("  filter:", "\tfilter:"), "a tab cannot indent a line"),
    "emptied": (lambda text: "", "the file is empty"),
    "another version": (
        lambda text: text.replace("v1alpha1", "v9"),
        "(line 1): this version supports",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_file_that_becomes_unreadable_degrades_its_objects_while_the_filter_runs(
    standalone: Standalone, damage: str
) -> None:
    change, sentence = DAMAGE[damage]
    file = standalone.wasmer.config / "test.yaml"
    good = yaml.safe_dump(standalone.autowasm(await standalone.push_header("world")))
    file.write_text(good)
    await standalone.wasmer.wait_phase("test", "Synced")
    await until(lambda: says(standalone.port, "hello", "world"))
    async with standalone.load.steady() as load:
        file.write_text(change(good))

        status = await standalone.wasmer.wait_phase("test", "Degraded")

        ready = next(each for each in status["conditions"] if each["type"] == "Ready")
        assert ready["reason"] == "FileInvalid"
        assert str(file) in status["message"]
        assert sentence in status["message"]
        assert "the previous module" in status["message"]
        assert await standalone.wasmer.metric("autowasm_config_files_unreadable") == 1
        assert await header(standalone.port, "hello") == "world"

        file.write_text(good)

        await standalone.wasmer.wait_phase("test", "Synced")
        assert await standalone.wasmer.metric("autowasm_config_files_unreadable") == 0
    assert load.failed == 0, str(load)


async def test_a_file_without_permission_degrades_its_objects_after_a_restart_too(
    standalone: Standalone,
) -> None:
    """The tests may run as root, and no mode restricts root: a link to itself cannot be read by any user."""
    standalone.wasmer.apply(standalone.autowasm(await standalone.push_header("world")))
    await standalone.wasmer.wait_phase("test", "Synced")
    await standalone.load.wait_for("world")  # Envoy fetches nothing while wasmer restarts
    file = standalone.wasmer.config / "test.yaml"
    file.unlink()
    file.symlink_to(file)
    status = await standalone.wasmer.wait_phase("test", "Degraded")
    assert "test.yaml" in json.dumps(status)
    await standalone.wasmer.process.stop()
    await standalone.wasmer.start()
    status = await standalone.wasmer.wait_phase("test", "Degraded")
    assert "symbolic links" in json.dumps(status)
    assert await header(standalone.port, "hello") == "world"


async def test_output_of_kubectl_get_is_a_valid_config_file(standalone: Standalone) -> None:
    """`kubectl get autowasms -o yaml`: a List."""
    image = await standalone.push_header("world")
    items = [standalone.autowasm(image, name="one"), standalone.autowasm(image, name="two")]
    listed = {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}
    standalone.wasmer.apply(listed, file="all.yaml")
    for name in ("one", "two"):
        await standalone.wasmer.wait_phase(name, "Synced")
    await until(lambda: says(standalone.port, "hello", "world, world"))  # one of each
