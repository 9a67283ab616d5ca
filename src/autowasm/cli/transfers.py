"""`wasmc push` and `wasmc pull`: the same registry client, unpacking and checks as the server's.

Not a parser of flags (`wasmc.py`). Invariants: nothing is pushed, and no file gets its final name, before it was checked as
the server would check it; a pull that fails or is interrupted leaves no half file, and an existing one untouched.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import ipaddress
import os
import shutil
import signal
import ssl
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autowasm.artifacts.unpack import pull_module
from autowasm.cli.progress import Progress
from autowasm.errors import ContentRejected, UsageError
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry import dockerconfig
from autowasm.registry.client import RegistryClient
from autowasm.registry.credentials import Credential
from autowasm.registry.layout import choose_layout
from autowasm.registry.push import Package, artifact_package, image_package
from autowasm.settings import Limits, Outgoing
from autowasm.telemetry import logs
from autowasm.units import format_size
from autowasm.wasm.module import inspect_module

_FILE_NAME: Final = "filter.wasm"
_LONGEST_PASSWORD: Final = 64 * 1024
"""Characters; tokens of cloud registries have a few thousand."""


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked for, and print the result. Raises AutoWasmError, OSError, and KeyboardInterrupt.

    The last one for SIGTERM too, then with the exit status as its argument. Either way everything has been tidied up.
    """
    logs.configure(level="error" if arguments.quiet else "warning", form="console")
    reference = _parse_reference(arguments)
    if arguments.command == "pull" and arguments.output is None:
        arguments.output = Path.cwd()  # absolute: the Location is then good wherever it is read
    _check_paths(arguments)
    login = _given_login(arguments)
    try:
        lines = asyncio.run(_run(reference, login, arguments))
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt(128 + signal.SIGTERM) from error
    print("\n".join(lines), flush=True)


async def _run(
    reference: ImageReference, login: Credential | None, arguments: argparse.Namespace
) -> list[str]:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    limits = Limits()
    if arguments.force:  # what Envoy accepts no longer counts; what this machine can bear does
        most = limits.image_bytes
        limits = dataclasses.replace(limits, module_bytes=most, layer_bytes=most)
    with Pools(transfers=1) as pools:
        credential = login or await dockerconfig.find_login(
            reference, environment=os.environ, limits=limits, pools=pools
        )
        client = RegistryClient(
            outgoing=_outgoing(reference, arguments), limits=limits, pools=pools, policy=None
        )
        try:
            session = _Session(reference, client, credential, limits, pools, arguments)
            return await (session.push() if arguments.command == "push" else session.pull())
        finally:
            await client.close()


@dataclass(frozen=True, slots=True)
class _Session:
    """One push or pull."""

    reference: ImageReference
    client: RegistryClient
    credential: Credential | None
    limits: Limits
    pools: Pools
    arguments: argparse.Namespace

    async def push(self) -> list[str]:
        """The lines to print."""
        await self.pools.disk.run(_check_file, self.arguments.file, most=self.limits.image_bytes)
        abi = await self._inspect(self.arguments.file)
        async with self._workdir(None) as workdir:
            package = await self._package(abi, workdir)
            with self._progress("Pushing", total=package.size) as progress:
                digest = await self.client.push(
                    self.reference,
                    package,
                    credential=self.credential,
                    on_bytes=progress.advance,
                )
        return [f"Pushed {self.reference}", f"Digest: {digest}"]

    async def pull(self) -> list[str]:
        """The lines to print."""
        resolved = await self.client.resolve(self.reference, credential=self.credential)
        layers = choose_layout(resolved.manifest, limits=self.limits).candidates
        destination = self.arguments.output / _FILE_NAME
        # In the same folder, so that the rename at the end is one step.
        async with self._workdir(destination.parent) as workdir:
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
            await self.pools.disk.run(_put_in_place, module, destination)
        return [
            f"Pulled {self.reference}",
            f"Sha256: {pulled.sha256}",
            f"Location: {destination}",
        ]

    async def _package(self, abi: str | None, workdir: Path) -> Package:
        file = self.arguments.file
        if self.arguments.format == "image":
            return await self.pools.disk.run(image_package, file, abi=abi, workdir=workdir)
        return await self.pools.disk.run(artifact_package, file, abi=abi)

    async def _inspect(self, module: Path) -> str | None:
        """The module's ABI version. With --force a refused module is only warned of, and its ABI is None."""
        try:
            info = await self.pools.parsing.run(
                inspect_module,
                module,
                limits=Limits(),  # the verdict is about Envoy, --force or not
                allow_imports=frozenset(self.arguments.allow_import),
            )
        except ContentRejected as error:
            if not self.arguments.force:
                raise ContentRejected(
                    f"{error} [{error.reason}]; --force to {self.arguments.command} it all the same",
                    reason=error.reason,
                ) from error
            if not self.arguments.quiet:
                print(f"wasmc: warning: {error} [{error.reason}]", file=sys.stderr)
            return None
        return info.abi

    def _progress(self, label: str, *, total: int | None) -> Progress:
        return Progress(label, total=total, stream=sys.stderr, quiet=self.arguments.quiet)

    @contextlib.asynccontextmanager
    async def _workdir(self, parent: Path | None) -> AsyncIterator[Path]:
        """A hidden folder in `parent`, which is made if need be; gone afterwards with all that is in it.

        `parent` None: where temporary files go.
        """
        workdir = await self.pools.disk.run(_make_workdir, parent)
        try:
            yield workdir
        finally:
            # In this pool: behind whatever an interrupted unpacking is still writing there.
            await self.pools.parsing.run(shutil.rmtree, workdir, ignore_errors=True)


def _parse_reference(arguments: argparse.Namespace) -> ImageReference:
    try:
        reference = ImageReference.parse(arguments.reference)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if arguments.command == "push" and reference.digest is not None:
        raise UsageError(
            f"{reference}: push under a tag; the digest is what comes out, it cannot be chosen"
        )
    return reference


def _check_paths(arguments: argparse.Namespace) -> None:
    """What is wrong with the given paths is said before anything else is done. Raises UsageError."""
    if arguments.command == "push":
        _check_readable("-f", arguments.file)
    else:
        folder = arguments.output
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"-o {folder}: not a folder")
        if (folder / _FILE_NAME).is_dir():
            raise UsageError(f"{folder / _FILE_NAME}: is a folder, and the module would go there")
    if arguments.ca_file is not None:
        _check_readable("--ca-file", arguments.ca_file)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(arguments.ca_file)
        except ssl.SSLError as error:
            raise UsageError(
                f"--ca-file {arguments.ca_file}: not a PEM file of certificates"
            ) from error


def _check_readable(flag: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise UsageError(f"{flag} {file}: {error.strerror}") from error


def _given_login(arguments: argparse.Namespace) -> Credential | None:
    """What --username and --password-stdin say. Raises UsageError."""
    if arguments.username is None and not arguments.password_stdin:
        return None
    if not arguments.username or not arguments.password_stdin:
        raise UsageError("give both --username and --password-stdin, or neither")
    if ":" in arguments.username:
        raise UsageError("--username: a user name cannot contain a colon")
    text = sys.stdin.read(_LONGEST_PASSWORD + 1)
    if len(text) > _LONGEST_PASSWORD:
        raise UsageError(f"--password-stdin: longer than {_LONGEST_PASSWORD} characters")
    password = text.removesuffix("\n").removesuffix("\r")
    if not password:
        raise UsageError("--password-stdin: standard input is empty")
    return Credential(arguments.username, password)


def _outgoing(reference: ImageReference, arguments: argparse.Namespace) -> Outgoing:
    host = frozenset({reference.host})
    with_tls = arguments.insecure or arguments.ca_file is not None
    plain = arguments.plain_http or (is_loopback(reference.host) and not with_tls)
    return Outgoing(
        plain_http=host if plain else frozenset(),
        insecure=host if arguments.insecure else frozenset(),
        ca_file=arguments.ca_file,
    )


def is_loopback(host: str) -> bool:
    """True for `HOST[:PORT]` of this machine. docker and crane take such registries as plain HTTP, too."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_file(path: Path, *, most: int) -> None:
    """Raise ContentRejected unless it is a plain file that can be pushed at all, --force or not."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ContentRejected(f"{path} is not a plain file", reason="NotAFile")
    if status.st_size > most:
        raise ContentRejected(
            f"{path} has {format_size(status.st_size)}, more than the {format_size(most)} that are pushed",
            reason="TooLarge",
        )


def _make_workdir(parent: Path | None) -> Path:
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".wasmc-", dir=parent))


def _put_in_place(module: Path, destination: Path) -> None:
    """Rename, such that after a crash there is the old file or the whole new one."""
    with module.open("rb") as file:
        os.fsync(file.fileno())
    module.replace(destination)
    folder = os.open(destination.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
