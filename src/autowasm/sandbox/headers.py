"""Header maps: as Envoy keeps them, and as the ABI has them in the module's memory.

Envoy: lower-case names, values in order, and some headers that exist only once. Invariants: pseudo headers (`:path`) come first; a
second value for a header that Envoy keeps inline is appended to the first, with a comma; names are compared ignoring case.

ABI: count, sizes of all names and values, then each with a NUL behind it. Invariant: `unpack(pack(pairs)) == pairs` for every map
that Envoy accepts, and `unpack` of any other bytes is empty, as in Envoy, which reports no error.

Sources: envoy source/common/http/header_map_impl.cc `insertByKey`, `appendToHeader`, `setCopy`; envoy/http/header_map.h
`INLINE_*_HEADERS`, and the headers that extensions register besides, as found with 1.36.4 and 1.40.0; proxy-wasm-cpp-host
src/pairs_util.cc `marshalPairs` and `toPairs`, include/proxy-wasm/limits.h.
"""

import struct
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final

Pairs = list[tuple[bytes, bytes]]

MAX_BYTES: Final = 1024 * 1024
MAX_COUNT: Final = 1024
"""A map from the module that exceeds either limit is read as empty. Maps that the host writes have no limit."""
_REQUEST: Final = """
:authority :method :path :protocol :scheme expect grpc-timeout te user-agent x-client-trace-id
accept accept-encoding access-control-request-headers access-control-request-method authorization cache-control
content-encoding grpc-accept-encoding if-match if-modified-since if-none-match if-range if-unmodified-since origin pragma referer
x-envoy-downstream-service-cluster x-envoy-downstream-service-node x-envoy-external-address x-envoy-force-trace
x-envoy-hedge-on-per-try-timeout x-envoy-internal x-envoy-ip-tags x-envoy-original-url x-envoy-retry-on
x-envoy-retry-grpc-on x-envoy-retriable-status-codes x-envoy-retriable-header-names x-envoy-is-timeout-retry
x-envoy-original-path x-envoy-upstream-alt-stat-name x-envoy-upstream-rq-timeout-alt-response
x-envoy-expected-rq-timeout-ms x-envoy-max-retries x-envoy-upstream-rq-timeout-ms x-envoy-upstream-rq-per-try-timeout-ms
x-envoy-upstream-stream-duration-ms x-forwarded-client-cert x-forwarded-for x-forwarded-host x-forwarded-port
x-forwarded-proto
"""
_RESPONSE: Final = """
:status date location proxy-status server x-envoy-attempt-count x-envoy-degraded x-envoy-immediate-health-check-fail
access-control-allow-credentials access-control-allow-headers access-control-allow-methods access-control-allow-origin
access-control-allow-private-network access-control-expose-headers access-control-max-age age cache-control content-encoding
etag expires last-modified vary
x-envoy-ratelimited x-envoy-upstream-canary x-envoy-upstream-healthchecked-cluster x-envoy-upstream-service-time
grpc-message grpc-status
"""
_BOTH: Final = """
connection content-length content-type keep-alive proxy-connection transfer-encoding upgrade via x-envoy-attempt-count
x-envoy-decorator-operation x-request-id
"""
_TRAILERS: Final = "grpc-message grpc-status"


def pack(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The bytes of a map."""
    flat = [text for pair in pairs for text in pair]
    sizes = [len(text) for text in flat]
    head = struct.pack(f"<I{len(flat)}I", len(flat) // 2, *sizes)
    return head + b"".join(text + b"\0" for text in flat)


def unpack(data: bytes) -> Pairs:
    """The map in `data`; empty if `data` is malformed or larger than Envoy reads."""
    if not 4 <= len(data) <= MAX_BYTES:
        return []
    (count,) = struct.unpack_from("<I", data)
    at = 4 + 8 * count
    if count > MAX_COUNT or at > len(data):
        return []
    texts = []
    for size in struct.unpack_from(f"<{2 * count}I", data, 4):
        end = at + size
        if end + 1 > len(data) or data[end] != 0:
            return []
        texts.append(data[at:end])
        at = end + 1
    if at != len(data):
        return []
    return list(zip(texts[::2], texts[1::2], strict=True))


class MapKind(Enum):
    """The class of a map in Envoy; the value is the set of headers that it keeps inline."""

    REQUEST_HEADERS = frozenset(name.encode() for name in (_REQUEST + _BOTH).split())
    RESPONSE_HEADERS = frozenset(name.encode() for name in (_RESPONSE + _BOTH).split())
    REQUEST_TRAILERS = frozenset[bytes]()
    RESPONSE_TRAILERS = frozenset(name.encode() for name in _TRAILERS.split())


class HeaderMap:
    """A header or trailer map. Names and values are bytes; names are made lower-case."""

    def __init__(self, kind: MapKind, pairs: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.kind = kind
        self._pairs: Pairs = []
        for name, value in pairs:
            self.add(name, value)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def copy(self) -> "HeaderMap":
        """A map with the same headers."""
        made = HeaderMap(self.kind)
        made._pairs = list(self._pairs)
        return made

    @property
    def byte_size(self) -> int:
        """Bytes of all names and values together."""
        return sum(len(name) + len(value) for name, value in self._pairs)

    def get(self, name: bytes) -> bytes | None:
        """The first value; None if there is none."""
        name = self._key(name)
        return next((value for key, value in self._pairs if key == name), None)

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header."""
        name = self._key(name)
        return [value for key, value in self._pairs if key == name]

    def add(self, name: bytes, value: bytes) -> None:
        """Add a value (`addCopy`)."""
        name = self._key(name)
        if name in self.kind.value:
            for at, (key, present) in enumerate(self._pairs):
                if key == name:
                    joined = present + b"," + value if present and value else present + value
                    self._pairs[at] = (name, joined)
                    return
        if name.startswith(b":"):
            at = next(
                (at for at, (key, _) in enumerate(self._pairs) if not key.startswith(b":")),
                len(self._pairs),
            )
            self._pairs.insert(at, (name, value))
        else:
            self._pairs.append((name, value))

    def set(self, name: bytes, value: bytes) -> None:
        """Replace all values of a header by one (`setCopy`)."""
        self.remove(name)
        self.add(name, value)

    def assign(self, name: bytes, value: bytes) -> None:
        """Replace the value of a header in place, or add it (`setServer` and similar)."""
        key = self._key(name)
        for at, (present, _) in enumerate(self._pairs):
            if present == key:
                self._pairs[at] = (key, value)
                return
        self.add(key, value)

    def remove(self, name: bytes) -> None:
        """Remove all values of a header."""
        name = self._key(name)
        self._pairs = [pair for pair in self._pairs if pair[0] != name]

    def _key(self, name: bytes) -> bytes:
        """The name under which a header is kept."""
        name = name.lower()
        is_host = name == b"host" and self.kind is MapKind.REQUEST_HEADERS
        return b":authority" if is_host else name

    def clear(self) -> None:
        """Remove all headers."""
        self._pairs = []
