"""client-go's ListWatch: lists and watches one resource over a KubeClient, and splits a watch into lines.

A ListWatch keeps no position and retries nothing (see `reflector.py`). Invariants: a list has no resourceVersion and is read in
pages (an API server ignores `limit` with resourceVersion 0); no read of a watch waits longer than its `silence`; a line is passed
on only when its end has arrived, so a partial line at the end of a stream is never an event; a line above the limit ends the
stream; a burst does not block the event loop.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Final, Generic, Protocol, TypeVar

from autowasm.kube.client import Body, KubeClient
from autowasm.kube.codec import Bookmark, Codec, Page, Stored, WatchEvent
from autowasm.kube.errors import AnswerTooLong, UnexpectedAnswer, WatchFrozen
from autowasm.kube.resources import ResourceType
from autowasm.limits import KubeLimits
from autowasm.performance.readpacing import ReadPacer

READ_BYTES = 256 * 1024
"""Bytes of one read: some twenty Pod events. A larger read only blocks the event loop longer."""


class ByteStream(Protocol):
    """The part of `aiohttp.StreamReader` that we use."""

    async def read(self, n: int = -1, /) -> bytes:
        """At most `n` bytes, as soon as there are any; empty at the end."""


class LineSplitter:
    """Splits chunks at newlines, and keeps a partial line until the rest of it arrives."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._held: list[bytes] = []
        self._held_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that this chunk completes, without line ends; empty lines are skipped. Raises UnexpectedAnswer."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            line = chunk[start:end]
            start = end + 1
            if self._held:
                self._hold(line)
                line = b"".join(self._held)
                self._held.clear()
                self._held_bytes = 0
            if len(line) > self._limit:
                raise self._too_long()
            if line and line != b"\r":
                yield line
        if start < len(chunk):
            self._hold(chunk[start:])

    def _hold(self, piece: bytes) -> None:
        self._held.append(piece)
        self._held_bytes += len(piece)
        if self._held_bytes > self._limit:
            raise self._too_long()

    def _too_long(self) -> UnexpectedAnswer:
        return UnexpectedAnswer(f"a line of the watch is longer than {self._limit} bytes")


async def read_lines(
    stream: ByteStream, *, limit: int, budget: float
) -> AsyncGenerator[bytes, None]:
    """Whole lines of the stream until it ends. Yields to the loop after each `budget` seconds of work.

    `budget` includes the time that the consumer spends on a line.
    """
    loop = asyncio.get_running_loop()
    splitter = LineSplitter(limit=limit)
    slice_ends = loop.time() + budget
    while chunk := await stream.read(READ_BYTES):
        for line in splitter.feed(chunk):
            yield line
            if loop.time() >= slice_ends:
                await asyncio.sleep(0)
                slice_ends = loop.time() + budget


_FEWER: Final = 4
"""A page that is too long is requested again with fewer objects, by this factor."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class EventStream(Protocol[T_co]):
    """One open watch."""

    silence: float
    """Seconds that a read may wait; the consumer may adjust it to how often the server sends data."""

    def events(self) -> AsyncGenerator[WatchEvent[T_co] | Bookmark, None]:
        """Events until the server ends the watch. Raises ApiError; WatchFrozen if the server is silent too long."""


class ListerWatcher(Protocol[T]):
    """The list and watch calls of a reflector (client-go's name)."""

    async def list_page(
        self, *, continue_token: str = "", stored: Stored[T] | None = None
    ) -> Page[T]:
        """The first page, or the page after the one that returned the token. Raises ApiError.

        `stored`: objects that may be returned instead of a decoded one of the same version.
        """

    def watch(
        self,
        *,
        resource_version: str,
        initial: bool,
        timeout: float,
        silence: float,
        stored: Stored[T] | None = None,
    ) -> AbstractAsyncContextManager[EventStream[T]]:
        """Watch from after `resource_version`; with `initial`, a streaming list first. Raises ApiError.

        The server ends the watch after `timeout` seconds. `stored` as in `list_page`, for the streaming list.
        """


class ListWatch(Generic[T]):
    """A ListerWatcher over the API server. `namespace` None: all namespaces."""

    def __init__(
        self,
        client: KubeClient,
        resource: ResourceType,
        codec: Codec[T],
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        pause: float = 0.0,
    ) -> None:
        """`pause`: seconds by which frequent events may be late. A wakeup for each event costs several times more than reading it."""
        self._pause = pause
        self._client = client
        self._path = resource.path(namespace=namespace)
        self._codec = codec
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        self._selectors = {name: selector for name, selector in selectors.items() if selector}
        self._limits = client.limits
        self._page_size = self._limits.page_size
        """Of the current list."""

    async def list_page(
        self, *, continue_token: str = "", stored: Stored[T] | None = None
    ) -> Page[T]:
        """See ListerWatcher."""
        size = self._page_size if continue_token else self._limits.page_size
        while True:
            query = {**self._selectors, "limit": str(size)}
            if continue_token:
                query["continue"] = continue_token
            most = self._limits.page_bytes if size > 1 else None
            try:
                body = await self._client.request("GET", self._path, query=query, most=most)
            except AnswerTooLong:
                if size == 1:
                    raise
                # For objects of etcd's maximum size: a few of them from one tenant must not make the list impossible.
                size = max(size // _FEWER, 1)
                continue
            self._page_size = size
            return await self._codec.page(body, stored=stored)

    @asynccontextmanager
    async def watch(
        self,
        *,
        resource_version: str,
        initial: bool,
        timeout: float,
        silence: float,
        stored: Stored[T] | None = None,
    ) -> AsyncIterator[EventStream[T]]:
        """See ListerWatcher."""
        query = {
            **self._selectors,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(round(timeout)),
        }
        if initial:
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        if resource_version:
            query["resourceVersion"] = resource_version
        longest = timeout + self._limits.watch_grace
        async with self._client.stream(self._path, query=query, silence=longest) as stream:
            yield _OpenWatch(
                stream,
                self._codec,
                self._limits,
                silence=silence,
                pause=self._pause,
                listed=not initial,
                stored=stored,
            )


class _OpenWatch(Generic[T]):
    """An EventStream over bytes; also the ByteStream of its own lines."""

    def __init__(
        self,
        stream: Body,
        codec: Codec[T],
        limits: KubeLimits,
        *,
        silence: float,
        pause: float,
        listed: bool,
        stored: Stored[T] | None,
    ) -> None:
        self.silence = silence
        self._stream = stream
        self._codec = codec
        self._limits = limits
        self._pacer = ReadPacer(stream.transport, pause=pause)
        self._listed = listed
        """Whether the streaming list, if any, is complete: only the rest of a list is urgent."""
        self._stored = stored

    async def events(self) -> AsyncGenerator[WatchEvent[T] | Bookmark, None]:
        lines = read_lines(self, limit=self._limits.line_bytes, budget=self._limits.loop_budget)
        async with aclosing(lines):
            async for line in lines:
                stored = None if self._listed else self._stored
                event = await self._codec.event(line, stored=stored)
                self._listed |= isinstance(event, Bookmark) and event.initial_events_end
                yield event

    async def read(self, n: int = -1, /) -> bytes:
        if self._listed:
            await self._pacer.wait()
        try:
            async with asyncio.timeout(self.silence):
                found = await self._stream.read(n)
        except TimeoutError as error:
            raise WatchFrozen(f"watch: no data for {self.silence:g} s") from error
        self._pacer.took(len(found))
        return found
