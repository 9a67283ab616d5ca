"""Converts the user's requests, responses, answers and properties to the values of the sandbox.

Invariant: `content-length` is present as a client or a service would send it, unless the user sets it or a
`transfer-encoding`.
"""

import base64
import binascii
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET

from autowasm.api import pluginconfig
from autowasm.errors import UsageError
from autowasm.sandbox import clusteranswers, message
from autowasm.sandbox.clusteranswers import GrpcAnswer, HttpAnswer
from autowasm.sandbox.properties import Value
from autowasm.trial import strictfile, suite
from autowasm.trial.suite import AnyBody
from autowasm.units import parse_duration

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
"""Of a body or a configuration; Envoy buffers 1 MiB of a body."""
Pairs = tuple[tuple[str, str], ...]
_M = TypeVar("_M", message.Request, message.Response)
_BROKEN: Final = HttpAnswer(
    503,
    (("content-length", "95"), ("content-type", "text/plain")),
    b"upstream connect error or disconnect/reset before headers. reset reason: connection termination",
)
"""The response that Envoy gives a filter if its cluster breaks the connection (1.36 and 1.40)."""
_BODILESS: Final = frozenset({204, 304})
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_CONTROL: Final = re.compile(r"[\x00\r\n]")


def read_file(path: Path, *, flag: str) -> bytes:
    """The bytes of a file. Raises UsageError, with the flag's or field's name."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{flag} {path}: larger than {MAX_FILE_BYTES} bytes")
    return content


# --- of a suite


def request_of(given: suite.Request, *, folder: Path) -> message.Request:
    """A request of a suite. `folder`: the base of its relative file paths. Raises UsageError."""
    made = message.Request(
        given.method,
        given.path,
        given.authority,
        given.scheme,
        headers=headers_of(given.headers),
        body=body_of(given.body, folder=folder),
        trailers=headers_of(given.trailers),
    )
    return with_length(made)


def response_of(given: suite.Response, *, folder: Path) -> message.Response:
    """A response of a suite. Raises UsageError."""
    made = message.Response(
        given.status,
        headers=headers_of(given.headers),
        body=body_of(given.body, folder=folder),
        trailers=headers_of(given.trailers),
    )
    return with_length(made)


def answers_of(given: suite.Answers, *, folder: Path) -> clusteranswers.Answering:
    """The answers of a cluster. Raises UsageError."""
    if isinstance(given, list):
        return [answer_of(each, folder=folder) for each in given]
    return answer_of(given, folder=folder)


def answer_of(given: suite.Answer, *, folder: Path) -> clusteranswers.Answer:
    """One answer of a cluster. Raises UsageError."""
    delay = parse_duration(given.delay)
    if given.broken:
        return replace(_BROKEN, delay=delay)
    if given.grpc is not UNSET:
        grpc = given.grpc
        return GrpcAnswer(
            [_decoded(each, "grpc.messages") for each in grpc.messages],
            grpc.status,
            grpc.status_message,
            headers_of(grpc.initial_metadata),
            headers_of(grpc.trailing_metadata),
            delay,
        )
    return HttpAnswer(
        given.status,
        headers_of(given.headers),
        b"".join(body_of(given.body, folder=folder)),
        headers_of(given.trailers),
        delay,
    )


def headers_of(given: suite.Headers) -> Pairs:
    """Pairs of names and values. Raises UsageError for a header that HTTP cannot carry."""
    return tuple(
        checked_header(name, value)
        for name, values in given.items()
        for value in ([values] if isinstance(values, str) else values)
    )


def body_of(given: AnyBody, *, folder: Path) -> tuple[bytes, ...]:
    """The pieces of a body. Raises UsageError."""
    if isinstance(given, str):
        return (given.encode(),) if given else ()
    if given.json is not UNSET:
        return (msgspec.json.encode(given.json),)
    if given.base64 is not UNSET:
        return (_decoded(given.base64, "base64"),)
    if given.pieces is not UNSET:
        return tuple(piece.encode() for piece in given.pieces)
    return (read_file(folder / str(given.file), flag="body.file"),)


def _decoded(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{field}: not base64: {error}") from error


def configuration_of(given: dict[str, Any] | str) -> bytes:
    """The bytes that a filter gets for `spec.filter.pluginConfig`."""
    return pluginconfig.as_text(pluginconfig.as_stored(given)).encode()


# --- of the command line


def header(text: str, *, flag: str) -> tuple[str, str]:
    """`name: value`. Raises UsageError."""
    name, colon, value = text.partition(":")
    if not colon:
        raise UsageError(f"{flag}: must be 'NAME: VALUE', not {text[:100]!r}")
    return checked_header(name.strip(), value.strip(), flag=flag)


def checked_header(name: str, value: str, *, flag: str = "headers") -> tuple[str, str]:
    """Raises UsageError for a header that HTTP/1.1 cannot carry."""
    if not _TOKEN.match(name) or _CONTROL.search(value):
        shown = f"{name}: {value}"[:100]
        raise UsageError(f"{flag}: not a header of HTTP: {shown!r}")
    return name.lower(), value


def request_line(text: str) -> message.Request:
    """`/path`, `METHOD /path` or `METHOD URL`, without headers. Raises UsageError."""
    parts = text.split()
    method, target = ("GET", parts[0]) if len(parts) == 1 else (parts[0], parts[-1])
    url = re.match(r"(https?)://([^/?#]+)(.*)\Z", target)
    scheme, authority, path = url.groups() if url else ("http", "example.com", target)
    if url and not path.startswith("/"):
        path = f"/{path}"
    if len(parts) > 2 or not _TOKEN.match(method) or not path.startswith(("/", "*")):
        raise UsageError(f"--request: must be 'METHOD /path' or '/path', not {text[:100]!r}")
    return message.Request(method, path, authority, scheme)


_PLAIN_JSON: Final = re.compile(r'[-0-9\[{"]|(true|false)\Z')


def given_property(text: str, found: dict[str, Value]) -> None:
    """Put `path=value` into `found`. Dots separate the parts of a path; one after a backslash is part of a name.

    A value that is JSON (a number, true, false, a quoted text, a list or an object) has that type; any other is text. Raises
    UsageError.
    """
    path, equals, written = text.partition("=")
    parts = [part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", path)]
    if not equals or not all(parts):
        raise UsageError(
            f"--property: must be PATH=VALUE, such as source.address=10.0.0.1:1, not {text[:100]!r}"
        )
    value: Value = written
    if _PLAIN_JSON.match(written):
        try:
            value = json.loads(written)
        except ValueError:
            value = written
    place: Any = found
    for part in parts[:-1]:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise UsageError(f"--property {path}: {part} has a value already")
    place[parts[-1]] = value


def answer_file(path: Path, *, flag: str) -> clusteranswers.Answering:
    """The answers of a cluster in a file. Raises UsageError.

    `.yaml`, `.yml` and `.json`: one `Answer` or a list of them, as in a suite. Any other file is an HTTP response as text, as
    `curl -i` prints it: a status line, headers, an empty line, the body.
    """
    content = read_file(path, flag=flag)
    if path.suffix in {".yaml", ".yml", ".json"}:
        read: suite.Answers = strictfile.read(content, suite.ANSWERS, name=f"{flag} {path}")
        return answers_of(read, folder=path.parent)
    return http_answer(content, name=f"{flag} {path}")


_STATUS_LINE: Final = re.compile(r"HTTP/[0-9.]+ ([2-5][0-9]{2})( .*)?\Z")


def http_answer(content: bytes, *, name: str) -> HttpAnswer:
    """An HTTP response as text. Line ends are LF or CRLF. Raises UsageError, with the line."""
    head, _, body = re.sub(b"\r\n", b"\n", content).partition(b"\n\n")
    if b"\r\n\r\n" in content:  # the body stays unchanged
        body = content.partition(b"\r\n\r\n")[2]
    first, *lines = head.decode("utf-8", "surrogateescape").rstrip("\n").split("\n")
    status = _STATUS_LINE.match(first)
    if status is None:
        raise UsageError(
            f"{name}: line 1: must be a status line such as 'HTTP/1.1 200 OK'; name the file .yaml for the other form"
        )
    pairs = []
    for number, line in enumerate(lines, 2):
        try:
            pairs.append(header(line, flag=f"{name}: line {number}"))
        except UsageError as error:
            raise UsageError(f"{error}; an empty line ends the headers") from error
    skipped = {"transfer-encoding", "connection"}
    return HttpAnswer(int(status[1]), tuple(p for p in pairs if p[0] not in skipped), body)


def with_length(message_: _M) -> _M:
    """The message with its `content-length`, as a client or a service sends it."""
    names = {name for name, _ in message_.headers}
    if "content-length" in names or "transfer-encoding" in names:
        return message_
    if message_.trailers or len(message_.body) > 1:
        return _with(message_, ("transfer-encoding", "chunked"))
    size = sum(map(len, message_.body))
    if isinstance(message_, message.Response):
        return (
            message_
            if message_.status in _BODILESS
            else _with(message_, ("content-length", str(size)))
        )
    return _with(message_, ("content-length", str(size))) if size else message_


def _with(message_: _M, pair: tuple[str, str]) -> _M:
    return replace(message_, headers=(*message_.headers, pair))
