"""Decoders of lists, watch events and single objects, with bounds on nesting depth and number of values.

A Codec has a wire type, a transform to the stored form, and a function that reads the key. A wire type names only the fields that
AutoWasm reads; msgspec skips the rest without creating objects. Invariants: a `resourceVersion` is opaque text, compared for
equality only; a part that is cut is nested deeper than `DEEPEST` or has more values than any object that AutoWasm accepts or
writes, so only that object is refused.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Generic, Literal, TypeVar, cast

import msgspec

from autowasm.kube.errors import Status, UnexpectedAnswer, from_status
from autowasm.kube.resources import ObjectKey
from autowasm.limits import KubeLimits

T = TypeVar("T")
Stored = Callable[[ObjectKey], T | None]
"""The object that a store has under a key, or None."""

DEEPEST: Final = 200
SLICE: Final = 8 * 1024
"""Bytes scanned in one event loop iteration: some 3 ms if all of them are brackets."""
_BRACKET: Final = re.compile(rb'(?:[^"\[\]{}]++|"[^"]*+"){0,2000}+([\[\]{}]?)')
"""Matches up to the next bracket outside a string, or a part of the way: one match must not block the event loop."""


async def decode_any_depth(decode: Callable[[bytes | bytearray], T], text: bytes | bytearray) -> T:
    """Decode `text`, and cut parts that are nested too deeply. Raises as `decode` does, but no RecursionError."""
    try:
        return decode(text)
    except RecursionError:
        return decode(await without_depths(text))


async def without_depths(text: bytes | bytearray) -> bytes:
    """JSON `text` with `null` for each object and array that begins more than `DEEPEST` levels deep.

    The API server keeps objects nested up to 10 000 levels deep where a schema preserves unknown fields (seen with
    `pluginConfig` on 1.36). Python's decoders raise RecursionError at some 1000 levels, which would break the watch for all
    objects. Invalid JSON stays invalid, or becomes empty. Takes 0.2 µs for each bracket, so it is only for texts that could
    not be decoded; yields to the loop after each `SLICE`.

    Source: k8s.io/apimachinery `pkg/util/json` (maxDepth 10 000).
    """
    kept: list[bytes] = []
    depth, start, slice_ends = 0, 0, SLICE
    # Same length, and no quote that does not end a string.
    shape = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    for match in _BRACKET.finditer(shape):
        if match.end() >= slice_ends:
            slice_ends = match.end() + SLICE
            await asyncio.sleep(0)
        bracket = match[1]
        if not bracket:
            continue
        if bracket in b"[{":
            depth += 1
            if depth == DEEPEST + 1:
                kept.append(bytes(text[start : match.start(1)]))
                kept.append(b"null")
        else:
            if depth == DEEPEST + 1:
                start = match.end()
            depth -= 1
    if depth > DEEPEST:
        return b""  # unbalanced brackets: not JSON, and the decoder reports it
    kept.append(bytes(text[start:]))
    return b"".join(kept)


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
"""By the spelling on the wire."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T_co]):
    """One page of a list: `items` by key, and `continue_token` if there are more pages."""

    items: list[tuple[ObjectKey, T_co]]
    resource_version: str
    continue_token: str


class WatchEvent(msgspec.Struct, Generic[T_co], frozen=True, gc=False):
    """An object was added, modified or deleted; for DELETED, `object` is its last state."""

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

    msgspec decodes into `wire`, `transform` converts that to the stored form (client-go's TransformFunc), and `meta` returns
    key and resourceVersion of a wire object.
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

    async def page(self, body: bytes | bytearray, *, stored: Stored[T] | None = None) -> Page[T]:
        """Like `decode_page`, for objects of any depth.

        `stored` returns objects of an earlier list, which a codec may use again while their resourceVersion is the same. This one
        does not: skipping a Pod takes more than half the time of decoding its row.
        """
        return await decode_any_depth(self.decode_page, body)

    async def event(
        self, line: bytes | bytearray, *, stored: Stored[T] | None = None
    ) -> WatchEvent[T] | Bookmark:
        """Like `decode_event`, for an object of any depth. `stored` as in `page`."""
        try:
            return self.decode_event(line)
        except RecursionError:
            return await decode_any_depth(self.decode_event, line)

    def decode_page(self, body: bytes | bytearray) -> Page[T]:
        """One list answer. Raises UnexpectedAnswer; RecursionError for deep nesting (see `decode_any_depth`)."""
        try:
            page = self._page.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnexpectedAnswer(f"the list cannot be decoded: {error}") from error
        items = [(self._meta(item)[0], self._transform(item)) for item in page.items or ()]
        return Page(items, page.metadata.resourceVersion, page.metadata.continue_)

    def decode_event(self, line: bytes | bytearray) -> WatchEvent[T] | Bookmark:
        """One line of a watch. Raises the ApiError of an ERROR event; otherwise UnexpectedAnswer, RecursionError."""
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
    """One list answer with undecoded objects. Raises UnexpectedAnswer; RecursionError (see `decode_any_depth`)."""
    try:
        return _RAW_PAGE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnexpectedAnswer(f"the list cannot be decoded: {error}") from error


def raw_event(line: bytes | bytearray) -> tuple[str, msgspec.Raw]:
    """Type and undecoded object of one line of a watch. Raises as `raw_page`."""
    try:
        event = _RAW_EVENT.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnexpectedAnswer(f"a line of the watch is not an event: {error}") from error
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
        raise UnexpectedAnswer(f"a line of the watch is not an event: {error}") from error
    raise UnexpectedAnswer(f"an object of a watch event ({event.type[:32]}) cannot be decoded")


def document_meta(document: Mapping[str, Any]) -> tuple[ObjectKey, str]:
    """Key and resourceVersion of a whole object. Raises UnexpectedAnswer if it is none."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise UnexpectedAnswer("an object has no metadata.name")
    key = ObjectKey(metadata.get("namespace", ""), metadata["name"])
    return key, metadata.get("resourceVersion", "")


Document = dict[str, Any]
StoredDocument = Mapping[str, Any]
Text = bytes | bytearray

_WHOLE: Final = msgspec.json.Decoder(Document)
_VALUE: Final = msgspec.json.Decoder(Any)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MOST_VALUES: Final = KubeLimits().object_values


MAX_ENCODED: Final = 32 * 1024
"""Bytes of JSON up to which an informer keeps an object encoded. Decoding that size takes some 60 µs, an EnvoyFilter 4 µs."""
_MAX_DECODED: Final = 64
"""Encoded objects whose decoded form is kept as well. A reconcile reads each of its two objects several times."""


class EncodedDocument(Mapping[str, Any]):
    """A decoded object that is kept as JSON: an EnvoyFilter takes 3 KiB, as dicts and strings 11. It is decoded when it is read.

    Invariants: it equals the dict from which it was made, with numbers of the same type; a reader changes nothing in what it reads.
    """

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        """`text`: the JSON of an object."""
        self.text = text

    def __getitem__(self, name: str) -> Any:
        return _decoded(self.text)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_decoded(self.text))

    def __len__(self) -> int:
        return len(_decoded(self.text))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, EncodedDocument):
            return self.text == other.text or _decoded(self.text) == _decoded(other.text)
        return isinstance(other, Mapping) and _decoded(self.text) == other

    __hash__ = None  # type: ignore[assignment]  # as of a dict


def version_of(document: StoredDocument) -> tuple[Any, Any]:
    """Uid and resourceVersion. Raises msgspec.DecodeError if they are not text in an encoded document."""
    if isinstance(document, EncodedDocument):
        found = _VERSION.decode(document.text).metadata  # a third of the time for the whole
        return found.uid, found.resourceVersion
    return document["metadata"].get("uid"), document["metadata"].get("resourceVersion")


@lru_cache(maxsize=_MAX_DECODED)
def _decoded(text: bytes) -> Document:
    return _WHOLE.decode(text)


class _Version(msgspec.Struct, gc=False):
    name: str
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815 as on the wire


class _Versioned(msgspec.Struct, gc=False):
    metadata: _Version


_VERSION: Final = msgspec.json.Decoder(_Versioned)


class DocumentCodec(Codec[StoredDocument]):
    """Whole objects, for custom resources: there are few of them, and AutoWasm writes their fields back.

    They behave like dicts; those of at most `MAX_ENCODED` bytes are kept encoded.

    Decoding creates a Python object for each value. A malicious object of 1.5 MB, etcd's limit, takes up to 0.1 s at each change;
    skipping over the text takes a few ms. So an object with more values than `KubeLimits.object_values` is decoded field by
    field. A field that alone has more values becomes null, or is left out of the metadata. Invariant: no event loop iteration is
    longer than scanning one such object or decoding one such field.

    An object with the uid and resourceVersion of the stored one is not decoded again: a new list of unchanged objects takes a
    tenth of the time, and does not hold all of them in memory twice. The field sets in `metadata.managedFields`, which are half
    of an AutoWasm in memory, are left out.
    """

    def __init__(self, limits: KubeLimits | None = None) -> None:
        super().__init__(Document, transform=as_stored, meta=document_meta)
        limits = limits or KubeLimits()
        self._most = limits.object_values
        self._budget = limits.loop_budget

    async def page(
        self, body: Text, *, stored: Stored[StoredDocument] | None = None
    ) -> Page[StoredDocument]:
        """See Codec."""
        if stored is None and _at_most(body) <= self._most:
            return await super().page(body)
        loop = asyncio.get_running_loop()
        page: RawPage = await _after_yield(raw_page, body)
        await asyncio.sleep(0)
        items: list[tuple[ObjectKey, StoredDocument]] = []
        slice_ends = loop.time()
        for raw in page.items or ():
            if loop.time() >= slice_ends:
                await asyncio.sleep(0)
                slice_ends = loop.time() + self._budget
            if stored is not None and (known := _unchanged(raw, stored)) is not None:
                items.append((known.key, known.object))
                continue
            item = await decode_bounded(bytes(raw), most=self._most)
            items.append((document_meta(item)[0], as_stored(item)))
        return Page(items, page.metadata.resourceVersion, page.metadata.continue_)

    async def event(
        self, line: Text, *, stored: Stored[StoredDocument] | None = None
    ) -> WatchEvent[StoredDocument] | Bookmark:
        """See Codec."""
        if stored is not None and (known := _unchanged_event(line, stored)) is not None:
            return known
        if _at_most(line) <= self._most:
            return await super().event(line)
        type_, raw = await _after_yield(raw_event, line)
        if type_ not in EVENT_TYPES:
            return await super().event(line)  # reads only a few fields of other event types
        item = await decode_bounded(bytes(raw), most=self._most)
        key, resource_version = document_meta(item)
        return WatchEvent(EVENT_TYPES[type_], key, as_stored(item), resource_version)


def _unchanged(
    raw: msgspec.Raw, stored: Stored[StoredDocument]
) -> WatchEvent[StoredDocument] | None:
    """The stored object as if it was added, if `raw` is the same version of it."""
    try:
        found = _VERSION.decode(raw).metadata
        key = ObjectKey(found.namespace, found.name)
        document = stored(key)
        if document is None or not found.resourceVersion:
            return None
        known = version_of(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the decoder of the whole object reports it
    if known != (found.uid, found.resourceVersion):
        return None
    return WatchEvent("ADDED", key, document, found.resourceVersion)


def _unchanged_event(
    line: Text, stored: Stored[StoredDocument]
) -> WatchEvent[StoredDocument] | None:
    try:
        event = _RAW_EVENT.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return _unchanged(event.object, stored) if event.type == "ADDED" else None


async def decode_document(body: Text) -> Document:
    """The object of an API server's answer. Raises UnexpectedAnswer."""
    return await decode_bounded(body, most=_MOST_VALUES)


async def decode_bounded(text: Text, *, most: int) -> Document:
    """A JSON object; if it has more values than `most`, fields that have more are cut. Raises UnexpectedAnswer."""
    try:
        if _at_most(text) <= most:
            return await decode_any_depth(_WHOLE.decode, text)
        fields = await _after_yield(_FIELDS.decode, text)
        document: Document = {}
        for name, raw in fields.items():
            if name == "metadata":
                document[name] = await _metadata(bytes(raw), most=most)
            else:
                document[name] = await _field(bytes(raw), most=most)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnexpectedAnswer(f"the answer is not a JSON object: {error}") from error
    return document


async def _metadata(text: bytes, *, most: int) -> Any:
    if _at_most(text) <= most:
        return await _after_yield(_VALUE.decode, text)
    fields = await _after_yield(_FIELDS.decode, text)
    read = {name: await _field(bytes(raw), most=most) for name, raw in fields.items()}
    return {name: value for name, value in read.items() if value is not None}


async def _field(text: bytes, *, most: int) -> Any:
    """None if it has more values than `most`."""
    if _at_most(text) > most and await _exceeds(text, most=most):
        return None
    return await _after_yield(_VALUE.decode, text)


async def _after_yield(decode: Callable[[Text], T], text: Text) -> T:
    await asyncio.sleep(0)
    return await decode_any_depth(decode, text)


def _at_most(text: Text) -> int:
    """An upper bound of the number of values: each but the first follows a comma or a bracket. Some may be in strings."""
    return text.count(b",") + text.count(b"{") + text.count(b"[")


async def _exceeds(text: bytes, *, most: int) -> bool:
    """Whether there are more values outside strings. A string may be megabytes of JSON."""
    await asyncio.sleep(0)
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    await asyncio.sleep(0)
    if text.count(b'"') > 2 * most:
        return True  # strings take as long as the same number of values
    outside = b"".join(text.split(b'"')[::2])
    await asyncio.sleep(0)
    return _at_most(outside) > most


def as_stored(document: Document) -> StoredDocument:
    """A newly decoded object, in the form in which an informer keeps it."""
    document = without_field_sets(document)
    text = msgspec.json.encode(document)
    return EncodedDocument(text) if len(text) <= MAX_ENCODED else document


def without_field_sets(document: Document) -> Document:
    """Remove `fieldsV1` from the managed fields of a newly decoded object; the manager and the time stay.

    Like client-go's TransformStripManagedFields. Such an object must not be written with its managed fields (`writes.py`).
    """
    metadata = document.get("metadata")
    managed = metadata.get("managedFields") if isinstance(metadata, dict) else None
    if isinstance(managed, list):
        for entry in managed:
            if isinstance(entry, dict):
                entry.pop("fieldsV1", None)
    return document
