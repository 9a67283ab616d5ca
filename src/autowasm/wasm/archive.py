"""Extraction of the module from bytes that a registry or server sent: tar, tar+gzip, tar+zstd, gzip, zstd, or unpacked.

Not an unpacker: one member is copied to the caller's path, and names in the archive are only compared.
Invariants: the limits of `limits.Limits` hold for all layers of packing together; the bytes decide the compression, not a
media type or a file name; the result is not checked here (`module.py`).
"""

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autowasm.digest import HashedFile, Sha256Hex, Signature
from autowasm.errors import ContentRejected, StorageError
from autowasm.limits import Limits
from autowasm.reasons import Reason
from autowasm.text import listed
from autowasm.wasm import binary, tar
from autowasm.wasm.decompression import (
    ByteSource,
    FileSource,
    OutputLimit,
    Stream,
    archive_invalid,
    decompressed,
    is_compressed,
)
from autowasm.wasm.tar import TarReader

RAW, DETECT = "raw", "detect"
TAR_PACKINGS = ("tar", "tar+gzip", "tar+zstd")
"""The compression is detected by the first bytes, as in containerd: tools mislabel layers, and nothing depends on the label."""

_SHOWN = 5
"""Names of files in a message."""
_PREFERRED = ("plugin.wasm", "filter.wasm")


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """A file of an archive that may be the module. `ordinal` is its position among the archive's entries, from 0."""

    name: str
    ordinal: int


def extract_module(source: Path, destination: Path, *, packing: str, limits: Limits) -> str:
    """Copy the module in `source` to `destination`. Returns the member's name, empty if there is no archive.

    `packing`: `raw` (nothing to unpack), `tar`, `tar+gzip`, `tar+zstd`, or `detect` (any of them and plain gzip or zstd,
    nested up to `limits.archive_nesting` deep). Blocks (pool `parsing`). After a failure a partial file may stay.
    Raises ContentRejected (`ArchiveInvalid`, `ArchiveTooLarge`, `TooLarge`, `ModuleNotFoundInArchive`,
    `AmbiguousModule`; with `detect` also `NotWasm`) and StorageError.
    """
    if packing == DETECT:
        return _extract_detected(source, destination, limits=limits)
    if packing == RAW:
        with _opened(source, (), limits=limits) as stream:
            _copy(stream, destination, limits=limits)
        return ""
    with _opened(source, _steps(packing), limits=limits) as stream:
        member = _choose(stream, limits=limits)
    extract_member(source, destination, packing=packing, member=member, limits=limits)
    return member.name


@contextmanager
def opened_archive(source: Path, *, packing: str, limits: Limits) -> Iterator[TarReader]:
    """The entries of one tar archive or image layer. Raises ContentRejected (`ArchiveInvalid`) and StorageError."""
    with _opened(source, _steps(packing), limits=limits) as stream:
        if stream.peek(len(binary.MAGIC)).startswith(binary.MAGIC):
            raise archive_invalid(
                "its type is tar, but it is a bare WebAssembly module: push it with `wasmc push`, or "
                "with oras as FILE:application/wasm"
            )
        yield TarReader(stream, limits=limits)


def choose_member(members: Sequence[ArchiveMember]) -> ArchiveMember:
    """Choose among the candidates of one layer or archive: `plugin.wasm`, else `filter.wasm`, else the only one.

    A preferred name counts in any directory, the top directory first. Raises ContentRejected: `ModuleNotFoundInArchive`,
    `AmbiguousModule`.
    """
    for name in _PREFERRED:
        named = [each for each in members if _path(each.name).rpartition("/")[2] == name]
        at_top = [each for each in named if _path(each.name) == name]
        if chosen := at_top or named:
            return _only(chosen)
    if not members:
        raise ContentRejected(
            "there is no *.wasm file in it: add the module as plugin.wasm",
            reason=Reason.MODULE_NOT_FOUND_IN_ARCHIVE,
        )
    return _only(members)


def extract_member(
    source: Path, destination: Path, *, packing: str, member: ArchiveMember, limits: Limits
) -> HashedFile:
    """Copy a member that `read_layer` returned, with the same `packing`. Raises as `extract_module`."""
    steps = (*_steps(packing), member)
    with _opened(source, steps, limits=limits) as stream:
        return _copy(stream, destination, limits=limits)


class _Decompress:
    """A step into a stream: remove the compression that it begins with."""


_DECOMPRESS = _Decompress()
_Step = _Decompress | ArchiveMember


def _steps(packing: str) -> tuple[_Step, ...]:
    if packing not in TAR_PACKINGS:
        raise ValueError(f"unknown packing of an archive: {packing!r}")
    return (_DECOMPRESS,)


def _extract_detected(source: Path, destination: Path, *, limits: Limits) -> str:
    """Remove one packing after another until WebAssembly appears, each time from the start of the file.

    Rereading costs little (only the search of a tar reads the whole file) and keeps every stream forward only.
    """
    steps: list[_Step] = []
    name = ""
    while True:
        with _opened(source, steps, limits=limits) as stream:
            head = stream.peek(tar.BLOCK)
            if head.startswith(binary.MAGIC):
                _copy(stream, destination, limits=limits)
                return name
            if is_compressed(head):
                steps.append(_DECOMPRESS)
            elif tar.is_header(head):
                member = _choose(stream, limits=limits)
                name = member.name
                steps.append(member)
            else:
                what = "the packed content" if steps else "this"
                problem = binary.guess(head) if head else "it is empty"
                raise ContentRejected(
                    f"{what} is neither a WebAssembly module nor a gzip, zstd or tar archive of one: "
                    f"{problem}",
                    reason=Reason.NOT_WASM,
                )
        if len(steps) > limits.archive_nesting:
            raise archive_invalid(f"archives are nested more than {limits.archive_nesting} deep")


def _choose(stream: Stream, *, limits: Limits) -> ArchiveMember:
    candidates = _candidates(stream, limits=limits)
    if candidates.found:
        return choose_member(candidates.found)
    more = candidates.other_files - len(candidates.others)
    held = f"{listed(candidates.others)} and {more} more" if more else listed(candidates.others)
    raise ContentRejected(
        f"the archive holds no *.wasm file: add the module as plugin.wasm; it holds {held or 'no files'}",
        reason=Reason.MODULE_NOT_FOUND_IN_ARCHIVE,
    )


@contextmanager
def _opened(source: Path, steps: Sequence[_Step], *, limits: Limits) -> Iterator[Stream]:
    """The stream after `steps` into the file."""
    try:
        with source.open("rb") as file:
            output_limit = OutputLimit(limits)
            stream = Stream(FileSource(file, output_limit))
            for step in steps:
                if isinstance(step, ArchiveMember):
                    stream = Stream(_at_member(stream, step, limits=limits))
                else:
                    stream = decompressed(stream, output_limit=output_limit, limits=limits)
            yield stream
    except OSError as error:
        raise _storage_error(source, error) from error


def _at_member(stream: Stream, member: ArchiveMember, *, limits: Limits) -> ByteSource:
    reader = TarReader(stream, limits=limits)
    for _ in range(member.ordinal + 1):
        if reader.next() is None:
            raise archive_invalid(f"its entry {member.ordinal} is missing")
    return reader


@dataclass(frozen=True, slots=True)
class _Candidates:
    found: list[ArchiveMember]
    others: list[str]
    """The names of the first other files, for a message."""
    other_files: int
    """How many there are."""


def _candidates(stream: Stream, *, limits: Limits) -> _Candidates:
    reader = TarReader(stream, limits=limits)
    found: dict[str, ArchiveMember] = {}
    others: list[str] = []
    ordinal = other_files = 0
    while (entry := reader.next()) is not None:
        found.pop(_path(entry.name), None)  # as in unpacking, the last entry with a path counts
        if entry.is_file and is_candidate(entry.name):
            found[_path(entry.name)] = ArchiveMember(entry.name, ordinal)
        elif entry.is_file:
            other_files += 1
            if len(others) < _SHOWN:
                others.append(entry.name)
        ordinal += 1
    return _Candidates(list(found.values()), others, other_files)


def is_candidate(name: str) -> bool:
    """Whether a file of this name may be the module.

    Hidden files may not: `.wh.plugin.wasm` marks a deletion in a layer, and macOS adds `._plugin.wasm`.
    """
    base = _path(name).rpartition("/")[2]
    return base.endswith(".wasm") and not base.startswith(".")


def _path(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _only(members: Sequence[ArchiveMember]) -> ArchiveMember:
    if len(members) > 1:
        raise ContentRejected(
            f"there are {len(members)} modules in it ({listed([each.name for each in members])}): "
            "name the intended one plugin.wasm",
            reason=Reason.AMBIGUOUS_MODULE,
        )
    (only,) = members
    return only


def _copy(stream: Stream, destination: Path, *, limits: Limits) -> HashedFile:
    """Write the rest of `stream` to `destination`, at most a module's size. Raises ContentRejected (`TooLarge`)."""
    written, digest = 0, hashlib.sha256()
    try:
        with destination.open("wb") as file:
            while chunk := stream.read(limits.transfer_chunk):
                written += len(chunk)
                if written > limits.module_bytes:
                    raise ContentRejected(
                        f"the module has more than {limits.module_bytes} bytes, the maximum that "
                        "Envoy accepts: strip it (wasm-strip, wasm-opt -Oz)",
                        reason=Reason.TOO_LARGE,
                    )
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            return HashedFile(Sha256Hex(digest.hexdigest()), Signature.of(file.fileno()))
    except OSError as error:
        raise _storage_error(destination, error) from error


def _storage_error(path: Path, error: OSError) -> StorageError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StorageError(
        f"cannot unpack the module at {path}: {error.strerror}",
        reason=Reason.STORAGE_FULL if full else Reason.STORAGE_UNAVAILABLE,
    )
