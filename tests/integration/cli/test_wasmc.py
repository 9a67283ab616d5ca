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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts import clients, registry, wasmer, wat
from tests.parts.certificates import Authority
from tests.parts.clients import Client, Completed
from tests.parts.registry import RegistryServer
from tests.unit.wasm.archives import tar

SAMPLE = Path(__file__).parents[2] / "assets" / "samples" / "wasmc.txt"
NO_ABI = wat.compile_text("(module)")


@dataclass
class Scene:
    """A registry, `wasmc` and its home, which is where it runs."""

    home: Path
    registry: RegistryServer
    wasmc: Client

    def image(self, tag: str) -> str:
        return f"{self.registry.host}/team/filter:{tag}"

    async def push(self, tag: str, module: bytes, *arguments: str) -> Completed:
        await asyncio.to_thread((self.home / "example.wasm").write_bytes, module)
        return await self.wasmc.run("push", self.image(tag), "-f", "./example.wasm", *arguments)

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
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with registry.distribution(tmp_path / "registry") as server:
        yield Scene(tmp_path, server, wasmer.wasmc(tmp_path))


@pytest.mark.parametrize("form", ["artifact", "image"])
async def test_prints_the_lines_of_the_sample(scene: Scene, form: str) -> None:
    module = wat.header_filter("world")
    pushed = await scene.push("v0.3", module, "--format", form)
    pulled = await scene.wasmc.run("pull", scene.image("v0.3"), "-o", "xxx/")
    crane = await clients.crane(scene.home)
    digest = (await crane.run("digest", scene.image("v0.3"))).stdout.strip()
    sha256 = hashlib.sha256(module).hexdigest()

    sample = SAMPLE.read_text().splitlines()
    lines = [line for line in sample if line and not line.startswith("$")]
    told = [*pushed.stdout.splitlines(), *pulled.stdout.splitlines()]
    reference = "ccr.ccs.tencentyun.com/xxx/wasm-add-header:v0.3"
    values = iter([digest, sha256])
    expected = [
        re.sub(r"(?<=: )(sha256:xxxx|xxx)$", lambda _: next(values), line).replace(
            reference, scene.image("v0.3")
        )
        for line in lines
    ]
    assert told == expected
    assert (pushed.stderr, pulled.stderr) == ("", "")
    assert (scene.home / "xxx" / "filter.wasm").read_bytes() == module
    assert [path.name for path in (scene.home / "xxx").iterdir()] == ["filter.wasm"]


async def test_pulls_into_the_current_folder_and_says_where(scene: Scene) -> None:
    module = wat.header_filter("world")
    await scene.push("v1", module)
    pulled = await scene.wasmc.run("pull", scene.image("v1"))
    location = pulled.stdout.splitlines()[2].removeprefix("Location: ")
    assert Path(location) == scene.home.resolve() / "filter.wasm"
    assert Path(location).read_bytes() == module
    assert scene.files() == {"filter.wasm"}
    assert Path(location).stat().st_mode & 0o777 == 0o666 & ~_umask()


async def test_the_same_module_has_the_same_digest_and_is_uploaded_once(scene: Scene) -> None:
    module = wat.header_filter("world")
    first = await scene.push("v1", module)
    second = await scene.push("v2", module)
    assert first.stdout.splitlines()[1] == second.stdout.splitlines()[1]
    log = await asyncio.to_thread(scene.registry.process.log.read_text)
    assert len(re.findall(r'"PUT /v2/team/filter/blobs/uploads/', log)) == 2


async def test_foreign_clients_read_what_is_pushed(scene: Scene) -> None:
    module = wat.header_filter("world")
    await scene.push("artifact", module)
    await scene.push("image", module, "--format", "image")
    crane = await clients.crane(scene.home)
    oras = await clients.oras(scene.home)

    await oras.run("pull", "--plain-http", "-o", "oras", scene.image("artifact"))
    assert (scene.home / "oras" / "filter.wasm").read_bytes() == module
    runtime = json.loads((scene.home / "oras" / "runtime-config.json").read_text())
    assert runtime["abiVersions"] == ["v0.2.1"]
    for tag in ("artifact", "image"):
        await crane.run("validate", "--remote", scene.image(tag))
    await crane.run("export", scene.image("image"), "image.tar")
    with tarfile.open(scene.home / "image.tar") as archive:
        plugin = archive.extractfile("plugin.wasm")
        assert plugin is not None
        assert plugin.read() == module
    manifest = json.loads((await crane.run("manifest", scene.image("image"))).stdout)
    assert manifest["annotations"] == {"module.wasm.image/variant": "compat"}


@pytest.mark.parametrize(
    "flavour", ["one-layer", "two-layers", "image", "image-in-first-layer", "docker-image", "index"]
)
async def test_reads_what_foreign_clients_pushed(scene: Scene, flavour: str) -> None:
    module = wat.header_filter(flavour)
    home, image = scene.home / "foreign", scene.image(flavour)
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
    pulled = await scene.wasmc.run("pull", image)
    assert hashlib.sha256(module).hexdigest() in pulled.stdout
    assert (scene.home / "filter.wasm").read_bytes() == module


def _append_flags(flavour: str) -> list[str]:
    return [] if flavour == "docker-image" else ["--oci-empty-base"]


@pytest.mark.parametrize("form", ["artifact", "image"])
async def test_refuses_to_push_what_envoy_would_refuse(scene: Scene, form: str) -> None:
    (scene.home / "example.wasm").write_bytes(NO_ABI)
    arguments = ("push", scene.image("v1"), "-f", "example.wasm", "--format", form)
    message = await scene.fails(*arguments)
    assert "[AbiMissing]" in message
    assert "--force" in message
    assert "does not exist" in await scene.fails("pull", scene.image("v1"))

    forced = await scene.wasmc.run(*arguments, "--force")
    assert forced.stdout.startswith("Pushed ")
    assert forced.stderr.startswith("wasmc: warning: ")
    assert (await scene.wasmc.run(*arguments, "--force", "-q")).stderr == ""


async def test_refuses_to_write_what_envoy_would_refuse(scene: Scene) -> None:
    await scene.push("bad", NO_ABI, "--force")
    (scene.home / "filter.wasm").write_bytes(b"precious")
    assert "[AbiMissing]" in await scene.fails("pull", scene.image("bad"))
    assert (scene.home / "filter.wasm").read_bytes() == b"precious"
    assert scene.files() == {"filter.wasm"}

    await scene.wasmc.run("pull", scene.image("bad"), "--force")
    assert (scene.home / "filter.wasm").read_bytes() == NO_ABI
    assert scene.files() == {"filter.wasm"}


async def test_an_import_that_ones_own_envoy_offers_can_be_allowed(scene: Scene) -> None:
    source = wat.header_filter("x")
    module = wat.compile_text(
        """(module (import "env" "my_extension" (func)) (memory (export "memory") 1)
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "malloc") (param i32) (result i32) (i32.const 0)))"""
    )
    assert module != source
    (scene.home / "example.wasm").write_bytes(module)
    arguments = ("push", scene.image("v1"), "-f", "example.wasm")
    assert "[ImportUnknown]" in await scene.fails(*arguments)
    await scene.wasmc.run(*arguments, "--allow-import", "env.my_extension")
    await scene.wasmc.run("pull", scene.image("v1"), "--allow-import", "env.my_extension")


async def test_a_module_above_envoys_limit_is_not_even_downloaded(scene: Scene) -> None:
    module = wat.padded(wat.header_filter("x"), size=32 * 1024 * 1024 + 1)
    await scene.push("large", module, "--force")
    assert "[TooLarge]" not in await scene.fails("pull", scene.image("nothing"))
    assert "accepts at most" in await scene.fails("pull", scene.image("large"))
    await scene.wasmc.run("pull", scene.image("large"), "--force")
    assert (scene.home / "filter.wasm").stat().st_size == len(module)


async def test_logs_in_with_password_from_standard_input_or_docker(tmp_path: Path) -> None:
    async with registry.distribution(tmp_path / "registry", users={"alice": "s3cret"}) as server:
        scene = Scene(tmp_path, server, wasmer.wasmc(tmp_path))
        image = scene.image("v1")
        (tmp_path / "example.wasm").write_bytes(wat.header_filter("world"))
        push = ("push", image, "-f", "example.wasm")
        login = ("--username", "alice", "--password-stdin")

        assert f"docker login {server.host}" in await scene.fails(*push)
        assert "'alice'" in await scene.fails(*push, *login, stdin=b"s3cret wrong\n")
        await scene.wasmc.run(*push, *login, stdin=b"s3cret\n")

        config = tmp_path / ".docker" / "config.json"
        auth = base64.b64encode(b"alice:s3cret").decode()
        config.write_text(json.dumps({"auths": {server.host: {"auth": auth}}}))
        await scene.wasmc.run("pull", image)

        config.write_text(json.dumps({"credHelpers": {server.host: "test"}}))
        helper = tmp_path / "docker-credential-test"
        helper.write_text('#!/bin/sh\necho \'{"Username": "alice", "Secret": "s3cret"}\'\n')
        helper.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        await wasmer.wasmc(tmp_path, PATH=path).run("pull", image)


async def test_tls_is_checked_with_the_given_authority(tmp_path: Path) -> None:
    tls = Authority().issue(tmp_path / "tls")
    async with registry.distribution(tmp_path / "registry", tls=tls) as server:
        scene = Scene(tmp_path, server, wasmer.wasmc(tmp_path))
        await scene.push("v1", wat.header_filter("world"), "--ca-file", str(tls.authority))
        await scene.wasmc.run("pull", scene.image("v1"), "--insecure")
        other = Authority().issue(tmp_path / "other")
        message = await scene.fails("pull", scene.image("v1"), "--ca-file", str(other.authority))
        assert "certificate" in message


async def test_a_registry_that_is_down_is_said_in_one_sentence(scene: Scene) -> None:
    await scene.registry.stop()
    message = await scene.fails("pull", scene.image("v1"))
    assert "refused" in message
    assert "Traceback" not in message


async def test_the_environment_can_ask_for_the_traceback(scene: Scene) -> None:
    talkative = wasmer.wasmc(scene.home, WASMC_DEBUG="1")
    done = await talkative.run("pull", scene.image("nothing"), check=False)
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
