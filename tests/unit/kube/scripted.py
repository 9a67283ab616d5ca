"""A ListerWatcher with a script, for events that are rare on a real API server."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from autowasm.kube.codec import Bookmark, EventType, Page, Stored, WatchEvent
from autowasm.kube.errors import ApiError, WatchFrozen
from autowasm.kube.resources import ObjectKey

Event = WatchEvent[str] | Bookmark
FOREVER = 1e7


@dataclass(frozen=True)
class Pause:
    """The server sends nothing for this many seconds."""

    seconds: float = FOREVER


@dataclass(frozen=True)
class WireRequest:
    """A request of the reflector, and its time."""

    what: str
    position: str
    at: float
    may_reuse: bool = False


Said = Event | Pause | ApiError
Step = Page[str] | Sequence[Said] | ApiError


def key(name: str) -> ObjectKey:
    return ObjectKey("default", name)


def page(*names: str, rv: str, token: str = "") -> Page[str]:
    """A list page; each object's state is its name."""
    return Page([(key(name), name) for name in names], rv, token)


def event(kind: EventType, name: str, rv: str, state: str | None = None) -> WatchEvent[str]:
    return WatchEvent(kind, key(name), state or name, rv)


def bookmark(rv: str, *, end: bool = False) -> Bookmark:
    return Bookmark(rv, end)


class Stream:
    """One scripted watch."""

    def __init__(self, said: Sequence[Said], silence: float) -> None:
        self._said = said
        self.silence = silence

    async def events(self) -> AsyncGenerator[Event, None]:
        for step in self._said:
            if isinstance(step, ApiError):
                raise step
            if isinstance(step, Pause):
                await asyncio.sleep(min(step.seconds, self.silence))
                if step.seconds > self.silence:
                    raise WatchFrozen("no data")
            else:
                yield step


class Script:
    """Steps in the order of the reflector's requests: pages for lists, events for watches. Then silence."""

    def __init__(self, *steps: Step) -> None:
        self._steps = list(steps)
        self.requests: list[WireRequest] = []
        self.silences: list[float] = []
        self.reusable: list[str | None] = []
        """For each list that may use stored objects again: the stored state of `a`."""

    @property
    def order(self) -> list[tuple[str, str]]:
        return [(request.what, request.position) for request in self.requests]

    @property
    def times(self) -> list[float]:
        return [round(request.at - self.requests[0].at, 2) for request in self.requests]

    async def list_page(
        self, *, continue_token: str = "", stored: Stored[str] | None = None
    ) -> Page[str]:
        self._note("list", continue_token, stored)
        step = self._steps.pop(0)
        if isinstance(step, ApiError):
            raise step
        assert isinstance(step, Page), step
        return step

    @asynccontextmanager
    async def watch(
        self,
        *,
        resource_version: str,
        initial: bool,
        timeout: float,
        silence: float,
        stored: Stored[str] | None = None,
    ) -> AsyncIterator[Stream]:
        self._note("stream" if initial else "watch", resource_version, stored)
        self.silences.append(silence)
        step: Step = self._steps.pop(0) if self._steps else [Pause()]
        if isinstance(step, ApiError):
            raise step
        assert isinstance(step, Sequence), step
        yield Stream(step, silence)

    def _note(self, what: str, position: str, stored: Stored[str] | None) -> None:
        now = asyncio.get_running_loop().time()
        self.requests.append(WireRequest(what, position, now, stored is not None))
        if stored is not None:
            self.reusable.append(stored(key("a")))
