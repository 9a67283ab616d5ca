"""The blob port as its clients see it."""

import asyncio
import contextlib
from pathlib import Path

import aiohttp
import pytest

from autowasm.limits import MIB, ServeLimits
from tests.integration.server.harness import MODULE, Serving, serving, sha256, until
from tests.parts import wire


async def raw(server: Serving, *pieces: bytes, half_close: bool = False) -> bytes:
    """Send `pieces`, read to the end of the connection."""
    reader, writer = await server.connect()
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()


async def test_get_and_head_have_exactly_the_promised_headers(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        digest = await server.put(MODULE)
        got = await wire.get(server.url(digest) + "?r=7&anything")
        headers = dict(got.headers)
        assert headers.pop("date")
        assert headers == {
            "server": "wasmer",
            "content-type": "application/wasm",
            "content-length": str(len(MODULE)),
            "etag": f'"sha256:{digest}"',
            "cache-control": "public, max-age=31536000, immutable",
            "accept-ranges": "bytes",
        }
        assert (got.status, got.body) == (200, MODULE)
        head = await wire.request("HEAD", server.url(digest))
        assert {**head.headers, "date": ""} == {**got.headers, "date": ""}
        assert (head.status, head.body) == (200, b"")
        assert server.metric("autowasm_blob_served_bytes_total") == len(MODULE)
        assert server.metric("autowasm_blob_responses_total", method="HEAD", status="200") == 1
        assert server.metric("autowasm_blob_cache_requests_total", kind="disk") == 2


@pytest.mark.parametrize(
    ("headers", "status", "content_range", "body"),
    [
        ({"Range": "bytes=0-9"}, 206, f"bytes 0-9/{len(MODULE)}", MODULE[:10]),
        ({"Range": "bytes=-5"}, 206, f"bytes {len(MODULE) - 5}-{len(MODULE) - 1}/{len(MODULE)}", MODULE[-5:]),
        ({"Range": "bytes=999999-"}, 416, f"bytes */{len(MODULE)}", None),
        ({"Range": "bytes=0-1,4-5"}, 200, None, MODULE),
        ({"Range": "lines=0-1"}, 200, None, MODULE),
        ({"Range": "bytes=0-9", "If-Range": '"old"'}, 200, None, MODULE),
        ({"If-None-Match": "*"}, 304, None, b""),
        ({"If-Match": '"other"'}, 412, None, None),
        ({"Accept-Encoding": "gzip, br"}, 200, None, MODULE),
        ({"Host": "anything.example:1"}, 200, None, MODULE),
    ],
)  # fmt: skip
async def test_conditions_and_ranges(
    tmp_path: Path, headers: dict[str, str], status: int, content_range: str, body: bytes | None
) -> None:
    async with serving(tmp_path) as server:
        digest = await server.put(MODULE)
        got = await wire.get(
            server.url(digest), headers={name.lower(): v for name, v in headers.items()}
        )
        assert got.status == status
        assert got.headers.get("content-range") == content_range
        assert got.headers["etag"] == f'"sha256:{digest}"'
        assert "content-encoding" not in got.headers
        if body is None:
            assert got.body.endswith(b".\n")
        else:
            assert got.body == body


async def test_other_paths_and_methods(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=ServeLimits(held_unknown=0.05)) as server:
        digest = await server.put(MODULE)
        for path in (
            "/",
            "/wasm/",
            f"/wasm/{digest.upper()}",
            f"/wasm/{digest}/",
            f"/wasm/{digest}0",
            f"//wasm/{digest}",
            f"/wasm/sha256:{digest}",
            "/wasm/../../etc/passwd",
            "/wasm/%2e%2e/lock",
        ):
            got = await wire.get(f"http://{server.host}{path}")
            assert got.status == 404, path
            assert got.headers["content-type"].startswith("text/plain")
            assert b"64 lower-case hexadecimal digits" in got.body
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND"):
            got = await wire.request(method, server.url(digest))
            assert (got.status, got.headers["allow"]) == (405, "GET, HEAD")
        assert server.metric("autowasm_blob_responses_total", method="other", status="405") == 6


async def test_bad_requests_get_a_text_with_the_error(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        digest = await server.put(MODULE)
        for request in (
            f"GET /wasm/{digest} HTTP/1.1\r\n\r\n".encode(),  # no Host
            f"GET /wasm/{digest} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".encode(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
            b"GET /" + b"x" * 20000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        ):
            answer = await raw(server, request)
            assert answer.split(b" ")[1] == b"400", request
            assert b"not a valid HTTP request" in answer
            assert b"xxx" not in answer, "what came is not sent back"
            assert b"bytearray" not in answer
            assert b"Server: wasmer" in answer or b"server: wasmer" in answer


async def test_http_1_0_gets_the_module_and_a_closed_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        digest = await server.put(MODULE)
        answer = await raw(server, f"GET /wasm/{digest} HTTP/1.0\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.0 200")
        assert answer.endswith(b"\r\n\r\n" + MODULE)


async def test_kept_and_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        small, large = await server.put(MODULE), await server.put(MODULE * 300)
        connection = await wire.Connection.open(server.host)
        for _ in range(3):
            got = await connection.request("GET", f"/wasm/{small}")
            assert got.body == MODULE
        await connection.close()
        order = [small, large, small, large, large, small] * 10
        requests = b"".join(
            f"GET /wasm/{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for digest in order
        )
        cut = len(requests) // 3
        answer = await raw(server, requests[:cut], requests[cut:], half_close=True)
        bodies = {small: MODULE, large: MODULE * 300}
        for digest in order:
            head, _, answer = answer.partition(b"\r\n\r\n")
            assert digest.encode() in head
            assert answer.startswith(bodies[digest])
            answer = answer[len(bodies[digest]) :]
        assert answer == b""


async def test_a_client_that_shuts_down_its_sending_side_gets_its_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        digest = await server.put(MODULE * 400)
        request = f"GET /wasm/{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        answer = await raw(server, request, half_close=True)
        assert answer.endswith(MODULE * 400)
        assert await raw(server, half_close=True) == b""
        assert (await raw(server, b"GET /wrong HTTP/1.1\r\nHost: a\r\n\r\n", half_close=True)).startswith(
            b"HTTP/1.1 404"
        )  # fmt: skip


async def test_bodies_of_requests_are_ignored_and_not_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=ServeLimits(unread_body=0.1)) as server:
        digest = await server.put(MODULE)
        got = await wire.request("GET", server.url(digest), body=b"x" * 100_000)
        assert got.body == MODULE
        head = f"GET /wasm/{digest} HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n"
        answer = await raw(server, head.encode() + b"begun")
        assert answer.endswith(MODULE)
        head = (
            f"GET /wasm/{digest} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
        )
        answer = await raw(server, head.encode(), half_close=True)
        assert answer.endswith(MODULE)


async def test_client_libraries_agree_with_our_answers(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, aiohttp.ClientSession() as session:
        digest = await server.put(MODULE * 1000)
        for _ in range(3):
            async with session.get(server.url(digest)) as got:
                assert await got.read() == MODULE * 1000
        async with session.get(server.url(digest), headers={"Range": "bytes=7-"}) as got:
            assert await got.read() == (MODULE * 1000)[7:]


async def test_large_modules_arrive_whole_at_many_clients(tmp_path: Path) -> None:
    data = MODULE * 800  # 4 MB
    async with serving(tmp_path) as server:
        digest = await server.put(data)
        answers = await asyncio.gather(*(wire.get(server.url(digest)) for _ in range(30)))
        assert {sha256(answer.body) for answer in answers} == {digest}
        assert server.metric("autowasm_blob_sends") == 0
        assert server.metric("autowasm_blob_served_bytes_total") == 30 * len(data)


async def test_aborted_downloads_leave_no_trace_but_a_count(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        digest = await server.put(b"a" * 20 * MIB)
        request = f"GET /wasm/{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        for _ in range(5):
            connections = [await server.connect() for _ in range(40)]
            for _, writer in connections:
                writer.write(request)
            for reader, _ in connections:
                await reader.readexactly(70_000)
            for number, (_, writer) in enumerate(connections):
                if number % 2:
                    writer.transport.abort()
                else:
                    writer.close()
        await until(lambda: server.metric("autowasm_blob_sends") == 0)
        assert server.metric("autowasm_blob_sends_aborted_total", cause="client") == 200
        assert (await wire.get(server.url(digest))).status == 200


async def test_a_reader_that_stops_is_cut_at_the_deadline(tmp_path: Path) -> None:
    limits = ServeLimits(send_base=0.3, send_rate=1000 * MIB)
    async with serving(tmp_path, limits=limits) as server:
        digest = await server.put(b"s" * 30 * MIB)
        reader, writer = await server.connect()
        writer.write(f"GET /wasm/{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await until(
            lambda: server.metric("autowasm_blob_sends_aborted_total", cause="deadline") == 1
        )
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(30 * MIB)
        writer.close()
        assert server.metric("autowasm_blob_sends") == 0


async def test_a_flood_of_requests_without_reading_is_cut(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=ServeLimits(send_base=0.3)) as server:
        _, writer = await server.connect(receive_buffer=16_384)
        writer.transport.pause_reading()

        async def flood() -> None:
            while True:
                writer.write(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
                await writer.drain()

        async with asyncio.timeout(100):
            with pytest.raises(ConnectionError):
                await flood()
        writer.close()


async def test_a_file_that_shrinks_while_it_is_sent_ends_the_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        digest = await server.put(b"t" * 30 * MIB)
        reader, writer = await server.connect()
        writer.write(f"GET /wasm/{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: server.metric("autowasm_blob_sends") == 1)
        with (tmp_path / "blobs" / digest).open("r+b") as file:
            file.truncate(10)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(30 * MIB)
        writer.close()
        assert server.metric("autowasm_blob_sends_aborted_total", cause="storage") == 1


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"GET /wasm/"],
        [b"GET / HTTP/1.1\r\nHost: a\r\nX-Drip: ", *[b"x"] * 3000],
        [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HT"],
        [b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT"],
    ],
    ids=["silent", "half", "drip", "half after a whole", "half in one piece with a whole"],
)
async def test_silent_and_half_sent_requests_are_cut(tmp_path: Path, pieces: list[bytes]) -> None:
    async with serving(tmp_path, limits=ServeLimits(request_timeout=0.3)) as server:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        reader, writer = await server.connect()

        async def drip() -> None:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.03)

        dripping = asyncio.create_task(drip())
        # A drip that continues would last 90 s. Bytes that arrive after the server has closed make the kernel reset the connection.
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionResetError):
                while await reader.read(1000):
                    pass
        assert loop.time() - begun > 0.25
        dripping.cancel()
        writer.close()


async def test_idle_connections_stay_longer_than_a_request_may_take(tmp_path: Path) -> None:
    # Between the two requests the connection is idle for longer than one limit, and by seconds shorter than the other.
    limits = ServeLimits(request_timeout=0.4, keepalive_timeout=4.5)
    async with serving(tmp_path, limits=limits) as server:
        digest = await server.put(MODULE)
        loop = asyncio.get_running_loop()
        connection = await wire.Connection.open(server.host)
        for _ in range(2):
            idle_since = loop.time()
            assert (await connection.request("GET", f"/wasm/{digest}")).body == MODULE
            await asyncio.sleep(0.5)
        assert await connection.reader.read() == b""
        assert loop.time() - idle_since > 4.4
        await connection.close()


async def test_a_slow_send_is_not_taken_for_a_silent_client(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=ServeLimits(request_timeout=0.2)) as server:
        digest = await server.put(b"s" * 20 * MIB)
        reader, writer = await server.connect()
        request = f"GET /wasm/{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        writer.write(request + request)  # the second one waits for the first
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.6)
            await reader.readexactly(20 * MIB)
        writer.close()
