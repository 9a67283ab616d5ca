"""How the objects of one resource are decoded: a typed wire form, a transform to what is kept, and where the key is.

Not a model of Kubernetes: a wire type names only the fields that somebody reads; msgspec skips the rest without making
objects of it. Invariant: a `resourceVersion` is opaque text, compared for equality only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar, cast

import msgspec

from autowasm.kube.errors import Status, UnexpectedAnswer, from_status
from autowasm.kube.nesting import decode_any_depth
from autowasm.kube.resources import ObjectKey

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
W = TypeVar("W")

INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"
"""Annotation of the bookmark after which a streaming list is complete (KEP 3157)."""

EventType = Literal["ADDED", "MODIFIED", "DELETED"]
EVENT_TYPES: Final[Mapping[str, EventType]] = {
    "ADDED": "ADDED",
    "MODIFIED": "MODIFIED",
    "DELETED": "DELETED",
}
"""By how the wire spells them."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T_co]):
    """One answer of a list: `items` by key, and `continue_token` if there is more."""

    items: list[tuple[ObjectKey, T_co]]
    resource_version: str
    continue_token: str


class WatchEvent(msgspec.Struct, Generic[T_co], frozen=True, gc=False):
    """An object came, changed or went; for DELETED, `object` is its last state."""

    type: EventType
    key: ObjectKey
    object: T_co
    resource_version: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """No object changed, and a watch may resume here. `initial_events_end`: a streaming list is complete."""

    resource_version: str
    initial_events_end: bool = False


class _ListMeta(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815 as on the wire
    continue_: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, Generic[W]):
    items: list[W] | None = None
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)


class _Event(msgspec.Struct, Generic[W]):
    type: str
    object: W


class _BookmarkMeta(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815
    annotations: dict[str, str] | None = None


class _BookmarkObject(msgspec.Struct):
    metadata: _BookmarkMeta = msgspec.field(default_factory=_BookmarkMeta)


RawPage = _Page[msgspec.Raw]
_RAW_EVENT = msgspec.json.Decoder(_Event[msgspec.Raw])
_RAW_PAGE = msgspec.json.Decoder(RawPage)
_BOOKMARK = msgspec.json.Decoder(_BookmarkObject)
_STATUS = msgspec.json.Decoder(Status)


class Codec(Generic[T]):
    """Decodes list pages and watch lines of one resource.

    `wire` is what msgspec decodes into, `transform` makes of it what is kept (client-go's TransformFunc), and `meta`
    tells key and resourceVersion of a wire object.
    """

    def __init__(
        self,
        wire: type[W],
        *,
        transform: Callable[[W], T],
        meta: Callable[[W], tuple[ObjectKey, str]],
    ) -> None:
        self._page = msgspec.json.Decoder(_Page[wire])  # type: ignore[valid-type]
        self._event = msgspec.json.Decoder(_Event[wire])  # type: ignore[valid-type]
        self._transform = cast("Callable[[Any], T]", transform)
        self._meta = cast("Callable[[Any], tuple[ObjectKey, str]]", meta)

    async def page(self, body: bytes | bytearray) -> Page[T]:
        """As `decode_page`, whatever the objects' depth."""
        return await decode_any_depth(self.decode_page, body)

    async def event(self, line: bytes | bytearray) -> WatchEvent[T] | Bookmark:
        """As `decode_event`, whatever the object's depth."""
        try:
            return self.decode_event(line)
        except RecursionError:
            return await decode_any_depth(self.decode_event, line)

    def decode_page(self, body: bytes | bytearray) -> Page[T]:
        """One list answer. Raises UnexpectedAnswer; RecursionError (see `nesting.py`)."""
        try:
            page = self._page.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnexpectedAnswer(f"the list cannot be decoded: {error}") from error
        items = [(self._meta(item)[0], self._transform(item)) for item in page.items or ()]
        return Page(items, page.metadata.resourceVersion, page.metadata.continue_)

    def decode_event(self, line: bytes | bytearray) -> WatchEvent[T] | Bookmark:
        """One line of a watch. An ERROR event is raised as the ApiError that it says; else raises UnexpectedAnswer, RecursionError."""
        try:
            event = self._event.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _decode_other(
                line
            )  # a Status or a bookmark need not have the shape of an object
        if event.type not in EVENT_TYPES:
            return _decode_other(line)
        key, resource_version = self._meta(event.object)
        return WatchEvent(
            EVENT_TYPES[event.type], key, self._transform(event.object), resource_version
        )


def raw_page(body: bytes | bytearray) -> RawPage:
    """One list answer, its objects not decoded. Raises UnexpectedAnswer; RecursionError (see `nesting.py`)."""
    try:
        return _RAW_PAGE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnexpectedAnswer(f"the list cannot be decoded: {error}") from error


def raw_event(line: bytes | bytearray) -> tuple[str, msgspec.Raw]:
    """Type and object of one line of a watch, the object not decoded. Raises as `raw_page`."""
    try:
        event = _RAW_EVENT.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnexpectedAnswer(f"a line of the watch is no event: {error}") from error
    return event.type, event.object


def _decode_other(line: bytes | bytearray) -> Bookmark:
    try:
        event = _RAW_EVENT.decode(line)
        if event.type == "BOOKMARK":
            metadata = _BOOKMARK.decode(event.object).metadata
            ended = (metadata.annotations or {}).get(INITIAL_EVENTS_END) == "true"
            return Bookmark(metadata.resourceVersion, ended)
        if event.type == "ERROR":
            raise from_status(_STATUS.decode(event.object), request="watch")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnexpectedAnswer(f"a line of the watch is no event: {error}") from error
    raise UnexpectedAnswer(f"an object of a watch event ({event.type[:32]}) cannot be decoded")


def document_meta(document: dict[str, Any]) -> tuple[ObjectKey, str]:
    """Key and resourceVersion of a whole object. Raises UnexpectedAnswer if it is none."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise UnexpectedAnswer("an object has no metadata.name")
    key = ObjectKey(metadata.get("namespace", ""), metadata["name"])
    return key, metadata.get("resourceVersion", "")
