"""Shared by the commands of `wasmc`: the reference, the login, the registry connection, work folders, signals.

Invariants: errors of the command line are reported before any request; a login is sent only to the reference's registry; SIGTERM
ends a command like Ctrl-C, and temporary files are removed.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autowasm.cli.interrupts import run_to_end, waits_for
from autowasm.errors import WASMC, Advice, UsageError
from autowasm.limits import Limits
from autowasm.net.hosts import is_loopback
from autowasm.net.pools import Pools
from autowasm.net.proxy import EnvironmentProxies
from autowasm.net.tls import speaks_tls
from autowasm.reference import ImageReference
from autowasm.registry import dockerconfig
from autowasm.registry.client import RegistryClient
from autowasm.registry.credentials import Credential
from autowasm.settings import Outgoing
from autowasm.telemetry import logs

__all__ = ["run_to_end"]

_MAX_PASSWORD_LENGTH: Final = 64 * 1024
"""Characters. Tokens of cloud registries have a few thousand."""


@dataclass(frozen=True, slots=True)
class RegistryConnection:
    """A registry client with the reference and the login."""

    reference: ImageReference
    client: RegistryClient
    credential: Credential | None


def begin(arguments: argparse.Namespace) -> None:
    """Configure the log: warnings, with --quiet only errors."""
    logs.configure(level="error" if arguments.quiet else "warning", form="plain")


@contextlib.asynccontextmanager
async def connected(
    reference: ImageReference,
    login: Credential | None,
    arguments: argparse.Namespace,
    *,
    limits: Limits,
    pools: Pools,
) -> AsyncIterator[RegistryConnection]:
    """A client with `login`, or if that is None, with the login that `registry/dockerconfig.py` finds."""
    found = dockerconfig.FoundLogin(login)
    if login is None:
        found = await dockerconfig.find_login(
            reference, environment=os.environ, limits=limits, pools=pools
        )
    plain = arguments.plain_http or await _is_plain_here(reference, arguments, limits=limits)
    client = RegistryClient(
        outgoing=_outgoing(reference, arguments, found, plain=plain),
        limits=limits,
        pools=pools,
        policy=None,
        proxies=EnvironmentProxies.read(os.environ),
    )
    try:
        with waits_for(f"the registry {reference.host}"):
            yield RegistryConnection(reference, client, found.credential)
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def workdir(parent: Path | None, *, pools: Pools) -> AsyncIterator[Path]:
    """A hidden folder in `parent`, which is created if absent. At the end, the folder is removed with its files.

    `parent` None: the system's folder for temporary files.
    """
    folder = await pools.disk.run(_make_workdir, parent)
    try:
        yield folder
    finally:
        # In the parsing pool, so it runs after an interrupted unpacking that still writes there.
        with waits_for("the removal of temporary files"):
            await pools.parsing.run(shutil.rmtree, folder, ignore_errors=True)


def _make_workdir(parent: Path | None) -> Path:
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".wasmc-", dir=parent))


def parse_reference(text: str) -> ImageReference:
    """`ImageReference.parse`. Raises UsageError."""
    try:
        return ImageReference.parse(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_readable(flag: str, file: Path) -> None:
    """Raises UsageError, with the flag's name, unless the file can be opened."""
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise UsageError(f"{flag} {file}: {error.strerror}") from error


def check_ca_file(arguments: argparse.Namespace) -> None:
    """Raises UsageError unless --ca-file is absent or a PEM file of certificates."""
    if arguments.ca_file is None:
        return
    check_readable("--ca-file", arguments.ca_file)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(arguments.ca_file)
    except ssl.SSLError as error:
        raise UsageError(
            f"--ca-file {arguments.ca_file}: not a PEM file of certificates"
        ) from error


def given_login(arguments: argparse.Namespace) -> Credential | None:
    """The login of --username and --password-stdin. Raises UsageError."""
    if arguments.username is None and not arguments.password_stdin:
        return None
    if not arguments.username or not arguments.password_stdin:
        raise UsageError("use --username and --password-stdin together, or neither of them")
    if ":" in arguments.username:
        raise UsageError("--username: a user name cannot contain a colon")
    if sys.stdin is None:
        raise UsageError("--password-stdin: standard input is closed")
    text = sys.stdin.read(_MAX_PASSWORD_LENGTH + 1)
    if len(text) > _MAX_PASSWORD_LENGTH:
        raise UsageError(f"--password-stdin: longer than {_MAX_PASSWORD_LENGTH} characters")
    password = text.removesuffix("\n").removesuffix("\r")
    if not password:
        raise UsageError("--password-stdin: standard input is empty")
    return Credential(arguments.username, password)


async def _is_plain_here(
    reference: ImageReference, arguments: argparse.Namespace, *, limits: Limits
) -> bool:
    """Whether the registry is on this machine and has no TLS: then plain HTTP, as in docker and crane."""
    if not is_loopback(reference.host) or arguments.insecure or arguments.ca_file is not None:
        return False
    return not await speaks_tls(reference.host, timeout=limits.connect_timeout)


def _outgoing(
    reference: ImageReference,
    arguments: argparse.Namespace,
    found: dockerconfig.FoundLogin,
    *,
    plain: bool,
) -> Outgoing:
    host = frozenset({reference.host})
    return Outgoing(
        plain_http=host if plain else frozenset(),
        insecure=host if arguments.insecure else frozenset(),
        ca_file=arguments.ca_file,
        advice=_advice(found, plain=plain and not arguments.plain_http),
    )


def _advice(found: dockerconfig.FoundLogin, *, plain: bool) -> Advice:
    """The remedies for this command line. `plain`: plain HTTP was chosen because the registry is on this machine."""
    login = WASMC.login
    if found.searched:
        login += f"; no login for it was found in: {', '.join(found.searched)}"
    no_plain_http = "use --ca-file or --insecure" if plain else WASMC.no_plain_http
    return dataclasses.replace(WASMC, login=login, no_plain_http=no_plain_http)
