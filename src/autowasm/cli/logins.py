"""`wasmc login` and `wasmc logout`: logins in docker's configuration.

Invariants: a login is kept only after the registry has accepted it; the password is never printed and is in no message.
"""

import argparse
import getpass
import json
import os
import sys

from autowasm.cli import registries
from autowasm.cli.values import registry_host
from autowasm.errors import UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry.credentials import Credential
from autowasm.registry.dockerconfig import LoginStore

_ANY_REPOSITORY = "login"
"""No request names it, because a login is for the whole registry."""


def run(arguments: argparse.Namespace) -> int:
    """Log in or out, return the exit status. Raises AutoWasmError, OSError, KeyboardInterrupt as `pushpull.run`."""
    registries.begin(arguments)
    host = _host(arguments)
    if arguments.command == "logout":
        return registries.run_to_end(_logout(host, arguments))
    registries.check_ca_file(arguments)
    return registries.run_to_end(_login(host, _given(host, arguments), arguments))


def _host(arguments: argparse.Namespace) -> str:
    """The host of HOST, which may have the form of a URL, as in docker. Raises UsageError."""
    text: str = arguments.host
    bare = (text.partition("://")[2] or text).removesuffix("/")
    bare = bare.removesuffix("/v1").removesuffix("/v2")
    try:
        host = registry_host(bare)
    except ValueError as error:
        raise UsageError(f"HOST: {error}") from error
    if not ("." in host or ":" in host or host == "localhost"):
        raise UsageError(
            f"HOST: {text[:80]!r} has neither a dot nor a port; use HOST.DOMAIN or HOST:PORT"
        )
    return ImageReference.parse(f"{host}/{_ANY_REPOSITORY}:latest").host


def _given(host: str, arguments: argparse.Namespace) -> Credential:
    """The login from the flags; on a terminal, prompts for missing parts. Raises UsageError."""
    username, password = arguments.username, arguments.password
    if password is not None and arguments.password_stdin:
        raise UsageError("use either --password or --password-stdin")
    if arguments.password_stdin:
        if not username:
            raise UsageError("--password-stdin requires --username")
        login = registries.given_login(arguments)
        if login is None:
            raise AssertionError("unreachable: both flags are given")
        return login
    if (not username or password is None) and not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError("without a terminal use --username and --password-stdin")
    if not username:
        print(f"User name for {host}: ", end="", file=sys.stderr, flush=True)
        username = sys.stdin.readline().strip()
    if password is None:
        password = getpass.getpass(f"Password of {username} for {host}: ", stream=sys.stderr)
    if not username or not password:
        raise UsageError("the user name or the password is empty")
    if ":" in username:
        raise UsageError("--username: a user name cannot contain a colon")
    return Credential(username, password)


async def _login(host: str, login: Credential, arguments: argparse.Namespace) -> int:
    limits = Limits()
    reference = ImageReference(host, _ANY_REPOSITORY, "latest")
    with Pools(transfers=1) as pools:
        store = LoginStore(os.environ, limits=limits, pools=pools)
        async with registries.connected(
            reference, login, arguments, limits=limits, pools=pools
        ) as connection:
            await connection.client.check_login(reference, credential=login)
        place = await store.keep(host, login)
        is_plain = place == str(store.path)
    if is_plain and not arguments.quiet:
        print(
            f"wasmc: warning: the password is in {place}, which is not encrypted; a credential helper (credsStore) avoids that",
            file=sys.stderr,
        )
    if arguments.json:
        print(
            json.dumps({"host": host, "user": login.username, "place": place}, indent=2), flush=True
        )
    elif not arguments.quiet:
        print(f"Logged in to {host} as {login.username}", flush=True)
    return 0


async def _logout(host: str, arguments: argparse.Namespace) -> int:
    limits = Limits()
    with Pools(transfers=1) as pools:
        store = LoginStore(os.environ, limits=limits, pools=pools)
        removed = await store.remove(host)
    if arguments.json:
        print(json.dumps({"host": host, "removed": removed}, indent=2), flush=True)
    elif not arguments.quiet:
        print(f"Logged out of {host}" if removed else f"Not logged in to {host}", flush=True)
    return 0
