"""Input of a hostile registry, object host or author: cheap to create, expensive to read.

Not random: each is one attack from the project's list. All inputs are bytes, without files and servers.
"""

import functools
import gzip
import itertools
import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import zstandard

from tests.parts import wat
from tests.unit.wasm.archives import END, gz, header, tar

MIB = 1024 * 1024
_ZEROS = bytes(MIB)
_GZIP_HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
MODULE_START = b"\0asm\x01\0\0\0"
EXBIBYTES_8 = b"\x80" + bytes(3) + (2**63 - 1).to_bytes(8, "big")
"""The size field of a tar header, in the base-256 form."""
_HELLO = Path(__file__).parents[1] / "assets" / "wat" / "hello.wat"
_CODE, _FUNCTION, _TYPE = 10, 3, 1


def hello() -> bytes:
    """An honest filter."""
    return wat.compile_file(_HELLO)


def leb(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def section(number: int, content: bytes) -> bytes:
    """One section of a module."""
    return bytes([number]) + leb(len(content)) + content


def packed(pieces: Iterable[bytes], *, level: int = 1) -> bytes:
    """gzip of a stream that need not fit into memory."""
    squeeze = zlib.compressobj(level, wbits=31)
    out = [squeeze.compress(piece) for piece in pieces]
    return b"".join(out) + squeeze.flush()


def packed_zeros(head: bytes, size: int, tail: bytes = b"") -> bytes:
    """gzip of `head`, `size` (a multiple of 1 MiB) zeros and `tail`; one MiB is compressed, and its bytes are repeated.

    After a full flush deflate has no reference to earlier data (RFC 1951, 3.2.3), so each MiB has the same bytes.
    """
    squeeze = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    start = squeeze.compress(head) + squeeze.flush(zlib.Z_FULL_FLUSH)
    piece = squeeze.compress(bytes(MIB)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    end = squeeze.compress(tail) + squeeze.flush()
    checksum = zlib.crc32(head)
    for _ in range(size // MIB):
        checksum = zlib.crc32(_ZEROS, checksum)
    length = len(head) + size + len(tail)
    trailer = struct.pack("<II", zlib.crc32(tail, checksum), length & 0xFFFFFFFF)
    return _GZIP_HEADER + start + piece * (size // MIB) + end + trailer


@functools.cache
def gzip_bomb() -> bytes:
    """1 GiB in 5 MB, beginning like a module: below the limit of the compression ratio."""
    return packed_zeros(MODULE_START, 1024 * MIB)


@functools.cache
def zstd_bomb() -> bytes:
    """8 GiB in less than 1 MB."""
    one = zstandard.ZstdCompressor(level=1).compress(MODULE_START + bytes(128 * MIB))
    return one * 64


@functools.cache
def zstd_window_bomb() -> bytes:
    """A frame that declares a window of 2 GiB and is empty."""
    exponent = 31 - 10
    return b"\x28\xb5\x2f\xfd" + bytes([0x00, exponent << 3]) + b"\x01\x00\x00"


@functools.cache
def tar_bomb() -> bytes:
    """A gzipped tar with one module of 2 GiB of zeros by its header."""
    return packed_zeros(header(b"plugin.wasm", 2048 * MIB), 2048 * MIB, END)


@functools.cache
def nested_bomb() -> bytes:
    """gzip in gzip in gzip: 1 GiB in half a kB."""
    return gz(gz(packed_zeros(MODULE_START, 1024 * MIB)))


@functools.cache
def million_entries() -> bytes:
    """A gzipped tar of a million empty files."""
    block = header(b"a") * 2048
    return packed(itertools.repeat(block, 500))


def tar_with_claimed_size() -> bytes:
    """A member of 8 EiB by its header."""
    return gz(header(b"plugin.wasm", EXBIBYTES_8) + MODULE_START)


def with_names(count: int, *, size: int, module: bytes | None = None) -> bytes:
    """A filter of `size` bytes with `count` functions in its name section."""
    each = max(1, size // count - 8)
    entries = b"".join(leb(index) + leb(each) + b"n" * each for index in range(count))
    names = leb(count) + entries
    body = leb(4) + b"name" + b"\x01" + leb(len(names)) + names
    return (module or hello()) + section(0, body)


def with_functions(count: int) -> bytes:
    """A filter with this many additional, empty functions."""
    source = _HELLO.read_text().rstrip()
    return wat.compile_text(source[: source.rindex(")")] + "(func)" * count + ")")


def with_declared_functions(count: int) -> bytes:
    """A module that declares `count` functions and has none."""
    return MODULE_START + section(_TYPE, b"\x01\x60\0\0") + section(_FUNCTION, leb(count))


def overlong_leb() -> bytes:
    """A section with a length of more than 32 bits."""
    return MODULE_START + bytes([_TYPE]) + b"\xff\xff\xff\xff\xff\x01"


def many_layers(count: int) -> bytes:
    """An image of `count` layers."""
    layer = descriptor(b"layer", "application/vnd.oci.image.layer.v1.tar+gzip")
    return manifest([layer] * count)


def descriptor(content: bytes, media_type: str, **changes: object) -> dict[str, object]:
    """A descriptor of `content`, correct except for `changes`."""
    import hashlib  # noqa: PLC0415

    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(content), **changes}


def manifest(layers: list[dict[str, object]]) -> bytes:
    """An OCI image manifest."""
    config = descriptor(b"{}", "application/vnd.oci.image.config.v1+json")
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        }
    ).encode()


def docker_config(entries: int) -> bytes:
    """A pull secret of this many hosts, none of which is used."""
    auths = {f"https://host{number}.example/v1/": {"auth": "dTpw"} for number in range(entries)}
    return json.dumps({"auths": auths}).encode()


def tangled_archive() -> bytes:
    """An archive with links, devices and names that point outside of it, and without a module."""
    names = [b"../../plugin.wasm", b"/plugin.wasm", b"plugin.wasm"]
    kinds = [b"1", b"2", b"3", b"4", b"6"]
    return b"".join(header(name, 0, kind) for name in names for kind in kinds) + END


def gzip_of(files: dict[str, bytes]) -> bytes:
    """A tar.gz of plain files."""
    return gzip.compress(tar(files), mtime=0)
