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
from tests.parts.commandline import CommandLine

MODULE = wat.header_filter("world")
SHA256 = hashlib.sha256(MODULE).hexdigest()


@dataclass(frozen=True)
class PublishedImage(CommandLine):
    """An image in the registry, and its digest."""

    digest: str

    @property
    def name(self) -> str:
        return self.image("v1")

    async def pull(self, *arguments: str) -> str:
        return (await self.wasmc.run("pull", self.name, *arguments)).stdout


@pytest.fixture
async def published(tmp_path: Path) -> AsyncIterator[PublishedImage]:
    async with registry.crane(tmp_path / "registry") as server:
        client = CommandLine(tmp_path, server, wasmer.wasmc(tmp_path))
        pushed = await client.wasmc.run("push", client.image("v1"), "-f", "-", stdin=MODULE)
        digest = pushed.stdout.split()[-1]
        yield PublishedImage(client.home, client.registry, client.wasmc, digest)


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
    published: PublishedImage, output: str, file: str
) -> None:
    (published.home / "folder").mkdir()
    (published.home / "old.wasm").write_bytes(b"old")
    assert f"Location: {file}\n" in await published.pull("-o", output)
    assert (published.home / file).read_bytes() == MODULE


async def test_a_module_is_streamed_to_standard_output(published: PublishedImage) -> None:
    process = await asyncio.create_subprocess_exec(
        wasmer.program("wasmc"),
        *("pull", published.name, "-o", "-"),
        cwd=published.home,
        env={**published.wasmc.environment, "PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert (process.returncode, out) == (0, MODULE)
    assert err.decode() == f"Pulled {published.name}\nSha256: {SHA256}\n"


async def test_a_module_goes_through_a_device_and_leaves_it(published: PublishedImage) -> None:
    assert "Location: /dev/null\n" in await published.pull("-o", "/dev/null")
    assert not Path("/dev/null").is_file()


async def test_quiet_prints_one_line(published: PublishedImage) -> None:
    pushed = await published.wasmc.run("push", published.name, "-f", "-", "-q", stdin=MODULE)
    assert pushed.stdout == f"{published.digest}\n"
    assert await published.pull("-q", "-o", "x.wasm") == "x.wasm\n"
    assert await published.pull("-q") == f"{published.home / 'filter.wasm'}\n"


async def test_json_has_everything_about_the_result(published: PublishedImage) -> None:
    pushed = await published.wasmc.run("push", published.name, "-f", "-", "--json", stdin=MODULE)
    common = {
        "reference": published.name,
        "digest": published.digest,
        "sha256": SHA256,
        "size": len(MODULE),
    }
    assert json.loads(pushed.stdout) == {**common, "format": "artifact"}
    crane = await clients.crane(published.home)
    assert (await crane.run("digest", published.name)).stdout.strip() == published.digest
    pulled = json.loads(await published.pull("--json", "-o", "x.wasm"))
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
    published: PublishedImage, arguments: list[str], stdin: bytes, status: int, reason: str
) -> None:
    host = published.registry.host
    words = [each.format(host=host) for each in arguments]
    done = await published.wasmc.run(*words, "--json", stdin=stdin, check=False)
    assert done.returncode == status
    document = json.loads(done.stdout)
    assert list(document) == ["error"]
    assert list(document["error"]) == ["reason", "message", "hint"]
    assert document["error"]["reason"] == reason
    assert document["error"]["message"] in done.stderr


async def test_requirements_that_are_not_met_are_the_last_lines(published: PublishedImage) -> None:
    await published.wasmc.run("push", published.name, "-f", "-", "--format", "cncf", stdin=MODULE)
    required = ("--require", "istio", "--require", "wkg", "--require", "kwctl")
    done = await published.wasmc.run("inspect", published.name, *required, check=False)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-2:]
    assert [line.partition(" cannot")[0] for line in last] == [
        "Not met --require: Istio",
        "Not met --require: kwctl",
    ]
    report = json.loads(
        (
            await published.wasmc.run("inspect", published.name, *required, "--json", check=False)
        ).stdout
    )
    assert report["unmet"] == ["Istio", "kwctl"]
