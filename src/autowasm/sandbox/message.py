"""HTTP messages that the caller passes to the sandbox and gets from it.

Header names and values are text; bytes that are not UTF-8 are kept as surrogate escapes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from autowasm.sandbox.clusteranswers import Headers
from autowasm.sandbox.headers import HeaderMap, MapKind

_ESCAPES: Final = "surrogateescape"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the client sends it. `body` holds the pieces in which it arrives, as the filter sees them.

    `is_http2`: the end comes with the last piece; in HTTP/1.1 Envoy detects it afterwards, and the filter gets an empty piece.
    `pace` is the virtual time before each piece in seconds, during which callouts may be answered.
    """

    method: str = "GET"
    path: str = "/"
    authority: str = "example.com"
    scheme: str = "http"
    headers: Headers = ()
    body: Sequence[bytes] = ()
    trailers: Headers = ()
    is_http2: bool = False
    pace: float = 0.0

    @property
    def pieces(self) -> list[bytes]:
        """The pieces as the filter gets them."""
        return _pieces(self)


@dataclass(frozen=True, slots=True)
class Response:
    """A response of the service behind Envoy. `body`, `is_http2` and `pace` as in a request."""

    status: int = 200
    headers: Headers = ()
    body: Sequence[bytes] = ()
    trailers: Headers = ()
    is_http2: bool = False
    pace: float = 0.0

    @property
    def pieces(self) -> list[bytes]:
        """The pieces as the filter gets them."""
        return _pieces(self)


def _pieces(message: Request | Response) -> list[bytes]:
    pieces = list(message.body)
    if pieces and not message.is_http2 and not message.trailers:
        pieces.append(b"")
    return pieces


@dataclass(frozen=True, slots=True)
class Message:
    """A request as Envoy forwards it, or a response as the client gets it.

    `headers` are in order and include pseudo headers (`:path`, `:status`). `is_complete`: the end was passed on, too; if not,
    the stream was reset.
    """

    headers: tuple[tuple[str, str], ...]
    body: bytes
    trailers: tuple[tuple[str, str], ...]
    is_complete: bool

    def values(self, name: str) -> list[str]:
        """The values of a header, in order."""
        return [value for key, value in self.headers if key == name.lower()]

    @property
    def status(self) -> int:
        """The status of a response; 0 if the module removed it or replaced it with something that is not a number."""
        text = next(iter(self.values(":status")), "")
        return int(text) if text.isdecimal() and text.isascii() and len(text) == 3 else 0


def encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers as bytes."""
    return [
        (name.encode("utf-8", _ESCAPES), value.encode("utf-8", _ESCAPES)) for name, value in headers
    ]


def decoded(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    """Headers as text."""
    return tuple(
        (name.decode("utf-8", _ESCAPES), value.decode("utf-8", _ESCAPES)) for name, value in headers
    )


def trailer_map(kind: MapKind, trailers: Headers) -> HeaderMap | None:
    """A map of trailers; None if there are none."""
    return HeaderMap(kind, encoded(trailers)) if trailers else None
