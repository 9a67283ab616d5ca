"""Messages when a registry refuses: the sentence on standard error, and no advice that cannot help.

Real registries where they can be made to do it, a front before one where they cannot.
"""

import contextlib
import datetime
import json
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.forwardproxy import ForwardProxy
from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.fakes.tlsserver import TlsServer
from tests.parts import ports, registry, wasmer, wat
from tests.parts.certificates import Authority
from tests.parts.clients import Client
from tests.parts.faults.http import Answer, HttpFaultProxy, Replace, Request
from tests.parts.registry import TlsFiles

HOUR = datetime.timedelta(hours=1)


@dataclass
class Person:
    """A home with a module, and `wasmc`."""

    home: Path
    wasmc: Client

    async def reads(self, *arguments: str, status: int = 1) -> str:
        """The one sentence of a command that fails."""
        done = await self.wasmc.run(*arguments, check=False)
        assert (done.returncode, done.stdout) == (status, ""), done
        assert done.stderr.startswith("wasmc: error: ")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    async def pushes(self, host: str, *arguments: str) -> str:
        return await self.reads("push", f"{host}/team/filter:v1", "-f", "example.wasm", *arguments)


@pytest.fixture
def person(tmp_path: Path) -> Person:
    (tmp_path / "example.wasm").write_bytes(wat.header_filter("world"))
    return Person(tmp_path, wasmer.wasmc(tmp_path))


def on(method: str, part: str, answer: Answer) -> Replace:
    """Send `answer` to requests of this method with `part` in their path."""

    def rule(asked: Request) -> Answer | None:
        return answer if asked.method == method and part in asked.path else None

    return Replace(rule)


def errors(code: str, message: str) -> bytes:
    return f'{{"errors":[{{"code":"{code}","message":"{message}"}}]}}'.encode()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            on("PUT", "/manifests/", Answer(403, errors("DENIED", "would exceed the quota"))),
            ["status 403 (DENIED: would exceed the quota)"],
        ),
        (
            on("PUT", "/manifests/", Answer(412, errors("PRECONDITION", "v1 is protected"))),
            ["status 412 (PRECONDITION: v1 is protected)", "immutable", "another tag"],
        ),
        (on("PUT", "/manifests/", Answer(409)), ["status 409", "immutable"]),
        (
            on("PUT", "/manifests/", Answer(400, errors("TAG_INVALID", "v1 exists"))),
            ["status 400 (TAG_INVALID: v1 exists)"],
        ),
        (
            on("POST", "/uploads/", Answer(404, errors("NAME_UNKNOWN", "no such repository"))),
            ["NAME_UNKNOWN: no such repository", "may have to be created first", "docker login"],
        ),
        (
            on("POST", "/uploads/", Answer(405, errors("UNSUPPORTED", "not supported"))),
            ["UNSUPPORTED: not supported", "read-only mirror"],
        ),
        (
            on("PUT", "/uploads/", Answer(413, b"<html><title>413 Too Large</title>", {"Content-Type": "text/html"})),
            ["status 413 (413 Too Large)", "client_max_body_size"],
        ),
        (
            on("POST", "/uploads/", Answer(302, b"", {"Location": "https://sso.example/?back=s3cret"})),
            ["status 302", "redirects to https://sso.example/;"],
        ),
        (
            on("POST", "/uploads/", Answer(200, b"<html><title>Sign in</title>", {"Content-Type": "text/html"})),
            ["status 200 (Sign in)", "a proxy may have answered"],
        ),
        (on("POST", "/uploads/", Answer(418, b"teapot\nmore")), ["status 418 (teapot)"]),
        (on("POST", "/uploads/", Answer(507)), ["status 507", "storage is full"]),
    ],
    ids=lambda value: "" if isinstance(value, Replace) else value[0][:30],
)  # fmt: skip
async def test_message_of_a_refused_push_has_the_registrys_message_and_its_meaning(
    person: Person, tmp_path: Path, fault: Replace, says: list[str]
) -> None:
    async with (
        registry.distribution(tmp_path / "registry") as server,
        HttpFaultProxy(f"http://{server.host}", fault) as front,
    ):
        message = await person.pushes(front.host)
    for part in says:
        assert part in message, message
    assert "s3cret" not in message


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 500, 501])
async def test_push_works_with_a_registry_that_refuses_head_of_a_blob(
    person: Person, tmp_path: Path, status: int
) -> None:
    async with (
        registry.distribution(tmp_path / "registry") as server,
        HttpFaultProxy(f"http://{server.host}", on("HEAD", "/blobs/", Answer(status))) as front,
    ):
        image = f"{front.host}/team/filter:v1"
        await person.wasmc.run("push", image, "-f", "example.wasm")
        await person.wasmc.run("pull", image)
    module = (person.home / "example.wasm").read_bytes()
    assert (person.home / "filter.wasm").read_bytes() == module


async def test_a_blob_whose_head_is_a_page_is_uploaded(person: Person, tmp_path: Path) -> None:
    page = Answer(200, b"<html>", {"Content-Type": "text/html"})
    async with (
        registry.distribution(tmp_path / "registry") as server,
        HttpFaultProxy(f"http://{server.host}", on("HEAD", "/blobs/", page)) as front,
    ):
        image = f"{front.host}/team/filter:v1"
        await person.wasmc.run("push", image, "-f", "example.wasm")
        await person.wasmc.run("pull", image)


Issue = Callable[[Authority, Path], TlsFiles]
CERTIFICATES: dict[str, tuple[Issue, str]] = {
    "expired": (lambda a, d: a.issue(d, age=100 * HOUR), "has expired"),
    "future": (lambda a, d: a.issue(d, age=-5 * HOUR), "is not valid yet"),
    "name": (lambda a, d: a.issue(d, addresses=("127.0.0.9",)), "is for another host"),
}


@pytest.mark.parametrize("name", CERTIFICATES)
async def test_invalid_certificate_message_does_not_suggest_a_ca_file(
    person: Person, tmp_path: Path, name: str
) -> None:
    issue, says = CERTIFICATES[name]
    files = issue(Authority(), tmp_path / "tls")
    async with registry.distribution(tmp_path / "registry", tls=files) as server:
        image = f"{server.host}/team/filter:v1"
        message = await person.reads("pull", image, "--ca-file", str(files.authority))
    assert f"its certificate {says}" in message
    assert "--ca-file" not in message
    assert "--insecure" not in message


async def test_unknown_ca_message_suggests_the_ca_file_flag(person: Person, tmp_path: Path) -> None:
    files = Authority().issue(tmp_path / "tls")
    async with registry.distribution(tmp_path / "registry", tls=files) as server:
        message = await person.reads("pull", f"{server.host}/team/filter:v1")
    assert "trust its CA with --ca-file, or skip verification with --insecure" in message
    assert message.startswith("wasmc: error: https://"), "TLS was found on this machine"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_tls_on_this_machine_is_found_and_a_trusted_certificate_needs_no_flag(
    person: Person, tmp_path: Path, host: str
) -> None:
    files = Authority().issue(tmp_path / "tls")
    trusting = wasmer.wasmc(person.home, SSL_CERT_FILE=str(files.authority))
    async with registry.distribution(tmp_path / "registry", tls=files) as server:
        image = f"{host}:{server.host.rpartition(':')[2]}/team/filter:v1"
        await trusting.run("push", image, "-f", "example.wasm")
        await trusting.run("pull", image)
        message = await person.reads("pull", image, "--plain-http")
    assert "TLS (https); omit --plain-http" in message


async def test_a_server_that_resets_plain_http_may_speak_tls(person: Person) -> None:
    async def reset(exchange: Exchange) -> None:
        exchange.writer.transport.abort()

    async with ScriptedServer(reset) as server:
        message = await person.reads("pull", f"{server.host}/team/filter:v1", "--plain-http")
    assert "TLS (https)" in message
    assert "omit --plain-http" in message


async def test_plain_http_where_tls_is_expected_names_the_flag(
    person: Person, tmp_path: Path
) -> None:
    async with registry.distribution(tmp_path / "registry") as server:
        message = await person.reads("pull", f"{server.host}/team/filter:v1", "--insecure")
    assert "does not speak TLS" in message
    assert "--plain-http" in message


async def test_a_reference_with_an_impossible_port_is_a_usage_error(person: Person) -> None:
    message = await person.reads("pull", "r.example:65536/team/filter", status=2)
    assert "the port must be from 1 to 65535, not 65536" in message


@contextlib.asynccontextmanager
async def behind_proxy(
    tmp_path: Path, **proxy: object
) -> AsyncIterator[tuple[ForwardProxy, TlsFiles]]:
    files = Authority().issue(tmp_path / "tls", hosts=("registry.example",))
    async with (
        registry.distribution(tmp_path / "registry", tls=files) as server,
        ForwardProxy(server.host, **proxy) as forward,  # type: ignore[arg-type]
    ):
        yield forward, files


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
async def test_a_registry_is_reached_through_the_proxy_of_the_environment(
    person: Person, tmp_path: Path, variable: str
) -> None:
    async with behind_proxy(tmp_path) as (forward, files):
        through = wasmer.wasmc(person.home, **{variable: f"http://bob:s3cret@{forward.host}"})
        image = "registry.example/team/filter:v1"
        trust = ("--ca-file", str(files.authority))
        await through.run("push", image, "-f", "example.wasm", *trust)
        await through.run("pull", image, *trust)
        assert set(forward.asked) == {"CONNECT registry.example:443 HTTP/1.1"}
        asked = len(forward.asked)

        direct = wasmer.wasmc(
            person.home, HTTPS_PROXY=f"http://{forward.host}", NO_PROXY=".example"
        )
        done = await direct.run("pull", "registry.example/team/filter:v1", *trust, check=False)
        assert "the host name cannot be resolved" in done.stderr
        port = forward.target.rpartition(":")[2]
        await direct.run("pull", f"127.0.0.1:{port}/team/filter:v1", *trust)
        assert len(forward.asked) == asked, "loopback and NO_PROXY are asked directly"


async def test_a_proxy_that_refuses_or_is_down_is_named_without_its_password(
    person: Person, tmp_path: Path
) -> None:
    image = "registry.example/team/filter:v1"
    async with behind_proxy(tmp_path, refuses_with=407) as (forward, _):
        through = wasmer.wasmc(person.home, HTTPS_PROXY=f"http://bob:s3cret@{forward.host}")
        message = (await through.run("pull", image, check=False)).stderr
        assert f"the proxy {forward.host} did not open a tunnel: status 407" in message
        assert "requires a login" in message
        assert "s3cret" not in message
    down = f"127.0.0.1:{ports.free_port()}"
    through = wasmer.wasmc(person.home, HTTPS_PROXY=f"http://bob:s3cret@{down}")
    message = (await through.run("pull", image, check=False)).stderr
    assert f"the proxy {down}, used for registry.example, cannot be reached" in message
    assert "s3cret" not in message


async def test_without_a_home_a_public_image_is_pulled(person: Person, tmp_path: Path) -> None:
    async with registry.distribution(tmp_path / "registry") as server:
        image = f"{server.host}/team/filter:v1"
        await person.wasmc.run("push", image, "-f", "example.wasm")
        homeless = wasmer.wasmc(person.home, HOME="", DOCKER_CONFIG="")
        await homeless.run("pull", image)
        unreadable = person.home / "locked"
        (unreadable / ".docker").mkdir(parents=True)
        (unreadable / ".docker" / "config.json").mkdir()
        await wasmer.wasmc(person.home, HOME=str(unreadable), DOCKER_CONFIG="").run("pull", image)


async def test_no_form_of_a_login_or_token_that_a_registry_sends_back_is_shown(
    person: Person,
) -> None:
    async def script(exchange: Exchange) -> None:
        sent = exchange.request.headers.get("authorization", "")
        if exchange.request.target.startswith("/token"):
            await exchange.send(200, b'{"token":"s3cret-token"}')
        elif "basic" in exchange.request.target:
            answer = errors(
                "DENIED", f"{sent} and u:s3cret/p@ss and s3cret%2Fp%40ss and s3cret/p%40ss"
            )
            await exchange.send(401, answer, {"WWW-Authenticate": 'Basic realm="r"'})
        else:
            realm = f'Bearer realm="http://{exchange.request.headers["host"]}/token"'
            answer = errors("DENIED", f"token {sent.removeprefix('Bearer ')} has no scope")
            await exchange.send(401, answer, {"WWW-Authenticate": realm})

    async with ScriptedServer(script) as server:
        message = await person.reads("pull", f"{server.host}/team/filter:v1")
        assert "status 401 (DENIED: token … has no scope)" in message
        auths = {server.host: {"username": "u", "password": "s3cret/p@ss"}}
        known = wasmer.wasmc(person.home, DOCKER_AUTH_CONFIG=json.dumps({"auths": auths}))
        for repository in ("basic", "bearer"):
            done = await known.run("pull", f"{server.host}/team/{repository}:v1", check=False)
            assert "DENIED" in done.stderr
            assert "s3cret" not in done.stderr, done.stderr


async def test_an_answer_in_json_is_not_taken_for_that_of_a_port_with_tls(person: Person) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(400, errors("MANIFEST_INVALID", "manifest invalid"))

    async with ScriptedServer(script) as server:
        message = await person.reads("pull", f"{server.host}/team/filter:v1")
    assert "status 400 (MANIFEST_INVALID: manifest invalid)" in message
    assert "TLS" not in message


async def test_a_registry_on_this_machine_that_wants_a_client_certificate_is_not_taken_for_plain_http(
    person: Person, tmp_path: Path
) -> None:
    files = Authority().issue(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    trusting = wasmer.wasmc(person.home, SSL_CERT_FILE=str(files.authority))
    with TlsServer(context) as server:
        done = await trusting.run("pull", f"{server.host}/team/filter:v1", check=False)
    assert "requires a client certificate, which is not supported" in done.stderr


@pytest.mark.parametrize(
    ("body", "says"), [(b"", "the manifest is empty"), (b"[]", "not readable")]
)
async def test_a_manifest_that_cannot_be_read_is_named(
    person: Person, body: bytes, says: str
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(200, body, {"Content-Type": "application/json"})

    async with ScriptedServer(script) as server:
        message = await person.reads("pull", f"{server.host}/team/filter:v1")
        assert message.startswith(f"wasmc: error: image {server.host}/team/filter:v1: ")
    assert says in message
