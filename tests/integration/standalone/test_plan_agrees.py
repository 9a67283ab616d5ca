"""`wasmc plan` and `wasmer standalone` over the same files: the same objects with the same values, or the same refusal."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.parts import envoy as envoys
from tests.parts import registry, wasmer, wat
from tests.parts.clients import Client, Completed
from tests.parts.wasmer import Wasmer

HEAD = "apiVersion: wasm.tcm.io/v1alpha1\nkind: AutoWasm\n"
SPEC = """\
spec:
  filter: {source: {registry: {image: "IMAGE"}}, FIELDS}
  selector: {matchLabels: {app: a}}
"""


def autowasm(name: str, fields: str = "applyPorts: [80]") -> str:
    return f"{HEAD}metadata: {{name: {name}}}\n" + SPEC.replace("FIELDS", fields)


GOOD = {
    "numbers": autowasm("numbers", "pluginConfig: {time: 22:22, rate: 1e3, oct: 0o17, big: 123456789012345678901, y: y, f: 1.0}"),
    "quoted": autowasm("quoted", "env: [{name: A, value: 'y'}, {name: B, value: 22:22}, {name: C, value: \"0X1F\"}], rootID: 'n'"),
    "keys": autowasm("keys", "pluginConfig: {8080: a, true: b, 1.5: c}"),
    "merged": autowasm("merged", "pluginConfig: {a: &a {x: 1, y: 2}, b: {x: 0, <<: *a, 'y': 3}, c: *a}"),
    "tabs": autowasm("tabs").replace("kind: AutoWasm\n", "kind: AutoWasm\t# a comment\n"),
    "windows": autowasm("windows").replace("\n", "\r\n"),
    "mark": "\ufeff---\n" + autowasm("mark"),
    "list": "apiVersion: v1\nkind: List\nitems:\n" + "".join(f"  {line}\n" if number else f"- {line}\n" for number, line in enumerate(autowasm("list").splitlines())),
    "others": "apiVersion: v1\nkind: ConfigMap\n---\n" + autowasm("others"),
    "key-twice": autowasm("key-twice", "rootID: a, rootID: b"),
    "two": autowasm("two-a") + "---\n" + autowasm("two-b", "rootID: x"),
    "rest": autowasm("rest") + "...\n" + autowasm("not-read"),
}  # fmt: skip
"""A file of each kind that kubectl takes."""
BAD = {
    "empty": "",
    "comment": "# later\n---\n",
    "null": "null\n",
    "half": HEAD + "metadata: {na",
    "half-second": autowasm("half-second") + "---\n" + HEAD,
    "indented": HEAD + "metadata:\n\tname: a\n",
    "bytes": HEAD + "# \xff\n",
    "text": "just text\n",
    "not-kind": "metadata: {name: a}\n",
    "name": HEAD + "metadata: {name: y}\n",
    "later": autowasm("later").replace("v1alpha1", "v9"),
    "tight": HEAD + "metadata: {name: a}\n--- {kind: AutoWasm}\n",
    "secret": "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {p: 0123}\n---\n" + autowasm("secret"),
}  # fmt: skip
"""A file of each kind that is refused."""
TWICE = autowasm("twice") + "---\n" + autowasm("single", "rootID: a") + "---\n" + autowasm("twice")
WRONG = autowasm("wrong", "applyPorts: [22:22]")


@dataclass(slots=True)
class ConfigurationFolder:
    """One `wasmer standalone`, `wasmc`, and the image that both find."""

    server: Wasmer
    wasmc: Client
    image: str

    def write(self, name: str, text: str) -> Path:
        path = self.server.config / f"{name}.yaml"
        encoding = "latin-1" if name == "bytes" else "utf-8"
        path.write_bytes(text.replace("IMAGE", self.image).encode(encoding))
        return path

    async def plan(self, file: Path) -> Completed:
        return await self.wasmc.run("plan", "--offline", "--json", "-f", str(file), check=False)


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[ConfigurationFolder]:
    async with registry.distribution(tmp_path / "registry") as store:
        client = wasmer.wasmc(tmp_path)
        image = f"{store.host}/a/b:v1"
        await client.run("push", image, "-f", "-", stdin=wat.header_filter("world"))
        async with wasmer.standalone(
            tmp_path / "wasmer",
            template=envoys.listeners_yaml([80], cluster="web"),
            plain_http=[store.host],
        ) as server:
            yield ConfigurationFolder(server, client, image)


def configured(node: Any) -> Any:
    """All but where Envoy fetches from, which a plan without a cluster does not know."""
    if isinstance(node, dict):
        return {key: configured(value) for key, value in node.items() if key != "httpUri"}
    return [configured(each) for each in node] if isinstance(node, list) else node


async def test_plan_and_server_render_the_same_for_every_valid_file(
    folder: ConfigurationFolder,
) -> None:
    files = {name: folder.write(name, text) for name, text in GOOD.items()}
    for name, file in files.items():
        done = await folder.plan(file)
        assert done.returncode == 0, (name, done.stdout, done.stderr)
        planned = {each["name"]: each["envoyFilter"] for each in json.loads(done.stdout)}
        assert set(planned) == ({"two-a", "two-b"} if name == "two" else {name})
        for key, wanted in planned.items():
            await folder.server.wait_phase(key, "Synced")
            assert configured(folder.server.envoyfilter(key)) == configured(wanted), name
    assert folder.server.status("not-read") == {}


async def test_both_refuse_every_other_file_with_the_same_sentence(
    folder: ConfigurationFolder,
) -> None:
    files = {name: folder.write(name, text) for name, text in BAD.items()}
    folder.write("good", autowasm("good"))  # the others do not hold it up
    await folder.server.wait_phase("good", "Synced")
    log = folder.server.process.log.read_text()
    for name, file in files.items():
        done = await folder.plan(file)
        assert done.returncode == 2, name
        message = done.stderr.removeprefix(f"wasmc: error: -f {file}: ").strip()
        assert message, name
        assert json.loads(done.stdout)["error"]["message"] == f"-f {file}: {message}", name
        assert "0123" not in done.stderr
        assert any(
            f"{name}.yaml" in line and message in line.replace("\\'", "'")
            for line in log.splitlines()
        ), (name, message)
    assert await folder.server.metric("autowasm_config_files_unreadable") == len(BAD)


async def test_plan_and_server_refuse_one_object_and_accept_the_rest_of_its_file(
    folder: ConfigurationFolder,
) -> None:
    file = folder.write("twice", TWICE)
    done = await folder.plan(file)
    assert done.returncode == 1
    planned = {each["name"]: each for each in json.loads(done.stdout)}
    assert set(planned) == {"twice", "single"}
    assert planned["twice"]["envoyFilter"] is None
    status = await folder.server.wait_phase("twice", "Failed")
    for message in (json.dumps(planned["twice"]["findings"]), status["message"]):
        assert f"default/twice is defined more than once, in {file}" in message
    await folder.server.wait_phase("single", "Synced")
    assert folder.server.envoyfilter("twice") == {}
    wanted = configured(planned["single"]["envoyFilter"])
    assert configured(folder.server.envoyfilter("single")) == wanted


async def test_plan_and_server_name_the_same_invalid_field(folder: ConfigurationFolder) -> None:
    done = await folder.plan(folder.write("wrong", autowasm("wrong", "applyPorts: [22:22]")))
    assert done.returncode == 1
    (planned,) = json.loads(done.stdout)
    status = await folder.server.wait_phase("wrong", "Failed")
    finding = next(each for each in planned["findings"] if each["level"] == "error")
    assert f"{finding['field']}: {finding['what']}" == status["message"]
