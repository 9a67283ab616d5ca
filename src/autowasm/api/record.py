"""Record: the result of resolving a source. The EnvoyFilter's annotation and the status hold the same value.

Invariant (ADR 7): a record holds no times and no credentials, so equal resolutions give equal annotations, and writing
one twice changes nothing.
"""

import msgspec
from msgspec import Struct

from autowasm.digest import Digest, Sha256Hex, sha256_hex
from autowasm.net.urls import redact
from autowasm.reference import ImageReference

ANNOTATION = "wasm.tcm.io/record"
STABLE_ANNOTATION = "wasm.tcm.io/stable-record"
"""During a staged rollout (ADR 39): the record of the module that most Pods still have; `ANNOTATION` has the newer one's."""


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """One resolution. `image` for registries; `url`, with the validators that the server sent, for objects."""

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
    """`metadata.uid` of the Secret whose login was used, empty if none was needed. After a failover it proves that this
    AutoWasm may use the module (ADR 19). It is no credential, and none can be derived from it."""

    @property
    def origin(self) -> str:
        """The image or URL for messages; without the query of a URL, which may be a signature."""
        return self.image or redact(self.url)


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Record)


def dump(record: Record) -> str:
    """JSON with sorted keys: equal records give equal text."""
    return _encoder.encode(record).decode()


def load(text: str) -> Record | None:
    """Read an untrusted annotation; None if it is not a well-formed record."""
    try:
        record = _decoder.decode(text)
        sha256_hex(record.sha256)
    except (msgspec.DecodeError, ValueError, UnicodeError):
        return None
    return record if record.size >= 0 else None


def belongs_to(record: Record, source: str) -> bool:
    """True if the record belongs to this source, and names nothing that the source does not name.

    A forged record must not make wasmer fetch from elsewhere: host and repository, or the URL, must be the source's.
    """
    kind, _, location = source.partition(":")
    if record.source != source:
        return False
    try:
        sha256_hex(record.sha256)
        if kind == "object":
            return record.url == location and not record.image
        named, pinned = ImageReference.parse(location), ImageReference.parse(record.image)
    except ValueError:
        return False
    if named.digest is not None and pinned.digest != named.digest:
        return False
    return pinned.name == named.name and isinstance(pinned.digest, Digest) and not record.url
