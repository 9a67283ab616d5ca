"""What `push` and `pull` leave and print: -o, -q and --json, for people and for scripts."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts import clients, registry, wasmer, wat
from tests.parts.clients import Client

MODULE = wat.header_filter("world")
SHA256 = hashlib.sha256(MODULE).hexdigest()


@dataclass
class Scene:
    """An image in a registry."""

    home: Path
    image: str
    wasmc: Client
    digest: str

    async def pull(self, *arguments: str) -> str:
        return (await self.wasmc.run("pull", self.image, *arguments)).stdout


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with registry.crane(tmp_path / "registry") as server:
        image = f"{server.host}/team/filter:v1"
        wasmc = wasmer.wasmc(tmp_path)
        pushed = await wasmc.run("push", image, "-f", "-", stdin=MODULE)
        yield Scene(tmp_path, image, wasmc, pushed.stdout.split()[-1])


@pytest.mark.parametrize(
    ("output", "file"),
    [
        ("other.wasm", "other.wasm"),
        ("new/deep/other.wasm", "new/deep/other.wasm"),
        ("folder", "folder/filter.wasm"),
        ("folder/", "folder/filter.wasm"),
        ("new/", "new/filter.wasm"),
        ("old.wasm", "old.wasm"),
    ],
)
async def test_a_module_is_written_to_the_file_or_into_the_folder(
    scene: Scene, output: str, file: str
) -> None:
    (scene.home / "folder").mkdir()
    (scene.home / "old.wasm").write_bytes(b"old")
    assert f"Location: {file}\n" in await scene.pull("-o", output)
    assert (scene.home / file).read_bytes() == MODULE


async def test_a_module_is_streamed_to_standard_output(scene: Scene) -> None:
    process = await asyncio.create_subprocess_exec(
        wasmer.program("wasmc"),
        *("pull", scene.image, "-o", "-"),
        cwd=scene.home,
        env={**scene.wasmc.environment, "PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert (process.returncode, out) == (0, MODULE)
    assert err.decode() == f"Pulled {scene.image}\nSha256: {SHA256}\n"


async def test_a_module_goes_through_a_device_and_leaves_it(scene: Scene) -> None:
    assert "Location: /dev/null\n" in await scene.pull("-o", "/dev/null")
    assert not Path("/dev/null").is_file()


async def test_quiet_prints_one_line(scene: Scene) -> None:
    pushed = await scene.wasmc.run("push", scene.image, "-f", "-", "-q", stdin=MODULE)
    assert pushed.stdout == f"{scene.digest}\n"
    assert await scene.pull("-q", "-o", "x.wasm") == "x.wasm\n"
    assert await scene.pull("-q") == f"{scene.home / 'filter.wasm'}\n"


async def test_json_has_everything_about_the_result(scene: Scene) -> None:
    pushed = await scene.wasmc.run("push", scene.image, "-f", "-", "--json", stdin=MODULE)
    common = {
        "reference": scene.image,
        "digest": scene.digest,
        "sha256": SHA256,
        "size": len(MODULE),
    }
    assert json.loads(pushed.stdout) == {**common, "format": "artifact"}
    crane = await clients.crane(scene.home)
    assert (await crane.run("digest", scene.image)).stdout.strip() == scene.digest
    pulled = json.loads(await scene.pull("--json", "-o", "x.wasm"))
    assert pulled == {**common, "location": "x.wasm"}


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "reason"),
    [
        (["pull", "{host}/team/filter:none"], b"", 1, "ImageNotFound"),
        (["pull", "127.0.0.1:1/x"], b"", 1, "RegistryUnavailable"),
        (["push", "{host}/x", "-f", "-"], b"text", 1, "NotWasm"),
        (["push", "{host}/x"], b"", 2, "Usage"),
        (["push", "{host}/UPPER", "-f", "-"], b"", 2, "Usage"),
        (["inspect", "absent.wasm"], b"", 2, "Usage"),
        (["pull", "{host}/team/filter:v1", "-o", "/proc/absent/x"], b"", 1, "StorageUnavailable"),
    ],
)
async def test_a_failure_is_a_document_with_reason_message_and_hint(
    scene: Scene, arguments: list[str], stdin: bytes, status: int, reason: str
) -> None:
    host = scene.image.partition("/")[0]
    words = [each.format(host=host) for each in arguments]
    done = await scene.wasmc.run(*words, "--json", stdin=stdin, check=False)
    assert done.returncode == status
    document = json.loads(done.stdout)
    assert list(document) == ["error"]
    assert list(document["error"]) == ["reason", "message", "hint"]
    assert document["error"]["reason"] == reason
    assert document["error"]["message"] in done.stderr


async def test_requirements_that_are_not_met_are_the_last_lines(scene: Scene) -> None:
    await scene.wasmc.run("push", scene.image, "-f", "-", "--format", "cncf", stdin=MODULE)
    required = ("--require", "istio", "--require", "wkg", "--require", "kwctl")
    done = await scene.wasmc.run("inspect", scene.image, *required, check=False)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-2:]
    assert [line.partition(" cannot")[0] for line in last] == [
        "Not met --require: Istio",
        "Not met --require: kwctl",
    ]
    report = json.loads(
        (await scene.wasmc.run("inspect", scene.image, *required, "--json", check=False)).stdout
    )
    assert report["unmet"] == ["Istio", "kwctl"]
