"""`wasmc login`, `logout`, `tags`, `digest`, `copy` and `delete` against real registries and beside crane."""

import asyncio
import base64
import json
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli import foreign
from tests.integration.cli.foreign import Builder
from tests.parts import clients, registry, wasmer, wat
from tests.parts.certificates import Authority
from tests.parts.clients import Client
from tests.parts.commandline import CommandLine
from tests.parts.registry import RegistryServer
from tests.parts.tokens import TokenService

MODULE = wat.header_filter("world")
HELPER = """#!/bin/sh
# The protocol of docker-credential-helpers, with a file for each server.
file="{folder}/$(basename "$0").json"
read -r input
case "$1" in
  store) echo "$input" > "$file" ;;
  get) if [ -f "$file" ]; then cat "$file"; else echo "credentials not found in native keychain"; exit 1; fi ;;
  erase) if [ -f "$file" ]; then rm "$file"; else echo "credentials not found in native keychain"; exit 1; fi ;;
esac
"""


@dataclass(frozen=True)
class TwoRegistries(CommandLine):
    """`target` is the registry that images are copied to; the foreign clients use the other one, too."""

    target: RegistryServer
    crane: Client
    builder: Builder

    async def digest(self, reference: str) -> str:
        """As crane sees it."""
        return (await self.crane.run("digest", reference)).stdout.strip()


@pytest.fixture
async def registries(tmp_path: Path) -> AsyncIterator[TwoRegistries]:
    home = tmp_path / "foreign"
    await asyncio.to_thread(home.mkdir)
    async with (
        registry.distribution(tmp_path / "source") as source,
        registry.crane(tmp_path / "target") as target,
    ):
        crane, oras = await clients.crane(home), await clients.oras(home)
        builder = Builder(home, f"{source.host}/team/filter", crane, oras)
        (tmp_path / "m.wasm").write_bytes(MODULE)
        yield TwoRegistries(tmp_path, source, wasmer.wasmc(tmp_path), target, crane, builder)


async def test_tags_and_digests_are_those_of_crane(registries: TwoRegistries) -> None:
    for tag in ("v1", "v2", "latest"):
        await registries.wasmc.run("push", registries.image(tag), "-f", "m.wasm")
    name = registries.repository
    listed = await registries.wasmc.run("tags", name)
    assert listed.stdout == (await registries.crane.run("ls", name)).stdout
    as_json = json.loads((await registries.wasmc.run("tags", name, "--json")).stdout)
    assert as_json == {"repository": name, "tags": listed.stdout.split()}
    digest = await registries.digest(registries.image("v1"))
    assert (await registries.wasmc.run("digest", registries.image("v1"))).stdout == f"{digest}\n"
    pinned = f"{name}@{digest}"
    assert (await registries.wasmc.run("digest", pinned)).stdout == f"{digest}\n"
    absent = await registries.wasmc.run("digest", registries.image("none"), "--json", check=False)
    assert absent.returncode == 1
    error = json.loads(absent.stdout)["error"]
    assert error["reason"] == "ImageNotFound"
    assert error["message"] in absent.stderr
    assert "wasmc tags" in error["hint"]


@pytest.mark.parametrize("row", list(foreign.ROWS))
async def test_a_copy_of_every_layout_has_the_digest_and_the_module(
    registries: TwoRegistries, row: str
) -> None:
    await foreign.ROWS[row](registries.builder, "row", MODULE)
    target = f"{registries.target.host}/other/name:copied"
    copied = await registries.wasmc.run("copy", registries.image("row"), target)
    digest = await registries.digest(registries.image("row"))
    assert copied.stdout == f"Copied {registries.image('row')} to {target}\nDigest: {digest}\n"
    assert await registries.digest(target) == digest
    await registries.wasmc.run("pull", target, "-o", "out.wasm")
    assert (registries.home / "out.wasm").read_bytes() == MODULE


async def test_a_copy_of_an_index_has_every_image_of_it(registries: TwoRegistries) -> None:
    await registries.builder.append("one", b"")
    for tag in ("one", "two"):
        await registries.wasmc.run(
            *(
                "push",
                registries.image(tag),
                "-f",
                "m.wasm",
                "--format",
                "image",
                "--annotation",
                f"a={tag}",
            )
        )
    await registries.crane.run(
        *(
            "index",
            "append",
            "-m",
            registries.image("one"),
            "-m",
            registries.image("two"),
            "-t",
            registries.image("all"),
        )
    )
    target = f"{registries.target.host}/other/index"
    quiet = await registries.wasmc.run("cp", registries.image("all"), target, "-q")
    digest = await registries.digest(registries.image("all"))
    assert quiet.stdout == f"{digest}\n"
    index: dict[str, Any] = json.loads(
        (await registries.crane.run("manifest", f"{target}:all")).stdout
    )
    assert len(index["manifests"]) == 2
    for child in index["manifests"]:
        await registries.crane.run("validate", "--remote", f"{target}@{child['digest']}")
    second = await registries.wasmc.run(
        "copy", f"{registries.image('all')}@{digest}", f"{target}2", "--json"
    )
    assert json.loads(second.stdout)["digest"] == digest


async def test_a_copy_by_digest_needs_no_tag_and_cannot_choose_one(
    registries: TwoRegistries,
) -> None:
    await registries.wasmc.run("push", registries.image("v1"), "-f", "m.wasm")
    digest = await registries.digest(registries.image("v1"))
    pinned = f"{registries.repository}@{digest}"
    target = f"{registries.target.host}/pinned"
    copied = await registries.wasmc.run("copy", pinned, target)
    assert f"to {target}@{digest}\n" in copied.stdout
    assert await registries.digest(f"{target}@{digest}") == digest
    other = f"{target}@sha256:{'0' * 64}"
    refused = await registries.wasmc.run("copy", pinned, other, check=False)
    assert refused.returncode == 2
    assert "cannot be chosen" in refused.stderr


async def test_a_tag_or_an_image_is_deleted_only_with_consent(registries: TwoRegistries) -> None:
    for tag in ("v1", "v2"):
        await registries.wasmc.run("push", registries.image(tag), "-f", "m.wasm")
    refused = await registries.wasmc.run("delete", registries.image("v1"), check=False)
    assert (refused.returncode, "--yes is required" in refused.stderr) == (2, True)
    bare = registries.repository
    refused = await registries.wasmc.run("rm", bare, "--yes", check=False)
    assert (refused.returncode, "name the tag or the digest" in refused.stderr) == (2, True)
    digest = await registries.digest(registries.image("v1"))
    await registries.wasmc.run("delete", f"{bare}@{digest}", "--yes")
    gone = await registries.wasmc.run("digest", registries.image("v2"), check=False)
    assert gone.returncode == 1, "both tags were of the image"
    again = await registries.wasmc.run("delete", f"{bare}@{digest}", "-y", check=False)
    assert again.returncode == 1
    assert "it does not exist" in again.stderr


async def test_a_registry_that_deletes_no_tags_is_reported_with_the_way_out(
    registries: TwoRegistries,
) -> None:
    await registries.wasmc.run("push", registries.image("v1"), "-f", "m.wasm")
    done = await registries.wasmc.run("delete", registries.image("v1"), "--yes", check=False)
    if done.returncode:  # distribution deletes tags from version 3 on
        assert "delete NAME@DIGEST" in done.stderr
    else:
        assert (
            await registries.wasmc.run("digest", registries.image("v1"), check=False)
        ).returncode == 1


async def test_a_login_is_kept_where_docker_and_crane_find_it(tmp_path: Path) -> None:
    users = {"alice": "s3cret"}
    async with registry.distribution(tmp_path / "registry", users=users) as server:
        wasmc = wasmer.wasmc(tmp_path)
        (tmp_path / "m.wasm").write_bytes(MODULE)
        config = tmp_path / ".docker" / "config.json"
        config.write_text(
            '{"detachKeys": "ctrl-e,e", "auths": {"other.example": {"auth": "YTpi"}}}'
        )
        login = ("login", server.host, "-u", "alice", "--password-stdin")

        wrong = await wasmc.run(*login, stdin=b"wrong", check=False)
        assert wrong.returncode == 1
        assert "other.example" in config.read_text()
        assert server.host not in config.read_text(), "a wrong login is not kept"

        done = await wasmc.run(*login, stdin=b"s3cret\n")
        assert done.stdout == f"Logged in to {server.host} as alice\n"
        assert "not encrypted" in done.stderr
        assert "s3cret" not in done.stdout + done.stderr
        kept = json.loads(config.read_text())
        assert kept["detachKeys"] == "ctrl-e,e"
        assert kept["auths"]["other.example"] == {"auth": "YTpi"}
        assert kept["auths"][server.host] == {"auth": base64.b64encode(b"alice:s3cret").decode()}
        assert stat.S_IMODE(config.stat().st_mode) == 0o600

        await wasmc.run("push", f"{server.host}/a/b:v1", "-f", "m.wasm")
        crane = await clients.crane(tmp_path)
        home = {"DOCKER_CONFIG": str(config.parent), "HOME": str(tmp_path)}
        own = Client(crane.program, tmp_path, {**crane.environment, **home})
        assert (await own.run("ls", f"{server.host}/a/b")).stdout == "v1\n"

        assert (await wasmc.run("logout", server.host)).stdout == f"Logged out of {server.host}\n"
        assert server.host not in config.read_text()
        again = await wasmc.run("logout", server.host)
        assert again.stdout == f"Not logged in to {server.host}\n"
        assert (await wasmc.run("tags", f"{server.host}/a/b", check=False)).returncode == 1


@pytest.mark.parametrize("setting", ["credsStore", "credHelpers"])
async def test_a_login_goes_to_the_credential_helper(tmp_path: Path, setting: str) -> None:
    users = {"alice": "s3cret"}
    async with registry.distribution(tmp_path / "registry", users=users) as server:
        helper = tmp_path / "docker-credential-test"
        helper.write_text(HELPER.format(folder=tmp_path))
        helper.chmod(0o755)
        wasmc = wasmer.wasmc(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
        config = tmp_path / ".docker" / "config.json"
        value: object = {server.host: "test"} if setting == "credHelpers" else "test"
        config.write_text(json.dumps({setting: value}))

        done = await wasmc.run(
            *("login", server.host, "-u", "alice", "--password-stdin", "--json"), stdin=b"s3cret"
        )
        assert json.loads(done.stdout)["place"] == "docker-credential-test"
        assert done.stderr == ""
        assert json.loads(config.read_text())["auths"] == {server.host: {}}
        stored = json.loads((tmp_path / "docker-credential-test.json").read_text())
        assert stored == {"ServerURL": server.host, "Username": "alice", "Secret": "s3cret"}
        (tmp_path / "m.wasm").write_bytes(MODULE)
        await wasmc.run("push", f"{server.host}/a/b:v1", "-f", "m.wasm")

        await wasmc.run("logout", server.host)
        assert not (tmp_path / "docker-credential-test.json").exists()
        helper.write_text("#!/bin/sh\necho s3cret; exit 1\n")
        failed = await wasmc.run(
            *("login", server.host, "-u", "alice", "--password-stdin"), stdin=b"s3cret", check=False
        )
        assert failed.returncode == 1
        assert "docker-credential-test store failed" in failed.stderr
        assert "s3cret" not in failed.stderr


async def test_a_login_is_tried_at_the_token_service_of_the_registry(tmp_path: Path) -> None:
    service = TokenService(tmp_path / "tokens", users={"alice": "s3cret"})
    async with service, registry.distribution(tmp_path / "r", auth=service.configuration) as server:
        wasmc = wasmer.wasmc(tmp_path)
        login = ("login", f"http://{server.host}/v2/", "-u", "alice", "--password-stdin", "-q")
        wrong = await wasmc.run(*login, stdin=b"wrong", check=False)
        assert wrong.returncode == 1
        done = await wasmc.run(*login, stdin=b"s3cret")
        assert (done.stdout, done.stderr) == ("", "")
        assert service.given >= 1


async def test_a_login_over_tls_uses_the_given_authority(tmp_path: Path) -> None:
    tls = Authority().issue(tmp_path / "tls")
    users = {"alice": "s3cret"}
    async with registry.distribution(tmp_path / "registry", tls=tls, users=users) as server:
        wasmc = wasmer.wasmc(tmp_path)
        login = ("login", server.host, "-u", "alice", "-p", "s3cret", "-q")
        assert "certificate" in (await wasmc.run(*login, check=False)).stderr
        await wasmc.run(*login, "--ca-file", str(tls.authority))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["login", "registry"], "has neither a dot nor a port"),
        (["login", "r.example"], "use --username and --password-stdin"),
        (["login", "r.example", "--password-stdin"], "requires --username"),
        (["login", "r.example", "-u", "a", "-p", "b", "--password-stdin"], "either --password or"),
        (["login", "r.example", "-u", "a:b", "-p", "b"], "cannot contain a colon"),
        (["logout", "r.example/team"], "without scheme and path"),
        (["copy", "a.example/x"], "DESTINATION"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_wrong_usage_is_one_sentence(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = await wasmer.wasmc(tmp_path).run(*arguments, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]
