"""Record: what a source resolved to. The same value goes into the EnvoyFilter's annotation and the status.

Not the source itself and not the bytes. Invariant (ADR 7): a record holds no times and no credentials, so equal
resolutions give equal annotations, and writing one twice is no change.
"""

import msgspec
from msgspec import Struct

from autowasm.digest import Digest, Sha256Hex, sha256_hex
from autowasm.net.urls import redact
from autowasm.reference import ImageReference

ANNOTATION = "wasm.tcm.io/record"


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """One resolution. `image` for registries, `url` (with validators, where the server gave any) for objects."""

    source: str
    """The distinct source string (`str(Source)`) that was resolved."""
    sha256: Sha256Hex
    """The module: sha256 of its raw bytes (ADR 4)."""
    size: int
    """Bytes of the module."""
    abi: str
    """Proxy-Wasm ABI version, `0.2.1`."""
    image: str = ""
    """`host/repository@sha256:…`: the manifest that the tag named."""
    url: str = ""
    etag: str = ""
    last_modified: str = ""
    secret_uid: str = ""
    """`metadata.uid` of the Secret whose login was shown for it, empty if none was needed: after a failover the proof that
    this AutoWasm may have the module (ADR 19). No credential, and nothing that one can be made from."""

    @property
    def origin(self) -> str:
        """Where the bytes came from, for people: without the query of a URL, which may be a signature."""
        return self.image or redact(self.url)


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Record)


def dump(record: Record) -> str:
    """JSON with sorted keys: equal records give equal text."""
    return _encoder.encode(record).decode()


def load(text: str) -> Record | None:
    """Read an annotation; None for one that is broken or not well formed. Anyone may have written it."""
    try:
        record = _decoder.decode(text)
        sha256_hex(record.sha256)
    except (msgspec.DecodeError, ValueError, UnicodeError):
        return None
    return record if record.size >= 0 else None


def belongs_to(record: Record, source: str) -> bool:
    """True if the record is one for this source, and reaches nothing that the source does not name.

    A forged record must not make us fetch from elsewhere: host and repository, or the URL, have to be the source's own.
    """
    kind, _, location = source.partition(":")
    if record.source != source:
        return False
    try:
        sha256_hex(record.sha256)
        if kind == "object":
            return record.url == location and not record.image
        asked, pinned = ImageReference.parse(location), ImageReference.parse(record.image)
    except ValueError:
        return False
    if asked.digest is not None and pinned.digest != asked.digest:
        return False
    return pinned.name == asked.name and isinstance(pinned.digest, Digest) and not record.url
