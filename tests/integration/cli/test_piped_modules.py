"""A module out of a pipe: `build | wasmc push REF -f -`."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.parts import registry, wasmer, wat
from tests.parts.clients import Client
from tests.parts.registry import RegistryServer

MODULE = wat.header_filter("world")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RegistryServer]:
    async with registry.distribution(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return wasmer.wasmc(tmp_path)


async def pulled(client: Client, store: RegistryServer, folder: Path) -> bytes:
    await client.run("pull", f"{store.host}/a/b:v1", "-o", f"{folder}/")
    return (folder / "filter.wasm").read_bytes()


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
async def test_push_reads_the_module_from_standard_input(
    store: RegistryServer, client: Client, tmp_path: Path, name: str
) -> None:
    await client.run("push", f"{store.host}/a/b:v1", "-f", name, stdin=MODULE)
    assert await pulled(client, store, tmp_path / "out") == MODULE


async def test_push_reads_the_module_from_a_named_pipe(
    store: RegistryServer, client: Client, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(pipe.write_bytes, MODULE))
        tasks.create_task(client.run("push", f"{store.host}/a/b:v1", "-f", str(pipe)))
    assert await pulled(client, store, tmp_path / "out") == MODULE


async def test_inspect_reads_the_module_from_a_pipe(client: Client) -> None:
    done = await client.run("inspect", "-", "--json", stdin=MODULE)
    assert hashlib.sha256(MODULE).hexdigest() in done.stdout
    refused = await client.run("inspect", "-", check=False, stdin=b"no module")
    assert refused.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "sentence"),
    [
        (["-f", "-"], b"", 2, "-f -: is empty"),
        (["-f", "-"], b"no module", 1, ""),
        (["-f", "-", "--username", "u", "--password-stdin"], MODULE, 2, "only one can be read from standard input"),
        (["-f", "/dev/stdin", "--username", "u", "--password-stdin"], MODULE, 2, "only one can be read"),
    ],
)  # fmt: skip
async def test_invalid_push_from_standard_input_fails_without_a_traceback(
    client: Client, tmp_path: Path, arguments: list[str], stdin: bytes, status: int, sentence: str
) -> None:
    done = await client.run("push", "127.0.0.1:9/a/b:v1", *arguments, check=False, stdin=stdin)
    assert (done.returncode, done.stdout) == (status, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


async def test_push_rejects_an_endless_pipe_at_the_size_limit(
    client: Client, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except BrokenPipeError:
                file.raw.close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(write))
        done = await client.run("push", "127.0.0.1:9/a/b:v1", "-f", str(pipe), check=False)
    assert done.returncode == 1
    assert "has more than 256 MiB, the limit" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "plan --offline -f -",
        "push 127.0.0.1:9/team/filter:v1 -f -",
        "push 127.0.0.1:9/team/filter:v1 -f /dev/null --username u --password-stdin",
    ],
)
async def test_a_closed_standard_input_is_wrong_usage(client: Client, command: str) -> None:
    process = await asyncio.create_subprocess_shell(  # only a shell closes it
        f"exec '{client.program}' {command} <&-", stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        _, output = await process.communicate()
    assert process.returncode == 2, output
    assert output.decode().endswith(": standard input is closed\n")
