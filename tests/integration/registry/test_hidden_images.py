"""Registries that hide private images: a configured login is used before an anonymous 401, 403 or 404 is final.

The registry is distribution's with passwords; a front before it hides the challenge. crane is the oracle.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts import clients, registry, wasmer, wat
from tests.parts import envoy as envoys
from tests.parts.clients import Client
from tests.parts.faults.http import Answer, HttpFaultProxy, Replace, Request

HIDDEN = b'{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}'
JSON = {"Content-Type": "application/json"}
RULES: dict[str, tuple[int, bool]] = {
    # The status instead of 401, and whether /v2/ has the challenge.
    "404, /v2/ asks": (404, True),
    "403, /v2/ asks": (403, True),
    "401 without challenge, /v2/ asks": (401, True),
    "404, nothing asks": (404, False),
    "403, nothing asks": (403, False),
    "401, nothing asks": (401, False),
}


def hides(status: int, *, ping_asks: bool) -> Replace:
    """To a request without a login: `status` and no challenge. `/v2/` has one, or is open."""

    def rule(asked: Request) -> Answer | None:
        if asked.authorization is not None:
            return None
        if asked.path == "/v2/":
            return None if ping_asks else Answer(200, b"{}", JSON)
        return Answer(status, HIDDEN, JSON)

    return Replace(rule)


@dataclass
class HidingRegistry:
    """A registry that hides, and a home with a login for it."""

    home: Path
    front: HttpFaultProxy
    wasmc: Client

    @property
    def image(self) -> str:
        return f"{self.front.host}/team/filter:v1"

    def log_in(self, password: str = "s3cret") -> None:
        auth = base64.b64encode(f"alice:{password}".encode()).decode()
        config = self.home / ".docker" / "config.json"
        config.parent.mkdir(exist_ok=True)
        config.write_text(json.dumps({"auths": {self.front.host: {"auth": auth}}}))

    async def fails(self, *arguments: str) -> str:
        done = await self.wasmc.run(*arguments, check=False)
        assert done.returncode == 1, done
        assert "s3cret" not in done.stderr
        return done.stderr


Open = Callable[[Replace], contextlib.AbstractAsyncContextManager[HidingRegistry]]


@pytest.fixture
def hiding_registry(tmp_path: Path) -> Open:
    @contextlib.asynccontextmanager
    async def opened(fault: Replace) -> AsyncIterator[HidingRegistry]:
        users = {"alice": "s3cret"}
        async with (
            registry.distribution(tmp_path / "registry", users=users) as server,
            HttpFaultProxy(f"http://{server.host}", fault) as front,
        ):
            yield HidingRegistry(tmp_path, front, wasmer.wasmc(tmp_path))

    return opened


@pytest.mark.parametrize("name", RULES)
async def test_a_hidden_image_is_pushed_and_pulled_with_the_login(
    hiding_registry: Open, name: str
) -> None:
    status, ping_asks = RULES[name]
    async with hiding_registry(hides(status, ping_asks=ping_asks)) as there:
        there.log_in()
        module = wat.header_filter("world")
        (there.home / "example.wasm").write_bytes(module)
        await there.wasmc.run("push", there.image, "-f", "example.wasm")
        await there.wasmc.run("pull", there.image)
        assert (there.home / "filter.wasm").read_bytes() == module
        crane = await clients.crane(there.home)
        manifest = json.loads((await crane.run("manifest", "--insecure", there.image)).stdout)
        assert manifest["layers"], "the oracle can pull it, too"


async def test_missing_login_message_names_docker_login_and_the_searched_files(
    hiding_registry: Open,
) -> None:
    async with hiding_registry(hides(404, ping_asks=True)) as there:
        message = await there.fails("pull", there.image)
        assert "NAME_UNKNOWN: repository name not known to registry" in message
        assert f"docker login {there.front.host}" in message
        assert f"{there.home}/.docker/config.json (absent)" in message
        assert {asked.authorization for asked in there.front.forwarded} == {None}


async def test_a_wrong_login_is_sent_once_and_named_in_the_message(hiding_registry: Open) -> None:
    async with hiding_registry(hides(404, ping_asks=True)) as there:
        there.log_in("wrong")
        message = await there.fails("pull", there.image)
        assert "status 401 (UNAUTHORIZED: authentication required" in message
        assert "user 'alice'" in message
        assert "docker login" not in message
        shown = [asked for asked in there.front.forwarded if asked.authorization]
        assert len(shown) == 1, "accounts are locked after a few wrong passwords"


async def test_missing_image_is_reported_only_after_a_request_with_the_login(
    hiding_registry: Open,
) -> None:
    async with hiding_registry(hides(404, ping_asks=True)) as there:
        there.log_in()
        message = await there.fails("pull", there.image)
        assert "does not exist: status 404" in message
        assert "MANIFEST_UNKNOWN" in message or "NAME_UNKNOWN" in message
        assert "login" not in message
        last = there.front.forwarded[-1]
        assert last.authorization is not None


async def test_status_names_the_missing_pull_secret_and_the_secret_resolves_it(
    hiding_registry: Open, tmp_path: Path
) -> None:
    async with hiding_registry(hides(404, ping_asks=True)) as there:
        there.log_in()
        (there.home / "example.wasm").write_bytes(wat.header_filter("world"))
        await there.wasmc.run("push", there.image, "-f", "example.wasm")
        autowasm = {
            "apiVersion": "wasm.tcm.io/v1alpha1",
            "kind": "AutoWasm",
            "metadata": {"name": "hello"},
            "spec": {
                "filter": {"source": {"registry": {"image": there.image}}},
                "selector": {"matchLabels": {"app": "details"}},
            },
        }
        config = await asyncio.to_thread((there.home / ".docker" / "config.json").read_text)
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "pull"},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": config},
        }
        async with wasmer.standalone(
            tmp_path / "wasmer",
            template=envoys.listeners_yaml([1], cluster="web"),
            plain_http=[there.front.host],
        ) as server:
            server.apply(autowasm)
            status = await server.wait_phase("hello", "Failed")
            text = json.dumps(status)
            assert "NAME_UNKNOWN: repository name not known to registry" in text
            assert f"name a pull secret for {there.front.host} in spec.secret" in text
            server.apply(secret)
            spec = {**autowasm["spec"], "secret": "pull"}  # type: ignore[dict-item]
            server.apply({**autowasm, "spec": spec})
            await server.wait_phase("hello", "Synced")
