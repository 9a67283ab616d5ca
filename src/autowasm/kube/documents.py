"""Whole objects as dicts, of which one that holds very many values does not hold the loop.

Decoding makes a Python object of each value: for one of etcd's 1.5 MB, written to that end, it takes up to 0.1 s, at each
of its changes, while skipping over the text takes a few ms. So an object of more values than `KubeLimits.object_values`
is taken apart by its fields, and a field that alone has more becomes null, or is left out of the metadata.
Invariants: what is cut has more values than any object that we accept or write, so it is refused and nothing else changes;
no turn of the loop is longer than reading over one such object or decoding one such field.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from autowasm.kube.codec import (
    EVENT_TYPES,
    Bookmark,
    Codec,
    Page,
    RawPage,
    WatchEvent,
    document_meta,
    raw_event,
    raw_page,
)
from autowasm.kube.errors import UnexpectedAnswer
from autowasm.kube.nesting import decode_any_depth
from autowasm.kube.resources import ObjectKey
from autowasm.limits import KubeLimits

T = TypeVar("T")
Document = dict[str, Any]
Text = bytes | bytearray

_WHOLE: Final = msgspec.json.Decoder(Document)
_VALUE: Final = msgspec.json.Decoder(Any)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class DocumentCodec(Codec[Document]):
    """For custom resources, which are few, and whose fields we write back."""

    def __init__(self, limits: KubeLimits | None = None) -> None:
        super().__init__(Document, transform=_same, meta=document_meta)
        limits = limits or KubeLimits()
        self._most = limits.object_values
        self._budget = limits.loop_budget

    async def page(self, body: Text) -> Page[Document]:
        """See Codec."""
        if _at_most(body) <= self._most:
            return await super().page(body)
        loop = asyncio.get_running_loop()
        page: RawPage = await _in_turn(raw_page, body)
        await asyncio.sleep(0)
        items: list[tuple[ObjectKey, Document]] = []
        turn_ends = loop.time()
        for raw in page.items or ():
            if loop.time() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = loop.time() + self._budget
            item = await decode_bounded(bytes(raw), most=self._most)
            items.append((document_meta(item)[0], item))
        return Page(items, page.metadata.resourceVersion, page.metadata.continue_)

    async def event(self, line: Text) -> WatchEvent[Document] | Bookmark:
        """See Codec."""
        if _at_most(line) <= self._most:
            return await super().event(line)
        type_, raw = await _in_turn(raw_event, line)
        if type_ not in EVENT_TYPES:
            return await super().event(line)  # of the others, it reads only a few fields
        item = await decode_bounded(bytes(raw), most=self._most)
        key, resource_version = document_meta(item)
        return WatchEvent(EVENT_TYPES[type_], key, item, resource_version)


async def decode_document(body: Text) -> Document:
    """The object that the API server answers with. Raises UnexpectedAnswer."""
    return await decode_bounded(body, most=KubeLimits().object_values)


async def decode_bounded(text: Text, *, most: int) -> Document:
    """A JSON object; of more values than `most` without those fields that have more. Raises UnexpectedAnswer."""
    try:
        if _at_most(text) <= most:
            return await decode_any_depth(_WHOLE.decode, text)
        fields = await _in_turn(_FIELDS.decode, text)
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
        return await _in_turn(_VALUE.decode, text)
    fields = await _in_turn(_FIELDS.decode, text)
    read = {name: await _field(bytes(raw), most=most) for name, raw in fields.items()}
    return {name: value for name, value in read.items() if value is not None}


async def _field(text: bytes, *, most: int) -> Any:
    """None if it has more values than `most`."""
    if _at_most(text) > most and await _exceeds(text, most=most):
        return None
    return await _in_turn(_VALUE.decode, text)


async def _in_turn(decode: Callable[[Text], T], text: Text) -> T:
    await asyncio.sleep(0)
    return await decode_any_depth(decode, text)


def _at_most(text: Text) -> int:
    """No more values than this: each but the first of its kind follows a comma or a bracket. Some may be in strings."""
    return text.count(b",") + text.count(b"{") + text.count(b"[")


async def _exceeds(text: bytes, *, most: int) -> bool:
    """Whether there are more when those within strings are not counted, which may be megabytes of JSON themselves."""
    await asyncio.sleep(0)
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    await asyncio.sleep(0)
    if text.count(b'"') > 2 * most:
        return True  # so many strings take as long as values do
    outside = b"".join(text.split(b'"')[::2])
    await asyncio.sleep(0)
    return _at_most(outside) > most


def _same(document: Document) -> Document:
    return document
