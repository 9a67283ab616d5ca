"""`wasmc` against real registries and beside foreign clients: output, written files, and leftovers."""

import asyncio
import base64
import gzip
import hashlib
import json
import os
import pty
import re
import signal
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts import clients, registry, wasmer, wat
from tests.parts.certificates import Authority
from tests.parts.commandline import CommandLine
from tests.unit.wasm.archives import tar

SAMPLE = Path(__file__).parents[2] / "assets" / "samples" / "wasmc.txt"
NO_ABI = wat.compile_text("(module)")


class CheckedCommandLine(CommandLine):
    """`wasmc`, of which failures and leftovers are checked."""

    async def fails(self, *arguments: str, stdin: bytes = b"") -> str:
        """Runs wasmc, which must end with status 1 and one sentence; returns it."""
        done = await self.wasmc.run(*arguments, check=False, stdin=stdin)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.startswith("wasmc: error: ")
        assert done.stderr.count("\n") == 1, done.stderr
        assert "s3cret" not in done.stderr
        return done.stderr

    def files(self) -> set[str]:
        """All that wasmc could have left in its folder."""
        ours = {".docker", "registry", "example.wasm"}
        return {path.name for path in self.home.iterdir()} - ours


@pytest.fixture
async def command_line(tmp_path: Path) -> AsyncIterator[CheckedCommandLine]:
    async with registry.distribution(tmp_path / "registry") as server:
        yield CheckedCommandLine(tmp_path, server, wasmer.wasmc(tmp_path))


@pytest.mark.parametrize("form", ["artifact", "image"])
async def test_prints_the_lines_of_the_sample(command_line: CheckedCommandLine, form: str) -> None:
    module = wat.header_filter("world")
    pushed = await command_line.push("v0.3", module, "--format", form)
    pulled = await command_line.wasmc.run("pull", command_line.image("v0.3"), "-o", "xxx/")
    crane = await clients.crane(command_line.home)
    digest = (await crane.run("digest", command_line.image("v0.3"))).stdout.strip()
    sha256 = hashlib.sha256(module).hexdigest()

    sample = SAMPLE.read_text().splitlines()
    lines = [line for line in sample if line and not line.startswith("$")]
    told = [*pushed.stdout.splitlines(), *pulled.stdout.splitlines()]
    reference = "ccr.ccs.tencentyun.com/xxx/wasm-add-header:v0.3"
    values = iter([digest, sha256])
    expected = [
        re.sub(r"(?<=: )(sha256:xxxx|xxx)$", lambda _: next(values), line).replace(
            reference, command_line.image("v0.3")
        )
        for line in lines
    ]
    assert told == expected
    assert (pushed.stderr, pulled.stderr) == ("", "")
    assert (command_line.home / "xxx" / "filter.wasm").read_bytes() == module
    assert [path.name for path in (command_line.home / "xxx").iterdir()] == ["filter.wasm"]


async def test_pulls_into_the_current_folder_and_says_where(
    command_line: CheckedCommandLine,
) -> None:
    module = wat.header_filter("world")
    await command_line.push("v1", module)
    pulled = await command_line.wasmc.run("pull", command_line.image("v1"))
    location = pulled.stdout.splitlines()[2].removeprefix("Location: ")
    assert Path(location) == command_line.home.resolve() / "filter.wasm"
    assert Path(location).read_bytes() == module
    assert command_line.files() == {"filter.wasm"}
    assert Path(location).stat().st_mode & 0o777 == 0o666 & ~_umask()


async def test_the_same_module_has_the_same_digest_and_is_uploaded_once(
    command_line: CheckedCommandLine,
) -> None:
    module = wat.header_filter("world")
    first = await command_line.push("v1", module)
    second = await command_line.push("v2", module)
    assert first.stdout.splitlines()[1] == second.stdout.splitlines()[1]
    log = await asyncio.to_thread(command_line.registry.process.log.read_text)
    assert len(re.findall(r'"PUT /v2/team/filter/blobs/uploads/', log)) == 2


async def test_foreign_clients_read_pushed_modules(command_line: CheckedCommandLine) -> None:
    module = wat.header_filter("world")
    await command_line.push("artifact", module)
    await command_line.push("image", module, "--format", "image")
    crane = await clients.crane(command_line.home)
    oras = await clients.oras(command_line.home)

    await oras.run("pull", "--plain-http", "-o", "oras", command_line.image("artifact"))
    assert (command_line.home / "oras" / "filter.wasm").read_bytes() == module
    runtime = json.loads((command_line.home / "oras" / "runtime-config.json").read_text())
    assert runtime["abiVersions"] == ["v0.2.1"]
    for tag in ("artifact", "image"):
        await crane.run("validate", "--remote", command_line.image(tag))
    await crane.run("export", command_line.image("image"), "image.tar")
    with tarfile.open(command_line.home / "image.tar") as archive:
        plugin = archive.extractfile("plugin.wasm")
        assert plugin is not None
        assert plugin.read() == module
    manifest = json.loads((await crane.run("manifest", command_line.image("image"))).stdout)
    assert manifest["annotations"] == {"module.wasm.image/variant": "compat"}


@pytest.mark.parametrize(
    "flavour", ["one-layer", "two-layers", "image", "image-in-first-layer", "docker-image", "index"]
)
async def test_pulls_modules_pushed_by_foreign_clients(
    command_line: CheckedCommandLine, flavour: str
) -> None:
    module = wat.header_filter(flavour)
    home, image = command_line.home / "foreign", command_line.image(flavour)
    home.mkdir()
    (home / "plugin.wasm").write_bytes(module)
    (home / "config.json").write_text('{"type": "envoy_proxy"}')
    (home / "layer.tar").write_bytes(tar({"./plugin.wasm": module}))
    (home / "other.tar.gz").write_bytes(gzip.compress(tar({"readme": b"hello"})))
    crane, oras = await clients.crane(home), await clients.oras(home)
    content = "plugin.wasm:application/vnd.module.wasm.content.layer.v1+wasm"
    config = "config.json:application/vnd.module.wasm.config.v1+json"
    if flavour == "one-layer":
        await oras.run("push", "--plain-http", image, content)
    elif flavour == "two-layers":
        await oras.run("push", "--plain-http", "--config", config, image, config, content)
    else:
        await crane.run("append", "-f", "layer.tar", "-t", image, *_append_flags(flavour))
        if flavour == "image-in-first-layer":
            await crane.run("append", "-b", image, "-f", "other.tar.gz", "-t", image)
        if flavour == "index":
            await crane.run("index", "append", "-m", image, "-t", image)
    pulled = await command_line.wasmc.run("pull", image)
    assert hashlib.sha256(module).hexdigest() in pulled.stdout
    assert (command_line.home / "filter.wasm").read_bytes() == module


def _append_flags(flavour: str) -> list[str]:
    return [] if flavour == "docker-image" else ["--oci-empty-base"]


@pytest.mark.parametrize("form", ["artifact", "image"])
async def test_refuses_to_push_a_module_that_envoy_would_refuse(
    command_line: CheckedCommandLine, form: str
) -> None:
    (command_line.home / "example.wasm").write_bytes(NO_ABI)
    arguments = ("push", command_line.image("v1"), "-f", "example.wasm", "--format", form)
    message = await command_line.fails(*arguments)
    assert "[AbiMissing]" in message
    assert "--force" in message
    assert "does not exist" in await command_line.fails("pull", command_line.image("v1"))

    forced = await command_line.wasmc.run(*arguments, "--force")
    assert forced.stdout.startswith("Pushed ")
    assert forced.stderr.startswith("wasmc: warning: ")
    assert (await command_line.wasmc.run(*arguments, "--force", "-q")).stderr == ""


async def test_refuses_to_write_a_module_that_envoy_would_refuse(
    command_line: CheckedCommandLine,
) -> None:
    await command_line.push("bad", NO_ABI, "--force")
    (command_line.home / "filter.wasm").write_bytes(b"precious")
    assert "[AbiMissing]" in await command_line.fails("pull", command_line.image("bad"))
    assert (command_line.home / "filter.wasm").read_bytes() == b"precious"
    assert command_line.files() == {"filter.wasm"}

    await command_line.wasmc.run("pull", command_line.image("bad"), "--force")
    assert (command_line.home / "filter.wasm").read_bytes() == NO_ABI
    assert command_line.files() == {"filter.wasm"}


async def test_an_import_of_a_custom_envoy_can_be_allowed_by_flag(
    command_line: CheckedCommandLine,
) -> None:
    source = wat.header_filter("x")
    module = wat.compile_text(
        """(module (import "env" "my_extension" (func)) (memory (export "memory") 1)
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "malloc") (param i32) (result i32) (i32.const 0)))"""
    )
    assert module != source
    (command_line.home / "example.wasm").write_bytes(module)
    arguments = ("push", command_line.image("v1"), "-f", "example.wasm")
    assert "[ImportUnknown]" in await command_line.fails(*arguments)
    await command_line.wasmc.run(*arguments, "--allow-import", "env.my_extension")
    await command_line.wasmc.run(
        "pull", command_line.image("v1"), "--allow-import", "env.my_extension"
    )


async def test_a_module_above_envoys_limit_is_not_even_downloaded(
    command_line: CheckedCommandLine,
) -> None:
    module = wat.padded(wat.header_filter("x"), size=32 * 1024 * 1024 + 1)
    await command_line.push("large", module, "--force")
    assert "[TooLarge]" not in await command_line.fails("pull", command_line.image("nothing"))
    assert "accepts at most" in await command_line.fails("pull", command_line.image("large"))
    await command_line.wasmc.run("pull", command_line.image("large"), "--force")
    assert (command_line.home / "filter.wasm").stat().st_size == len(module)


async def test_logs_in_with_password_from_standard_input_or_docker(tmp_path: Path) -> None:
    async with registry.distribution(tmp_path / "registry", users={"alice": "s3cret"}) as server:
        command_line = CheckedCommandLine(tmp_path, server, wasmer.wasmc(tmp_path))
        image = command_line.image("v1")
        (tmp_path / "example.wasm").write_bytes(wat.header_filter("world"))
        push = ("push", image, "-f", "example.wasm")
        login = ("--username", "alice", "--password-stdin")

        assert f"docker login {server.host}" in await command_line.fails(*push)
        assert "'alice'" in await command_line.fails(*push, *login, stdin=b"s3cret wrong\n")
        await command_line.wasmc.run(*push, *login, stdin=b"s3cret\n")

        config = tmp_path / ".docker" / "config.json"
        auth = base64.b64encode(b"alice:s3cret").decode()
        config.write_text(json.dumps({"auths": {server.host: {"auth": auth}}}))
        await command_line.wasmc.run("pull", image)

        config.write_text(json.dumps({"credHelpers": {server.host: "test"}}))
        helper = tmp_path / "docker-credential-test"
        helper.write_text('#!/bin/sh\necho \'{"Username": "alice", "Secret": "s3cret"}\'\n')
        helper.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        await wasmer.wasmc(tmp_path, PATH=path).run("pull", image)


async def test_tls_is_checked_with_the_given_authority(tmp_path: Path) -> None:
    tls = Authority().issue(tmp_path / "tls")
    async with registry.distribution(tmp_path / "registry", tls=tls) as server:
        command_line = CheckedCommandLine(tmp_path, server, wasmer.wasmc(tmp_path))
        await command_line.push("v1", wat.header_filter("world"), "--ca-file", str(tls.authority))
        await command_line.wasmc.run("pull", command_line.image("v1"), "--insecure")
        other = Authority().issue(tmp_path / "other")
        message = await command_line.fails(
            "pull", command_line.image("v1"), "--ca-file", str(other.authority)
        )
        assert "certificate" in message


async def test_unreachable_registry_is_reported_without_a_traceback(
    command_line: CheckedCommandLine,
) -> None:
    await command_line.registry.stop()
    message = await command_line.fails("pull", command_line.image("v1"))
    assert "refused" in message
    assert "Traceback" not in message


async def test_wasmc_debug_variable_shows_the_traceback(command_line: CheckedCommandLine) -> None:
    talkative = wasmer.wasmc(command_line.home, WASMC_DEBUG="1")
    done = await talkative.run("pull", command_line.image("nothing"), check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("wasmc: error: ")


LAYER = bytes(10_000_000)


def _dripping(started: asyncio.Event) -> ScriptedServer:
    """A registry with an endless layer."""

    async def script(exchange: Exchange) -> None:
        if "/blobs/" in exchange.request.target:
            await exchange.head(200, {"Content-Length": str(len(LAYER))})
            started.set()
            await exchange.drip(bytes(10_000), every=0.05)
        else:
            await exchange.send(body=_manifest())

    return ScriptedServer(script)


def _manifest() -> bytes:
    def described(data: bytes, media_type: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    document = {
        "schemaVersion": 2,
        "config": described(b"{}", "application/vnd.module.wasm.config.v1+json"),
        "layers": [described(LAYER, "application/vnd.module.wasm.content.layer.v1+wasm")],
    }
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
async def test_an_interrupted_pull_leaves_nothing(
    tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    (tmp_path / "filter.wasm").write_bytes(b"precious")
    started = asyncio.Event()
    async with _dripping(started) as server:
        process = await asyncio.create_subprocess_exec(
            wasmer.program("wasmc"),
            "pull",
            f"{server.host}/team/filter:v1",
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            await started.wait()
        assert len(await asyncio.to_thread(os.listdir, tmp_path)) == 2, "it stages beside the file"
        process.send_signal(sent)
        async with asyncio.timeout(10):
            out, err = await process.communicate()
    assert (process.returncode, out, err) == (status, b"", b"")
    assert await asyncio.to_thread(os.listdir, tmp_path) == ["filter.wasm"]
    assert (tmp_path / "filter.wasm").read_bytes() == b"precious"


async def test_a_terminal_sees_progress_on_standard_error(tmp_path: Path) -> None:
    started = asyncio.Event()
    master, slave = pty.openpty()
    try:
        async with _dripping(started) as server:
            process = await asyncio.create_subprocess_exec(
                wasmer.program("wasmc"),
                "pull",
                f"{server.host}/team/filter:v1",
                cwd=tmp_path,
                env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
                stdout=asyncio.subprocess.PIPE,
                stderr=slave,
            )
            seen = b""
            async with asyncio.timeout(30):
                while not re.search(rb"Pulling \[ +\] +\d% [1-9][\d.]* KiB of 9\.5 MiB", seen):
                    seen += await asyncio.to_thread(os.read, master, 4096)
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(10):
                out, _ = await process.communicate()
    finally:
        os.close(master)
        os.close(slave)
    assert (process.returncode, out) == (130, b"")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
