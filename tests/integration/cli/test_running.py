"""`wasmc run`, `test`, `plan` and `inspect --start` with filters from C, and with modules of a registry."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.parts import filters, registry, wasmer
from tests.parts.clients import Completed
from tests.parts.commandline import CommandLine

AUTOWASM = """
apiVersion: wasm.tcm.io/v1alpha1
kind: AutoWasm
metadata: {{name: refuser, namespace: shop}}
spec:
  filter:
    source: {{registry: {{image: {image}}}}}
    pluginConfig: {config}
    rootID: my-root
    env: [{{name: COLOUR, value: blue}}]
  selector: {{matchLabels: {{app: a}}}}
"""


class FilterCommands(CommandLine):
    """`wasmc` in a folder in which each filter is a file."""

    async def run(self, *arguments: str, status: int = 0, stdin: str = "") -> Completed:
        done = await self.wasmc.run(*arguments, check=False, stdin=stdin.encode())
        assert (done.returncode, done.stderr) == (status, ""), done.stdout
        return done

    async def json(self, *arguments: str, status: int = 0, stdin: str = "") -> Any:
        done = await self.run(*arguments, "--json", status=status, stdin=stdin)
        return json.loads(done.stdout)


@pytest.fixture
async def command_line(tmp_path: Path) -> AsyncIterator[FilterCommands]:
    client = wasmer.wasmc(tmp_path)
    for name in ("callout", "echo", "refuse-config", "buffer-body"):
        module = await asyncio.to_thread(filters.build, name)
        await asyncio.to_thread((tmp_path / f"{name}.wasm").write_bytes, module.read_bytes())
    async with registry.distribution(tmp_path / "registry") as store:
        yield FilterCommands(tmp_path, store, client)


def headers(message: Any) -> dict[str, str]:
    return {each["name"]: each["value"] for each in message["headers"]}


async def test_image_runs_like_its_file(command_line: FilterCommands) -> None:
    await command_line.run("push", command_line.image("refuser"), "-f", "refuse-config.wasm")
    arguments = ("--config", "hello", "--response-body", "x")
    image = await command_line.json("run", command_line.image("refuser"), *arguments)
    file = await command_line.json("run", "refuse-config.wasm", *arguments)
    piped = await command_line.wasmc.run(
        *("run", "-", *arguments, "--json"),
        stdin=(command_line.home / "refuse-config.wasm").read_bytes(),
    )
    assert image["module"]["source"] == command_line.image("refuser")
    assert headers(file["exchange"]["response"])["x-configuration"] == "hello"
    for other in (image, json.loads(piped.stdout)):
        assert {**other, "module": None} == {**file, "module": None}


async def test_callout_is_answered_from_a_file_and_fails_without(
    command_line: FilterCommands,
) -> None:
    (command_line.home / "auth.http").write_text("HTTP/1.1 403 Forbidden\nx-a: b\n\nno")
    arguments = ("run", "callout.wasm", "--config", "auth /check")
    found = await command_line.json(*arguments, "--call", "auth=auth.http")
    assert headers(found["exchange"]["request"])["x-callout"] == "403"
    (callout,) = found["callouts"]
    assert (callout["cluster"], callout["known"], callout["status"]) == ("auth", True, 403)
    (command_line.home / "auth.yaml").write_text("broken: true\n")
    found = await command_line.json(*arguments, "--call", "auth=auth.yaml")
    assert headers(found["exchange"]["request"])["x-callout"] == "503"
    found = await command_line.json(*arguments)
    assert headers(found["exchange"]["request"])["x-callout"] == "error 2"
    assert found["callouts"][0]["known"] is False


async def test_run_of_an_autowasm_gives_the_filter_the_same_input_as_envoy(
    command_line: FilterCommands,
) -> None:
    await command_line.run("push", command_line.image("echo"), "-f", "echo.wasm")
    text = AUTOWASM.format(image=command_line.image("echo"), config='{b: 1, a: "x"}')
    found = await command_line.json("run", "-f", "-", "-H", "x-echo: any", stdin=text)
    echo = filters.Echo.parse(found["exchange"]["response"]["body"].encode())
    assert echo.configuration == b'{"a":"x","b":1}'
    assert (echo.plugin_name, echo.root_id) == ("refuser", "my-root")
    assert echo.environment == {"COLOUR": "blue"}
    assert echo.vm_id.startswith(f"shop.refuser-{found['module']['sha256'][:12]}-")


async def test_suite_of_a_filter_from_c_sends_bodies_and_callouts(
    command_line: FilterCommands,
) -> None:
    suite = {
        "defaults": {"module": "buffer-body.wasm"},
        "cases": [
            {
                "name": "pieces of a body",
                "request": {"method": "POST", "body": {"pieces": ["ab", "c"]}},
                "expect": {
                    "request": {"body": "abc"},
                    "response": {"headers": {"x-body": "3 294"}},
                },
            },
            {
                "name": "callout",
                "module": "callout.wasm",
                "config": "auth /check",
                "callouts": {"auth": [{"status": 204}, {"broken": True}]},
                "steps": [
                    {
                        "expect": {
                            "response": {"headers": {"x-callout": "204"}},
                            "callouts": [{"cluster": "auth", "path": "/check"}],
                        }
                    },
                    {"expect": {"request": {"headers": {"x-callout": "503"}}}},
                ],
            },
        ],
    }
    (command_line.home / "suite.json").write_text(json.dumps(suite))
    done = await command_line.run("test", "suite.json")
    assert "2 passed" in done.stdout


async def test_plan_reports_a_refused_configuration_and_the_command_that_shows_it(
    command_line: FilterCommands,
) -> None:
    await command_line.run("push", command_line.image("refuser"), "-f", "refuse-config.wasm")
    file = command_line.home / "a.yaml"
    file.write_text(AUTOWASM.format(image=command_line.image("refuser"), config="please refuse"))
    (plan,) = await command_line.json("plan", "--offline", "-f", "a.yaml", status=1)
    (finding,) = [one for one in plan["findings"] if one["check"] == "Starts"]
    assert finding["level"] == "error"
    assert finding["what"].startswith("ConfigurationRefused: spec.filter.pluginConfig")
    _, _, command = finding["remedy"].partition("to reproduce: ")
    assert command == "wasmc run -f a.yaml --name refuser"
    found = await command_line.json(*command.split()[1:], status=1)
    assert found["start"]["reason"] == "ConfigurationRefused"
    file.write_text(AUTOWASM.format(image=command_line.image("refuser"), config="hello"))
    (plan,) = await command_line.json("plan", "--offline", "-f", "a.yaml")
    (finding,) = [one for one in plan["findings"] if one["check"] == "Starts"]
    assert finding["level"] == "ok"


async def test_image_is_inspected_with_its_start(command_line: FilterCommands) -> None:
    await command_line.run("push", command_line.image("refuser"), "-f", "refuse-config.wasm")
    arguments = ("inspect", command_line.image("refuser"), "--start", "--config")
    found = await command_line.json(*arguments, "please refuse", status=1)
    assert found["start"]["reason"] == "ConfigurationRefused"
    assert (
        found["start"]["command"]
        == f"wasmc run {command_line.image('refuser')} --config 'please refuse'"
    )
    await command_line.json(*arguments, "hello")
