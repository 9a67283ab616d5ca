"""Whether a port of this machine speaks TLS: one question in plain HTTP, and what comes back.

For `wasmc`, which asks a registry on loopback in plain HTTP unless it has TLS, as crane does. Not for other hosts: there plain
HTTP is never chosen without being told. Invariant: nothing but the question is sent, and no login.

Sources: RFC 8446 section 5.1 (record header: type 21 is an alert, 22 a handshake; version 3.x).
"""

import asyncio
import contextlib
import ssl
from typing import Final

from autowasm.net.answers import SPEAKS_TLS
from autowasm.net.failures import TLS_PROBLEMS
from autowasm.net.hosts import split_port

_MOST: Final = 2048
_BODY_WAIT: Final = 1.0
"""Seconds for the body of a 400."""
_RECORDS: Final = (b"\x15\x03", b"\x16\x03")


async def speaks_tls(host: str, *, timeout: float) -> bool:
    """`host` is `HOST[:PORT]` of this machine, by default port 80. False too if nothing answers within `timeout` seconds."""
    name, port = split_port(host)
    address = name.strip("[]")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            try:
                answer = await _ask(address, int(port or 80), host=host)
            except ConnectionRefusedError:
                return False
            except OSError:
                answer = b""
            if answer.startswith(_RECORDS):
                return True
            if answer:
                text = answer.decode(errors="replace").lower()
                return " 400 " in text[:20] and any(phrase in text for phrase in SPEAKS_TLS)
            return await _shakes_hands(address, int(port or 80))
    return False


async def _ask(address: str, port: int, *, host: str) -> bytes:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(f"GET /v2/ HTTP/1.0\r\nHost: {host}\r\nUser-Agent: autowasm\r\n\r\n".encode())
        await writer.drain()
        answer = await reader.read(_MOST)
        if answer.startswith(b"HTTP/") and b" 400 " in answer[:20]:
            # The sentence may come in a packet of its own.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_BODY_WAIT):
                    while len(answer) < _MOST and (more := await reader.read(_MOST)):
                        answer += more
        return answer
    finally:
        writer.close()


async def _shakes_hands(address: str, port: int) -> bool:
    """A server that ended the connection without a word: it waits for TLS, or it is broken."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(address, port, ssl=context)
    except ssl.SSLError as error:
        # It speaks TLS, but not with us: it wants a client certificate, or an older version.
        return (error.reason or "") in TLS_PROBLEMS
    except OSError:
        return False
    writer.close()
    return True
