"""Which certificates are taken: the same by each of our clients, on every Python, and by curl."""

import asyncio
import json
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from autowasm.errors import AutoWasmError
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import Unreachable
from autowasm.kube.resources import SECRETS, ObjectKey
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.net.session import ObjectSession
from autowasm.reference import ImageReference
from autowasm.registry.client import RegistryClient
from autowasm.settings import Outgoing
from tests.parts.certificates import Authority
from tests.parts.registry import TlsFiles

_ROOT = Authority("root")
_BODY = b"{}"

Make = Callable[[Path], TlsFiles]


def by_an_intermediate(folder: Path) -> TlsFiles:
    """The CA file has the intermediate authority alone; its root is nowhere."""
    return Authority("intermediate", issuer=_ROOT).issue(folder)


def by_another(folder: Path) -> TlsFiles:
    files = Authority("one").issue(folder)
    files.authority.write_bytes(Authority("another").certificate_pem)
    return files


def pinned(folder: Path) -> TlsFiles:
    """The CA file is the server's own certificate."""
    files = _ROOT.issue(folder)
    files.authority.write_bytes(files.certificate.read_bytes())
    return files


ACCEPTED: dict[str, Make] = {
    "no key identifiers": Authority().issue,
    "basicConstraints not critical": Authority(critical=False).issue,
    "keyUsage that may sign": Authority(may_sign=True).issue,
    "an intermediate authority without its root": by_an_intermediate,
    "the server's certificate itself": pinned,
}
REFUSED: dict[str, Make] = {
    "another authority": by_another,
    "keyUsage that may not sign": Authority(may_sign=False).issue,
    "ended": lambda folder: _ROOT.issue(folder, ended=True),
    "another address": lambda folder: _ROOT.issue(folder, addresses=("127.0.0.2",), hosts=()),
}


async def taken_by(files: TlsFiles, folder: Path) -> dict[str, bool]:
    """Which client got an answer from a real server with this certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(_BODY)}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + _BODY)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    outgoing = Outgoing(ca_file=files.authority)
    try:
        with Pools() as pools:
            return {
                "curl": await _curl(files, port),
                "objects": await _object(outgoing, pools, port),
                "registries": await _registry(outgoing, pools, port),
                "Kubernetes": await _kubernetes(files, pools, port, folder),
            }
    finally:
        server.close()


async def _curl(files: TlsFiles, port: int) -> bool:
    curl = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--noproxy", "*", "--cacert", files.authority),
        f"https://127.0.0.1:{port}/",
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await curl.communicate()
    return output == _BODY


async def _object(outgoing: Outgoing, pools: Pools, port: int) -> bool:
    async with ObjectSession(
        outgoing=outgoing, limits=Limits(), pools=pools, policy=None
    ) as session:
        try:
            async with session.stream_get(f"https://127.0.0.1:{port}/m.wasm") as stream:
                return b"".join([chunk async for chunk in stream]) == _BODY
        except AutoWasmError as error:
            if error.reason != "CertificateInvalid":
                raise
            return False


async def _registry(outgoing: Outgoing, pools: Pools, port: int) -> bool:
    client = RegistryClient(outgoing=outgoing, limits=Limits(), pools=pools, policy=None)
    try:
        await client.resolve(ImageReference.parse(f"127.0.0.1:{port}/a/b:v1"), credential=None)
    except AutoWasmError as error:  # an answer that is no manifest is an answer
        return error.reason != "CertificateInvalid"
    finally:
        await client.close()
    return True


async def _kubernetes(files: TlsFiles, pools: Pools, port: int, folder: Path) -> bool:
    cluster = {
        "server": f"https://127.0.0.1:{port}",
        "certificate-authority": str(files.authority),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    async with KubeClient(kubeconfig=path, pools=pools, user_agent="test") as client:
        try:
            return await client.get(SECRETS, ObjectKey("ns", "name")) == {}
        except Unreachable as error:
            if "certificate" not in str(error).lower():
                raise
            return False


@pytest.mark.parametrize("kind", ACCEPTED)
async def test_every_client_accepts_the_certificates_that_curl_accepts(
    kind: str, tmp_path: Path
) -> None:
    taken = await taken_by(ACCEPTED[kind](tmp_path / "tls"), tmp_path)
    assert taken == dict.fromkeys(taken, True)


@pytest.mark.parametrize("kind", REFUSED)
async def test_every_client_rejects_the_certificates_that_curl_rejects(
    kind: str, tmp_path: Path
) -> None:
    taken = await taken_by(REFUSED[kind](tmp_path / "tls"), tmp_path)
    assert taken == dict.fromkeys(taken, False)
