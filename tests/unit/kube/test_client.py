"""Calls: headers, deadlines, limits, errors, credentials."""

import asyncio
import logging
import ssl
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from autowasm.errors import UsageError
from autowasm.kube import errors
from autowasm.kube.client import KubeClient
from autowasm.kube.resources import SECRETS, ObjectKey
from autowasm.limits import KubeLimits
from autowasm.net.pools import Pools
from tests.parts.certificates import Authority
from tests.unit.kube.wire import (
    Answer,
    Wire,
    client_of,
    failure,
    json_answer,
    serve,
    write_kubeconfig,
)

KEY = ObjectKey("ns", "name")
QUICK = KubeLimits(call_timeout=0.3, connect_timeout=0.3, body_bytes=1000)
EAGER = KubeLimits(credentials_every=0.0, min_credentials_interval=0.0)


async def test_request_has_user_agent_token_and_accept_headers(tmp_path: Path) -> None:
    wire = Wire(json_answer({"metadata": {"name": "name"}}))
    async with client_of(wire, tmp_path) as client:
        assert await client.get(SECRETS, KEY) == {"metadata": {"name": "name"}}
        assert client.host == wire.url
    request = wire.requests[0]
    assert (request.method, request.path) == ("GET", "/api/v1/namespaces/ns/secrets/name")
    assert request.headers["user-agent"] == "test/1"
    assert request.headers["authorization"] == "Bearer s3cr3t"
    assert request.headers["accept"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"


async def test_sends_query_and_body(tmp_path: Path) -> None:
    wire = Wire(json_answer({}))
    async with client_of(wire, tmp_path) as client:
        await client.request("POST", "/x", query={"a": "b=c&d"}, body={"k": [1]})
    assert wire.requests[0].query == "a=b%3Dc%26d"
    assert wire.requests[0].document == {"k": [1]}
    assert wire.requests[0].headers["content-type"] == "application/json"


async def test_refusals_are_typed_and_say_how_long_to_wait(tmp_path: Path) -> None:
    wire = Wire(
        failure(404, "NotFound", 'secrets "name" not found'),
        failure(429, "TooManyRequests", Retry_After="9"),
        Answer(401, {}, (b"Unauthorized",)),
        Answer(503, {}, (b"<html>" + b"x" * 200_000,)),
    )
    async with client_of(wire, tmp_path) as client:
        with pytest.raises(errors.NotFound, match=r'GET /api.*secrets "name" not found'):
            await client.get(SECRETS, KEY)
        with pytest.raises(errors.TooManyRequests) as later:
            await client.get(SECRETS, KEY)
        assert later.value.retry_after == 9
        with pytest.raises(errors.Unauthorized):
            await client.get(SECRETS, KEY)
        with pytest.raises(errors.ServerError) as broken:
            await client.get(SECRETS, KEY)
        assert len(str(broken.value)) < 400


@pytest.mark.parametrize(
    "answer",
    [
        Answer(parts=(5.0,)),
        Answer(parts=(b"{", 5.0)),
        Answer(parts=tuple(part for _ in range(50) for part in (b" ", 0.05))),
    ],
    ids=["silent", "half an answer", "a slow drip"],
)
async def test_no_call_outlives_its_deadline(answer: Answer, tmp_path: Path) -> None:
    async with client_of(Wire(answer), tmp_path, limits=QUICK) as client:
        async with asyncio.timeout(2):
            with pytest.raises(errors.Unreachable, match="no answer in time"):
                await client.get(SECRETS, KEY)


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    wire = Wire()
    async with client_of(wire, tmp_path) as client:
        other = write_kubeconfig(tmp_path / "other", "http://127.0.0.1:1", {})
        async with KubeClient(
            kubeconfig=other, pools=client._pools, user_agent="test/1", limits=QUICK
        ) as lost:
            with pytest.raises(errors.Unreachable):
                await lost.get(SECRETS, KEY)


async def test_an_answer_that_breaks_off(tmp_path: Path) -> None:
    async with client_of(Wire(Answer(parts=(b'{"a"',), cut=True)), tmp_path) as client:
        with pytest.raises(errors.Unreachable):
            await client.get(SECRETS, KEY)


async def test_an_answer_above_the_limit(tmp_path: Path) -> None:
    async with client_of(Wire(Answer(parts=(b"x" * 1001,))), tmp_path, limits=QUICK) as client:
        with pytest.raises(errors.UnexpectedAnswer, match="longer than 1000"):
            await client.get(SECRETS, KEY)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b""])
async def test_an_answer_that_is_no_object(body: bytes, tmp_path: Path) -> None:
    parts = (body,) if body else ()
    async with client_of(Wire(Answer(parts=parts)), tmp_path) as client:
        with pytest.raises(errors.UnexpectedAnswer):
            await client.get(SECRETS, KEY)


async def test_the_callers_cancellation_is_no_error_of_ours(tmp_path: Path) -> None:
    async with client_of(Wire(Answer(parts=(5.0,))), tmp_path) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.get(SECRETS, KEY), 0.1)


async def test_no_secret_is_logged_at_any_level(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, logs: list[Any]
) -> None:
    caplog.set_level(logging.DEBUG)
    wire = Wire(json_answer({"data": {"password": "hunter2"}}), failure(403, "Forbidden"))
    async with client_of(wire, tmp_path) as client:
        await client.get(SECRETS, KEY)
        with pytest.raises(errors.Forbidden):
            await client.get(SECRETS, KEY)
    text = caplog.text + repr(logs)
    assert "hunter2" not in text
    assert "s3cr3t" not in text


@pytest.mark.parametrize("content", [None, "", "a: [", "apiVersion: v1\nkind: Config\n"])
async def test_a_kubeconfig_that_is_none_is_a_wrong_flag(
    content: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with Pools() as pools, pytest.raises(UsageError, match="--kubeconfig"):
        async with KubeClient(kubeconfig=path, pools=pools, user_agent="test/1"):
            pass


async def test_no_kubeconfig_outside_a_cluster(tmp_path: Path) -> None:
    with Pools() as pools, pytest.raises(UsageError, match="--kubeconfig is not set"):
        async with KubeClient(
            kubeconfig=None, pools=pools, user_agent="x", service_account=tmp_path, environ={}
        ):
            pass


class TestExecPlugin:
    """A kubeconfig with tokens from a program."""

    def write(self, tmp_path: Path, wire: Wire, *, expiry: str = "") -> Path:
        plugin = tmp_path / "plugin"
        status = '{"token": "token-\'$(wc -l < calls | tr -d " ")\'"' + expiry + "}"
        plugin.write_text(
            f"#!/bin/sh\ncd {tmp_path}\necho >> calls\n"
            'echo \'{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", '
            f'"status": {status}}}\'\n'
        )
        plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
        user = {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": str(plugin),
                "interactiveMode": "Never",
            }
        }
        return write_kubeconfig(tmp_path / "exec", wire.url, user)

    async def tokens(
        self, tmp_path: Path, wire: Wire, *, calls: int, expiry: str = ""
    ) -> list[str]:
        with Pools() as pools:
            async with serve(wire):
                kubeconfig = self.write(tmp_path, wire, expiry=expiry)
                async with KubeClient(
                    kubeconfig=kubeconfig, pools=pools, user_agent="x", limits=EAGER
                ) as client:
                    for _ in range(calls):
                        with suppress(errors.Unauthorized):
                            await client.get(SECRETS, KEY)
        return [request.headers["authorization"] for request in wire.requests]

    async def test_exec_plugin_runs_once_for_a_token_without_expiry(self, tmp_path: Path) -> None:
        tokens = await self.tokens(tmp_path, Wire(otherwise=json_answer({})), calls=3)
        assert tokens == ["Bearer token-1"] * 3

    async def test_exec_plugin_runs_again_after_the_server_refuses_the_token(
        self, tmp_path: Path
    ) -> None:
        wire = Wire(json_answer({}), failure(401, "Unauthorized"), otherwise=json_answer({}))
        tokens = await self.tokens(tmp_path, wire, calls=4)
        assert tokens == ["Bearer token-1"] * 2 + ["Bearer token-2"] * 2

    async def test_exec_plugin_runs_again_before_the_token_expires(self, tmp_path: Path) -> None:
        expiry = ', "expirationTimestamp": "2020-01-01T00:00:00Z"'
        wire = Wire(otherwise=json_answer({}))
        tokens = await self.tokens(tmp_path, wire, calls=2, expiry=expiry)
        assert tokens == ["Bearer token-2", "Bearer token-3"]

    async def test_failing_exec_plugin_is_a_usage_error(self, tmp_path: Path) -> None:
        exec_ = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}
        path = write_kubeconfig(tmp_path / "config", "http://127.0.0.1:1", {"exec": exec_})
        with Pools() as pools, pytest.raises(UsageError, match="returned 1"):
            async with KubeClient(kubeconfig=path, pools=pools, user_agent="x"):
                pass


class TestServiceAccount:
    """The credentials that the kubelet mounts into a Pod, and renews there."""

    def tls(self, authority: Authority, tmp_path: Path, name: str) -> ssl.SSLContext:
        files = authority.issue(tmp_path / name)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(files.certificate, files.key)
        return context

    def mount(self, directory: Path, *, token: str, authority: Authority) -> Path:
        directory.mkdir(exist_ok=True)
        (directory / "token").write_text(token + "\n")
        (directory / "ca.crt").write_bytes(authority.certificate_pem)
        return directory

    async def test_a_renewed_token_is_taken_up_on_the_same_connection(self, tmp_path: Path) -> None:
        authority = Authority()
        wire = Wire(otherwise=json_answer({}))
        account = self.mount(tmp_path / "sa", token="one", authority=authority)
        with Pools() as pools:
            async with (
                serve(wire, tls=self.tls(authority, tmp_path, "tls")) as port,
                self.client(account, port, pools) as client,
            ):
                await client.get(SECRETS, KEY)
                self.mount(account, token="two", authority=authority)
                await client.get(SECRETS, KEY)
        tokens = [request.headers["authorization"] for request in wire.requests]
        assert tokens == ["Bearer one", "Bearer two"]
        assert wire.connections == 1

    async def test_a_rotated_authority_is_taken_up(self, tmp_path: Path) -> None:
        old, new = Authority("old"), Authority("new")
        account = self.mount(tmp_path / "sa", token="one", authority=old)
        before, after = Wire(otherwise=json_answer({})), Wire(otherwise=json_answer({}))
        with Pools() as pools:
            async with serve(before, tls=self.tls(old, tmp_path, "old")) as port:
                client = self.client(account, port, pools)
                await client.__aenter__()
                await client.get(SECRETS, KEY)
            server = await asyncio.start_server(
                after.handle, "127.0.0.1", port, ssl=self.tls(new, tmp_path, "new")
            )
            try:
                with pytest.raises(errors.Unreachable, match=r"[Cc]ertificate"):
                    await client.get(SECRETS, KEY)
                self.mount(account, token="one", authority=new)
                assert await client.get(SECRETS, KEY) == {}
            finally:
                await client.__aexit__(None, None, None)
                server.close()
                await after.stop()

    async def test_a_briefly_failing_mount_keeps_the_credentials_read_before(
        self, tmp_path: Path, logs: list[Any]
    ) -> None:
        authority = Authority()
        account = self.mount(tmp_path / "sa", token="one", authority=authority)
        wire = Wire(otherwise=json_answer({}))
        with Pools() as pools:
            async with (
                serve(wire, tls=self.tls(authority, tmp_path, "tls")) as port,
                self.client(account, port, pools) as client,
            ):
                (account / "token").write_text("")
                assert await client.get(SECRETS, KEY) == {}
        assert [log["event"] for log in logs][-1] == "credentials not refreshed"

    async def test_a_watch_outlives_a_change_of_the_authority(self, tmp_path: Path) -> None:
        authority = Authority()
        account = self.mount(tmp_path / "sa", token="one", authority=authority)
        wire = Wire(Answer(parts=(b"one\n", 0.3, b"two\n")), otherwise=json_answer({}))
        with Pools() as pools:
            async with (
                serve(wire, tls=self.tls(authority, tmp_path, "tls")) as port,
                self.client(account, port, pools) as client,
                client.stream("/watch", query={"watch": "true"}, silence=5) as stream,
            ):
                assert await stream.read(4) == b"one\n"
                both = authority.certificate_pem + Authority("next").certificate_pem
                (account / "ca.crt").write_bytes(both)
                await client.get(SECRETS, KEY)
                assert await stream.read(4) == b"two\n"
        assert wire.connections == 2

    def client(self, account: Path, port: int, pools: Pools) -> KubeClient:
        return KubeClient(
            kubeconfig=None,
            pools=pools,
            user_agent="test/1",
            limits=EAGER,
            service_account=account,
            environ={
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT": str(port),
            },
        )


async def test_importing_does_not_load_the_library() -> None:
    code = (
        "import sys, autowasm.kube.client, autowasm.kube.informer, autowasm.kube.recorder;"
        "assert 'kubernetes_asyncio' not in sys.modules"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
