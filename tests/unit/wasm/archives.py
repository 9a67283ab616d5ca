"""Archives as bytes, good and bad."""

import gzip
import io
import tarfile
from collections.abc import Mapping

import zstandard


def tar(files: Mapping[str, bytes], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of plain files, by the standard library."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def header(name: bytes, size: int | bytes = 0, kind: bytes = b"0", **fields: bytes) -> bytes:
    """One tar header with a right checksum; `size` as bytes goes in as it is. `at_482=b"…"` writes at an offset."""
    block = bytearray(512)
    block[: len(name)] = name[:100]
    block[124:136] = size if isinstance(size, bytes) else f"{size:011o}\0".encode()
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    for field, content in fields.items():
        offset = int(field.removeprefix("at_"))
        block[offset : offset + len(content)] = content
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def padded(content: bytes) -> bytes:
    """A member's content, filled up to whole blocks."""
    return content + bytes(-len(content) % 512)


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


END = bytes(1024)
