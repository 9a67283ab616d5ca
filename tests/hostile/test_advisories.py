"""Published advisories of other controllers, replayed on our readers."""

import asyncio
import gzip
import hashlib
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from autowasm.errors import ContentRejected
from autowasm.limits import MIB, Limits
from autowasm.wasm.archive import extract_module
from tests.hostile import inputs
from tests.hostile.conftest import autowasm
from tests.hostile.origin import Body, Origin
from tests.parts import wire
from tests.parts.wasmer import Wasmer
from tests.unit.wasm.archives import header

EXBIBYTES_8 = b"\x80" + bytes(3) + (2**63 - 1).to_bytes(8, "big")


def refusal(directory: Path, data: bytes) -> tuple[str, int]:
    """The message, and the maximum memory used, in bytes."""
    source = directory / "source"
    source.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ContentRejected) as caught:
            extract_module(source, directory / "destination", packing="detect", limits=Limits())
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_header_allocates_nothing(tmp_path: Path, packed: bool) -> None:
    """CVE-2026-53717, GHSA-h7pq-86h8-rp5x (Envoy Gateway): memory allocated by the size in a tar header."""
    data = header(b"plugin.wasm", EXBIBYTES_8) + b"\0asm\x01\0\0\0" + bytes(504)
    message, peak = refusal(tmp_path, gzip.compress(data) if packed else data)
    assert message
    assert peak < 8 * MIB


def test_a_gzip_bomb_ends_at_the_budget(tmp_path: Path) -> None:
    """GHSA-cxpq-8v7q-cg56 (Envoy Gateway): a gzip layer unpacked without a limit."""
    bomb = gzip.compress(b"\0asm\x01\0\0\0" + bytes(64 * MIB), compresslevel=1)
    message, peak = refusal(tmp_path, bomb)
    assert message
    assert peak < 48 * MIB


@pytest.mark.timeout(180)
async def test_a_flood_of_downloads_while_modules_arrive_gets_right_answers_only(
    server: Wasmer, hosts: list[Origin]
) -> None:
    """GHSA-8fv2-88gg-hm7q (Envoy Gateway): a crash by GETs while the map of modules was written."""
    modules = {
        hashlib.sha256(module).hexdigest(): module
        for module in (inputs.hello() + inputs.section(0, b"\x01" + bytes([n])) for n in range(40))
    }
    digests = list(modules)
    done = asyncio.Event()
    answers: Counter[int] = Counter()

    async def flood(start: int) -> None:
        number = start
        while not done.is_set():
            number += 1
            known = digests[number % len(digests)]
            invented = hashlib.sha256(str(number).encode()).hexdigest()
            for digest in (known, invented if number % 40 == 0 else known):
                answer = await wire.request(
                    "GET", f"http://{server.host}/wasm/{digest}", timeout=30
                )
                answers[answer.status] += 1
                if answer.status == 200:
                    assert answer.body == modules[digest]

    async with asyncio.TaskGroup() as group:
        for start in range(24):
            group.create_task(flood(start))
        for number, (digest, module) in enumerate(modules.items()):
            host = hosts[number % len(hosts)]
            url = host.serve(f"/{digest}", module)
            server.apply(autowasm(f"m{number}", namespace=f"ns{number % 8}", url=url))
        async with asyncio.timeout(120):
            for number in range(len(digests)):
                name, namespace = f"m{number}", f"ns{number % 8}"
                while server.status(name, namespace=namespace).get("phase") != "Synced":
                    await server.process.check()
                    await asyncio.sleep(0.05)
        done.set()
    assert answers[200] > 40
    assert set(answers) <= {200, 404, 503}
    for digest, module in modules.items():  # and it has all blobs afterwards
        assert (await wire.get(f"http://{server.host}/wasm/{digest}")).body == module


METADATA = ("169.254.169.254", "[fd00:ec2::254]", "100.100.100.200", "[::ffff:169.254.169.254]")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["object", "registry", "realm"])
async def test_no_redirect_and_no_token_realm_leads_to_metadata(
    server: Wasmer, hosts: list[Origin], way: str
) -> None:
    """Istio's release notes wasm-ssrf-redirect-dial-context and wasm-ssrf-bearer-realm, through a real process."""
    host = hosts[0]

    def to(target: str) -> Body:
        head = f"302 Found\r\nLocation: http://{target}/latest"
        if way == "realm":
            head = f'401 Unauthorized\r\nWWW-Authenticate: Bearer realm="http://{target}/t",service="s"'

        async def answer(writer: asyncio.StreamWriter) -> None:
            writer.write(f"HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n".encode())

        return answer

    for number, target in enumerate(METADATA):
        path = f"/v2/r{number}/manifests/v1" if way != "object" else f"/o{number}"
        url = host.act(path, to(target))
        source = {"url": url} if way == "object" else {"image": f"{host.host}/r{number}:v1"}
        server.apply(autowasm(f"s{number}", namespace=f"ns{number}", **source))
    for number, target in enumerate(METADATA):
        status: dict[str, object] = {}
        async with asyncio.timeout(90):
            while status.get("phase") != "Failed":
                await server.process.check()
                status = server.status(f"s{number}", namespace=f"ns{number}")
                await asyncio.sleep(0.05)
        path = f"/v2/r{number}/manifests/v1" if way != "object" else f"/o{number}"
        assert host.requests[path], "the attack was never asked for"
        message = str(status["message"])
        assert "never allowed" in message or "is not followed" in message, (target, message)
