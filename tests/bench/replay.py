"""`python -m tests.bench.replay --pods N --events M [--rate R]`: an API server that serves only a watch of Pods.

Its list is empty; the watch sends N added Pods and M - N changes of them, as fast as they are read or R a second, each in
a chunk of its own, as the real one does. Prints its port. Not a fake for tests: no errors, no other resources.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

EVENT_END = b"\n"
_BATCH = 256 << 10
_TICK = 0.005
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_EMPTY = b'{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}'
_BOOKMARK = (
    b'{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"1",'
    b'"annotations":{"k8s.io/initial-events-end":"true"}}}}\n'
)


class Replay:
    """Serves one watch after the other; `chunks` are the events, framed."""

    def __init__(self, pods: int, total: int, rate: int) -> None:
        from tests.bench.pods import events  # noqa: PLC0415  # it takes the line's end from here

        numbers = range(pods)
        come = [_chunk(one) for one in events(numbers, kind="ADDED")]
        change = [
            [
                _chunk(one)
                for one in events(numbers, kind="MODIFIED", label=label, first=turn * pods)
            ]
            for turn, label in enumerate(("v2", "v1"), 1)
        ]
        self._come, self._change, self._total, self._rate = come, change, total, rate

    def _all(self) -> Iterator[bytes]:
        yield from self._come
        left = self._total - len(self._come)
        turn = 0
        while left > 0:
            yield from self._change[turn % 2][:left]
            left -= len(self._change[turn % 2])
            turn += 1

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                line = (await reader.readline()).decode()
                while await reader.readline() not in (b"\r\n", b""):
                    pass
                if not line:
                    return
                url = urlsplit(line.split()[1])
                query = parse_qs(url.query)
                if query.get("watch", [""])[0].lower() not in ("true", "1"):
                    writer.write(_HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(_EMPTY), _EMPTY))
                    continue
                writer.write(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
                if "sendInitialEvents" in query:
                    writer.write(_chunk(_BOOKMARK))
                await self._send(writer)
                await reader.read()  # until the client disconnects
                return
        except ConnectionError:
            return
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        batch: list[bytes] = []
        size, begun = 0, time.monotonic()
        for sent, chunk in enumerate(self._all(), 1):
            batch.append(chunk)
            size += len(chunk)
            due = self._rate and len(batch) >= self._rate * _TICK
            if due or size >= _BATCH:
                writer.write(b"".join(batch))
                await writer.drain()
                batch, size = [], 0
                if self._rate:
                    await asyncio.sleep(max(0.0, begun + sent / self._rate - time.monotonic()))
        writer.write(b"".join(batch))
        await writer.drain()


def _chunk(line: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(line), line)


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    for name in ("--pods", "--events", "--rate"):
        parser.add_argument(name, type=int, default=0)
    arguments = parser.parse_args()
    replay = Replay(arguments.pods, arguments.events, arguments.rate)
    server = await asyncio.start_server(replay.serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
