"""The module of a command: from a file, a pipe, an archive or an image, as the bytes that wasmer would check next.

Invariant: nothing is kept on disk. The sources of AutoWasms are in `fetching.py`.
"""

import argparse
import contextlib
import hashlib
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from autowasm.artifacts.image import pull_module
from autowasm.cli import registries
from autowasm.cli.stdio import Progress, as_file, is_piped
from autowasm.errors import ContentRejected, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reasons import Reason
from autowasm.registry.credentials import Credential
from autowasm.units import format_size
from autowasm.wasm.archive import DETECT, extract_module

_FILE_PREFIXES: Final = ("./", "../", "/")
_MAX_NAME: Final = 255
"""Bytes of the name of a file (NAME_MAX)."""
_FILE_SUFFIXES: Final = (".wasm", ".tar", ".gz", ".tgz", ".zst")


@dataclass(frozen=True, slots=True)
class Module:
    """`source`: as the user wrote it. `data`: the module, not yet checked."""

    source: str
    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """Hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


def file_of(text: str, *, command: str) -> Path | None:
    """The file that `text` names, None if it is an image. Raises UsageError."""
    if not text:
        return None
    path = Path(text)
    if is_piped(path):
        return path
    try:
        exists = path.exists()
    except (OSError, ValueError):  # name too long, or a zero byte
        exists = False
    if text.startswith(_FILE_PREFIXES) or (exists and not path.is_dir()):
        registries.check_readable(command, path)
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path}: not a regular file")
        return path
    if _looks_like_a_file(text):
        raise UsageError(f"{text}: no such file; for an image, use HOST/NAME:TAG")
    return None


def _looks_like_a_file(text: str) -> bool:
    """Whether a name that is not a file is meant as one: the only other meaning would be an image on Docker Hub without a tag."""
    first, slash, _ = text.partition("/")
    if not slash:
        is_bare = not any(mark in text for mark in ":@") and len(text) <= _MAX_NAME
        return text.endswith(_FILE_SUFFIXES) or is_bare
    is_host = "." in first or ":" in first or first == "localhost" or first.lower() != first
    return not is_host and (text.endswith(_FILE_SUFFIXES) or Path(first).is_dir())


def measure(path: Path) -> tuple[str, int]:
    """sha256 and size of a file. Blocks."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.seek(0, 2)


def check_size(size: int, *, limits: Limits) -> None:
    """Raises ContentRejected for a file that is larger than wasmer would fetch."""
    if size > limits.layer_bytes:
        raise ContentRejected(
            f"the file is {format_size(size)}; the limit for an object is "
            f"{format_size(limits.layer_bytes)}",
            reason=Reason.TOO_LARGE,
        )


def load(text: str, arguments: argparse.Namespace) -> Module:
    """The module of FILE or REF. Blocks. Raises AutoWasmError, OSError, KeyboardInterrupt as `pushpull.run`."""
    file = file_of(text, command=arguments.command)
    if file is None:
        login = registries.given_login(arguments)
        return registries.run_to_end(_pulled(text, login, arguments))
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(as_file(arguments.command, file, most=Limits().image_bytes))
        return registries.run_to_end(_unpacked(str(file), path))


async def _unpacked(source: str, path: Path) -> Module:
    limits = Limits()
    with Pools(transfers=1) as pools:
        async with registries.workdir(None, pools=pools) as workdir:
            check_size((await pools.disk.run(path.stat)).st_size, limits=limits)
            target = workdir / "module"
            await pools.parsing.run(extract_module, path, target, packing=DETECT, limits=limits)
            return Module(source, await pools.disk.run(target.read_bytes))


async def _pulled(text: str, login: Credential | None, arguments: argparse.Namespace) -> Module:
    reference = registries.parse_reference(text)
    limits = Limits()
    with Pools(transfers=1) as pools:
        async with (
            registries.connected(
                reference, login, arguments, limits=limits, pools=pools
            ) as connection,
            registries.workdir(None, pools=pools) as workdir,
        ):
            resolved = await connection.client.resolve(reference, credential=connection.credential)
            quiet = arguments.quiet or arguments.json
            with Progress("Pulling", total=None, stream=sys.stderr, quiet=quiet) as progress:
                await pull_module(
                    connection.client,
                    reference,
                    resolved,
                    workdir / "module",
                    credential=connection.credential,
                    limits=limits,
                    pools=pools,
                    workdir=workdir,
                    on_bytes=progress.advance,
                )
            return Module(str(reference), await pools.disk.run((workdir / "module").read_bytes))
