"""`wasmc push` and `wasmc pull`, with the registry client, the unpacking and the checks of wasmer.

Invariants: a module is checked as wasmer would check it before it is pushed or its file gets the final name; a failed or
interrupted pull leaves no partial file and does not change an existing one.
"""

import argparse
import contextlib
import dataclasses
import json
import shutil
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from autowasm import atomicfile
from autowasm.artifacts.image import pull_module
from autowasm.cli import registries
from autowasm.cli.modules import measure
from autowasm.cli.options import offered
from autowasm.cli.stdio import Progress, as_file, is_piped, is_stdin
from autowasm.errors import ContentRejected, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reasons import Reason
from autowasm.reference import ImageReference
from autowasm.registry import mediatypes
from autowasm.registry.client import RegistryClient
from autowasm.registry.credentials import Credential
from autowasm.registry.layouts import choose_layout
from autowasm.registry.package import OWN_ANNOTATIONS, Package, make_package
from autowasm.units import format_size
from autowasm.wasm.module import inspect_module

_FILE_NAME: Final = "filter.wasm"
_STDOUT: Final = "-"
_MAX_ANNOTATIONS: Final = 64 * 1024
"""Characters. Some registries refuse much larger manifests."""


def run(arguments: argparse.Namespace) -> int:
    """Push or pull, print the result, and return the exit status. Raises AutoWasmError, OSError, and KeyboardInterrupt.

    SIGTERM raises KeyboardInterrupt with the exit status as its argument. Temporary files are removed in every case.
    """
    if arguments.command == "push":
        arguments.file = _module_file(arguments)
    registries.begin(arguments)
    reference = _parse_reference(arguments)
    target = _target(arguments) if arguments.command == "pull" else None
    _check_paths(arguments, target)
    annotations = _annotations(arguments) if arguments.command == "push" else {}
    login = registries.given_login(arguments)
    with contextlib.ExitStack() as stack:
        if arguments.command == "push":
            module = as_file("-f", arguments.file, most=Limits().image_bytes)
            arguments.file = stack.enter_context(module)
        result = registries.run_to_end(_run(reference, login, annotations, target, arguments))
    _print(result, arguments)
    return 0


def _module_file(arguments: argparse.Namespace) -> Path:
    """The file of -f, or of the second argument. Raises UsageError."""
    reference: str = arguments.reference
    given: list[Path] = [each for each in (arguments.file, arguments.module) if each is not None]
    if len(given) == 2:
        raise UsageError(f"-f {given[0]} and {given[1]}: only one module can be pushed")
    if Path(reference).is_file():
        name = given[0] if given and not given[0].is_file() else "REF"
        raise UsageError(
            f"{reference} is a file; the reference comes first: wasmc push {name} -f {reference}"
        )
    if not given:
        raise UsageError(f"no module is given: wasmc push {reference} -f FILE")
    return given[0]


@dataclass(frozen=True, slots=True)
class _Result:
    """The output: all `lines`, or with --quiet the `line`, or with --json the `document`."""

    lines: tuple[str, ...]
    line: str
    document: Mapping[str, Any]


def _print(result: _Result, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(result.document, indent=2), flush=True)
    elif arguments.command == "pull" and arguments.output == _STDOUT:
        if not arguments.quiet:
            print("\n".join(result.lines), file=sys.stderr)
    else:
        print(result.line if arguments.quiet else "\n".join(result.lines), flush=True)


def _target(arguments: argparse.Namespace) -> Path | None:
    """The file of -o; None for standard output. Raises UsageError."""
    output: str | None = arguments.output
    if output is None:
        return Path.cwd() / _FILE_NAME  # absolute, so Location is valid in any folder
    if output != _STDOUT:
        path = Path(output)
        return path / _FILE_NAME if output.endswith("/") or path.is_dir() else path
    if arguments.json:
        raise UsageError("-o - and --json: only one can be written to standard output")
    if sys.stdout.isatty():
        raise UsageError("-o -: standard output is a terminal; redirect it, or use -o FILE")
    return None


async def _run(
    reference: ImageReference,
    login: Credential | None,
    annotations: Mapping[str, str],
    target: Path | None,
    arguments: argparse.Namespace,
) -> _Result:
    limits = Limits()
    if arguments.force:  # Envoy's limits do not apply; this machine's do
        most = limits.image_bytes
        limits = dataclasses.replace(limits, module_bytes=most, layer_bytes=most)
    with Pools(transfers=1) as pools:
        async with registries.connected(
            reference, login, arguments, limits=limits, pools=pools
        ) as connection:
            session = _Session(
                reference,
                connection.client,
                connection.credential,
                limits,
                pools,
                arguments,
                annotations,
            )
            if arguments.command == "push":
                return await session.push()
            return await session.pull(target)


@dataclass(frozen=True, slots=True)
class _Session:
    """One push or pull."""

    reference: ImageReference
    client: RegistryClient
    credential: Credential | None
    limits: Limits
    pools: Pools
    arguments: argparse.Namespace
    annotations: Mapping[str, str]

    async def push(self) -> _Result:
        """Push the module."""
        await self.pools.disk.run(_check_file, self.arguments.file, most=self.limits.image_bytes)
        abi = await self._inspect(self.arguments.file)
        async with registries.workdir(None, pools=self.pools) as workdir:
            package = await self._package(abi, workdir)
            with self._progress("Pushing", total=package.size) as progress:
                digest = await self.client.push(
                    self.reference,
                    package,
                    credential=self.credential,
                    on_bytes=progress.advance,
                )
        sha256, size = await self.pools.disk.run(measure, self.arguments.file)
        return _Result(
            lines=(f"Pushed {self.reference}", f"Digest: {digest}"),
            line=str(digest),
            document={
                "reference": str(self.reference),
                "digest": str(digest),
                "sha256": sha256,
                "size": size,
                "format": self.arguments.format,
            },
        )

    async def pull(self, target: Path | None) -> _Result:
        """Pull the module to `target`, or to standard output."""
        resolved = await self.client.resolve(self.reference, credential=self.credential)
        layers = choose_layout(resolved.manifest, limits=self.limits).candidates
        # In the destination's folder, so that the final rename is atomic.
        is_renamed = target is not None and not _is_stream(target)
        folder = target.parent if target is not None and is_renamed else None
        async with registries.workdir(folder, pools=self.pools) as workdir:
            module = workdir / _FILE_NAME
            total = layers[0].descriptor.size if len(layers) == 1 else None
            with self._progress("Pulling", total=total) as progress:
                pulled = await pull_module(
                    self.client,
                    self.reference,
                    resolved,
                    module,
                    credential=self.credential,
                    limits=self.limits,
                    pools=self.pools,
                    workdir=workdir,
                    on_bytes=progress.advance,
                )
            await self._inspect(module)
            size = (await self.pools.disk.run(module.stat)).st_size
            if target is not None and is_renamed:
                await self.pools.disk.run(atomicfile.sync_and_rename, module, target)
            else:
                await self.pools.disk.run(_write_out, module, target)
        location = _STDOUT if target is None else str(target)
        lines = (f"Pulled {self.reference}", f"Sha256: {pulled.sha256}")
        return _Result(
            lines=lines if target is None else (*lines, f"Location: {location}"),
            line=location,
            document={
                "reference": str(self.reference),
                "digest": str(resolved.digest),
                "sha256": pulled.sha256,
                "size": size,
                "location": location,
            },
        )

    async def _package(self, abi: str | None, workdir: Path) -> Package:
        return await self.pools.disk.run(
            make_package,
            self.arguments.format,
            self.arguments.file,
            abi=abi,
            workdir=workdir,
            annotations=self.annotations,
        )

    async def _inspect(self, module: Path) -> str | None:
        """The module's ABI version. With --force a refusal is only a warning, and the ABI is None."""
        try:
            info = await self.pools.parsing.run(
                inspect_module,
                module,
                limits=Limits(),  # Envoy's limits, also with --force
                **offered(self.arguments),
            )
        except ContentRejected as error:
            if not self.arguments.force:
                raise ContentRejected(
                    f"{error} [{error.reason}]; use --force to {self.arguments.command} it anyway",
                    reason=error.reason,
                ) from error
            if not self.arguments.quiet:
                print(f"wasmc: warning: {error} [{error.reason}]", file=sys.stderr)
            return None
        if info.unchecked and not self.arguments.quiet:
            print(f"wasmc: warning: {info.unchecked}", file=sys.stderr)
        return info.abi

    def _progress(self, label: str, *, total: int | None) -> Progress:
        quiet = self.arguments.quiet or self.arguments.json
        return Progress(label, total=total, stream=sys.stderr, quiet=quiet)


def _parse_reference(arguments: argparse.Namespace) -> ImageReference:
    reference = registries.parse_reference(arguments.reference)
    if arguments.command == "push" and reference.digest is not None:
        raise UsageError(
            f"{reference}: push to a tag, not a digest; the digest is computed from the content and cannot be chosen"
        )
    return reference


def _annotations(arguments: argparse.Namespace) -> dict[str, str]:
    """The annotations of --annotation, --source and --version. Raises UsageError."""
    given = {}
    for flag, key, value in (
        ("--source", mediatypes.SOURCE, arguments.source),
        ("--version", mediatypes.VERSION, arguments.version),
        *(("--annotation", *_split_annotation(text)) for text in arguments.annotation),
    ):
        if value is None:
            continue
        if key in OWN_ANNOTATIONS:
            raise UsageError(f"{flag}: {key} is set by wasmc and cannot be given")
        if key in given:
            raise UsageError(f"{flag}: {key} is given twice")
        try:
            f"{key}{value}".encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{flag}: {key!r} is not valid text") from error
        given[key] = value
    if (size := sum(map(len, (*given, *given.values())))) > _MAX_ANNOTATIONS:
        raise UsageError(
            f"--annotation: {size} characters in total; the limit is {_MAX_ANNOTATIONS}"
        )
    return given


def _split_annotation(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--annotation: must be KEY=VALUE, not {text[:100]!r}")
    return key.strip(), value


def _check_paths(arguments: argparse.Namespace, target: Path | None) -> None:
    """Check the given paths before anything else is done. Raises UsageError."""
    if arguments.command == "push":
        if arguments.password_stdin and is_stdin(arguments.file):
            raise UsageError(
                f"-f {arguments.file} and --password-stdin: only one can be read from standard input"
            )
        if not is_piped(arguments.file):
            registries.check_readable("-f", arguments.file)
    elif target is not None:
        if target.is_dir():
            raise UsageError(f"{target}: is a folder; the module cannot be written there")
        above = next(each for each in target.absolute().parents if each.exists())
        if not above.is_dir():
            raise UsageError(f"-o {arguments.output}: {above} is not a folder")
    registries.check_ca_file(arguments)


def _is_stream(path: Path) -> bool:
    """Whether the path is a pipe or a device, such as /dev/stdout or /dev/null: the module is then written into it."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode)


def _write_out(module: Path, target: Path | None) -> None:
    with contextlib.ExitStack() as opened:
        file: BinaryIO = (
            sys.stdout.buffer if target is None else opened.enter_context(target.open("wb"))
        )
        with module.open("rb") as source:
            shutil.copyfileobj(source, file)
        file.flush()


def _check_file(path: Path, *, most: int) -> None:
    """Raise ContentRejected unless `path` is a plain file of at most `most` bytes, also with --force."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ContentRejected(f"{path} is not a regular file", reason=Reason.NOT_A_FILE)
    if status.st_size > most:
        raise ContentRejected(
            f"{path} is {format_size(status.st_size)}; the limit is {format_size(most)}",
            reason=Reason.TOO_LARGE,
        )
