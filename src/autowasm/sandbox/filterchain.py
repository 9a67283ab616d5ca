"""One direction of a stream through a filter chain that consists of the filter and the next stage.

It holds back headers, body and trailers as the filter's status requests, and passes them on, like Envoy's filter manager:
after `StopAllIteration` the filter sees the body only once it has resumed; after another stop it sees all of it, and the part it keeps is
passed on together. Invariant: the next stage gets headers first, once, and nothing after the end.

Source: envoy source/common/http/filter_manager.cc `commonContinue`, `commonHandleAfterHeadersCallback`,
`commonHandleAfterDataCallback`, `commonHandleAfterTrailersCallback`, `commonHandleBufferData`.
"""

from enum import Enum, auto
from typing import Protocol

from autowasm.sandbox.headers import HeaderMap
from autowasm.sandbox.protocol import DataStatus, HeadersStatus, TrailersStatus


class Filter(Protocol):
    """The filter, as a direction calls it."""

    def on_headers(self, headers: HeaderMap, *, end: bool) -> HeadersStatus:
        """Headers arrive."""

    def on_data(self, data: bytearray, *, end: bool) -> DataStatus:
        """A piece of the body arrives."""

    def on_trailers(self, trailers: HeaderMap) -> TrailersStatus:
        """Trailers arrive."""

    def on_too_large(self) -> None:
        """The filter keeps more of a body than Envoy allows."""

    def on_end_twice(self) -> None:
        """The filter resumed in the callback for the last piece of a body that it held, and lets the piece pass."""

    def on_trailers_twice(self, *, is_resumed: bool) -> None:
        """Envoy passes trailers on again.

        The filter resumed after they had passed (`is_resumed`), or in their callback and lets them pass.
        """


class Next(Protocol):
    """The stage after the filter: the router or the client."""

    def take_headers(self, headers: HeaderMap, *, end: bool) -> None:
        """Headers are passed on."""

    def take_data(self, data: bytes, *, end: bool) -> None:
        """A piece of the body is passed on."""

    def take_trailers(self, trailers: HeaderMap) -> None:
        """Trailers are passed on, and the end with them."""


class _State(Enum):
    RUNNING = auto()
    STOPPED = auto()
    """The filter sees new data, and nothing is passed on."""
    STOPPED_ALL = auto()
    """The filter sees nothing until it resumes."""


class Direction:
    """The request or the response of a stream. `limit`: bytes of a body that may be kept."""

    def __init__(self, filter_: Filter, after: Next, *, limit: int) -> None:
        self._filter = filter_
        self._next = after
        self._limit = limit
        self._state = _State.RUNNING
        self._has_passed_headers = False
        self._has_passed_end = False
        self._has_passed_trailers = False
        self._is_streaming = False
        self._from_current = False
        self.headers: HeaderMap | None = None
        self.buffered: bytearray | None = None
        self.trailers: HeaderMap | None = None
        self.received = 0
        """Bytes of the body that arrived."""
        self.has_ended = False
        """Whether the end has arrived."""
        self.is_aborted = False
        """Nothing is passed on any more: a local reply took over, or the stream was reset."""
        self.is_in_filter = False
        """Whether a callback of the filter runs for this direction."""

    @property
    def is_held(self) -> bool:
        """Whether the filter holds something back."""
        return self._state is not _State.RUNNING and not self.is_aborted

    @property
    def has_passed_headers(self) -> bool:
        """Whether headers were passed on."""
        return self._has_passed_headers

    def start(self, headers: HeaderMap, *, end: bool) -> None:
        """Headers arrive."""
        self.headers = headers
        self.has_ended = end
        self.is_in_filter = True
        status = self._filter.on_headers(headers, end=end)
        self.is_in_filter = False
        if self.is_aborted:
            return
        match status:
            case HeadersStatus.STOP_ITERATION:
                self._state = _State.STOPPED
            case HeadersStatus.STOP_ALL_ITERATION_AND_BUFFER:
                self._state = _State.STOPPED_ALL
                self._is_streaming = False
            case HeadersStatus.STOP_ALL_ITERATION_AND_WATERMARK:
                self._state = _State.STOPPED_ALL
                self._is_streaming = True
            case _:
                if not self._has_passed_headers:
                    self._has_passed_headers = True
                    self._next.take_headers(headers, end=end and self.trailers is None)

    def add_data(self, data: bytes, *, end: bool) -> None:
        """A piece of the body arrives."""
        self.received += len(data)
        self.has_ended = self.has_ended or end
        if self.is_aborted:
            return
        piece = bytearray(data)
        if self._state is _State.STOPPED_ALL:
            self._buffer(piece)
        else:
            self._pass_data(piece, end=end)

    def add_trailers(self, trailers: HeaderMap) -> None:
        """Trailers arrive."""
        self.has_ended = True
        if self.is_aborted:
            return
        self.trailers = trailers
        if self._state is not _State.STOPPED_ALL:
            self._pass_trailers(trailers)

    def buffer_now(self, data: bytearray) -> None:
        """Append `data` to the kept bytes, from within a callback (`addDecodedData`)."""
        self._buffer(data)

    def keep(self) -> bytearray:
        """The kept part of the body, empty at first."""
        if self.buffered is None:
            self.buffered = bytearray()
        return self.buffered

    def resume(self) -> None:
        """Pass on the data that is held back (`commonContinue`)."""
        if self.is_aborted or self.headers is None:
            return
        self._from_current = self._state is _State.STOPPED_ALL
        self._state = _State.RUNNING
        if not self._has_passed_headers:
            self._has_passed_headers = True
            is_all = self.has_ended and self.buffered is None and self.trailers is None
            self._next.take_headers(self.headers, end=is_all)
        had_trailers = self.trailers
        if self.buffered is not None and not self.is_aborted:
            self._pass_buffered(end=self.has_ended and had_trailers is None)
        if had_trailers is not None and not self.is_aborted:
            if self._from_current and self._state is _State.RUNNING:
                self._pass_trailers(had_trailers)
            elif self._state is _State.RUNNING and self._has_passed_trailers:
                self._filter.on_trailers_twice(is_resumed=True)
            elif self._state is _State.RUNNING:
                self._take_trailers(had_trailers)
        self._from_current = False

    def _pass_buffered(self, *, end: bool) -> None:
        data = self.buffered
        assert data is not None  # noqa: S101  # the caller has checked it
        if self._from_current:
            self._pass_data(data, end=end)
        else:
            self._take(data, end=end)

    def _pass_data(self, data: bytearray, *, end: bool) -> None:
        """The filter gets a piece of the body."""
        had_trailers = self.trailers is not None
        self.is_in_filter = True
        status = self._filter.on_data(data, end=end)
        self.is_in_filter = False
        if self.is_aborted:
            return
        added = self.trailers if not had_trailers else None
        if status is DataStatus.CONTINUE:
            if self._state is _State.STOPPED:
                self._buffer(data)
                self.resume()
                return
            if self._has_passed_end:
                self._filter.on_end_twice()
                return
            self._take(data, end=end and added is None)
            if added is not None and not self.is_aborted:
                self._take_trailers(added)
            return
        self._state = _State.STOPPED
        if status is not DataStatus.STOP_ITERATION_NO_BUFFER:
            self._is_streaming = status is DataStatus.STOP_ITERATION_AND_WATERMARK
            self._buffer(data)
        elif self.has_ended and self.trailers is None and self.buffered is None:
            self.buffered = bytearray()

    def _pass_trailers(self, trailers: HeaderMap) -> None:
        """The filter gets the trailers."""
        self.is_in_filter = True
        status = self._filter.on_trailers(trailers)
        self.is_in_filter = False
        if self.is_aborted:
            return
        if status is TrailersStatus.STOP_ITERATION:
            if self._state is _State.RUNNING:
                self._state = _State.STOPPED
        elif self._state is _State.STOPPED:
            self.resume()
        elif self._has_passed_trailers:
            self._filter.on_trailers_twice(is_resumed=False)
        else:
            self._take_trailers(trailers)

    def _take_trailers(self, trailers: HeaderMap) -> None:
        self._has_passed_trailers = True
        self._next.take_trailers(trailers)

    def _take(self, data: bytearray, *, end: bool) -> None:
        passed = bytes(data)
        data.clear()  # also the buffered data; the empty buffer stays
        self._has_passed_end = self._has_passed_end or end
        self._next.take_data(passed, end=end)

    def _buffer(self, data: bytearray) -> None:
        """Keep a piece of the body."""
        if data is not self.buffered:
            self.keep().extend(data)
            data.clear()
        if not self._is_streaming and len(self.keep()) > self._limit:
            self._filter.on_too_large()
