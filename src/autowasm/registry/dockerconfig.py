"""A person's own logins: docker's `config.json` and its credential helpers. For `wasmc` only.

Not for the server, which runs no programs that a file names (`credentials.py` reads Secrets). Invariants: a helper ends
within `limits.credential_helper_timeout`; what it prints is never shown, because it holds the password.

Sources: docker/cli `cli/config/configfile` (`credHelpers` before `credsStore`), docker/docker-credential-helpers
`client/client.go` and `credentials/error.go`.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from autowasm.errors import SourceDenied, SpecError, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import DOCKER_HUB, ImageReference
from autowasm.registry.credentials import (
    Credential,
    from_docker_config,
    is_text,
    normalize_host,
)

_HUB_SERVER: Final = "https://index.docker.io/v1/"
"""What docker calls the Hub when it speaks to a helper."""
_NOT_FOUND: Final = "credentials not found in native keychain"
_TOKEN_USER: Final = "<token>"  # noqa: S105 - a user name
_HELPER_REASON: Final = "CredentialHelper"
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9._-]+\Z")

_log = structlog.get_logger(__name__)


def config_path(environment: Mapping[str, str]) -> Path:
    """`$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`."""
    folder = environment.get("DOCKER_CONFIG")
    if folder:
        return Path(folder) / "config.json"
    home = environment.get("HOME")
    return (Path(home) if home else Path.home()) / ".docker" / "config.json"


async def find_login(
    reference: ImageReference, *, environment: Mapping[str, str], limits: Limits, pools: Pools
) -> Credential | None:
    """The login for the image's registry, None if there is none (then access is anonymous).

    A helper of this host (`credHelpers`) wins over the general store (`credsStore`), and both over `auths`. A store that
    does not work is reported and passed over: public images need no login. Raises UsageError if the file is malformed,
    SourceDenied if this host's own helper fails (`CredentialHelper`).
    """
    path = config_path(environment)
    config = await pools.disk.run(_read, path, limits=limits)
    host = normalize_host(reference.host)
    server = _HUB_SERVER if host == DOCKER_HUB else reference.host
    helper = _helper_of(config, host)
    store = config.get("credsStore")
    credential = None
    if helper is not None:
        credential = await _ask(helper, server, limits=limits, environment=environment)
    elif isinstance(store, str) and store:
        try:
            credential = await _ask(store, server, limits=limits, environment=environment)
        except SourceDenied as error:
            if error.reason != _HELPER_REASON:
                raise
            _log.warning("docker's credential store not used", error=str(error))
    return credential or _inline(config, reference, path=path)


def _read(path: Path, *, limits: Limits) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(limits.token_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > limits.token_bytes:
        raise UsageError(f"{path}: too large for a docker config")
    try:
        config = json.loads(data or b"{}")
    except (ValueError, RecursionError):  # from None: it would carry the document
        raise UsageError(f"{path}: not JSON") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path}: not a JSON object")
    return config


def _helper_of(config: Mapping[str, Any], host: str) -> str | None:
    helpers = config.get("credHelpers")
    if not isinstance(helpers, dict):
        return None
    for name, helper in helpers.items():
        if _host_of(name) == host and isinstance(helper, str) and helper:
            return helper
    return None


def _host_of(key: str) -> str:
    return normalize_host(key.partition("://")[2].partition("/")[0] or key.partition("/")[0])


async def _ask(
    helper: str, server: str, *, limits: Limits, environment: Mapping[str, str]
) -> Credential | None:
    """Run `docker-credential-HELPER get`; None if it knows no login for `server`."""
    program = f"docker-credential-{helper}"
    if not _HELPER_NAME.match(helper):
        raise _helper_failed(f"not the name of a credential helper: {helper!r}")
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(environment),
        )
    except OSError as error:
        raise _helper_failed(f"{program} cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(limits.credential_helper_timeout):
            output, _ = await process.communicate(server.encode())
    except TimeoutError as error:
        raise _helper_failed(
            f"{program} gave no answer within {limits.credential_helper_timeout:g} s"
        ) from error
    finally:
        if process.returncode is None:
            # Kills it, and closes the pipes: `wait` waits for those too, and its own children may hold them.
            process._transport.close()  # type: ignore[attr-defined]  # asyncio has no public form
            await process.wait()
    text = output.decode(errors="replace").strip()
    if process.returncode:
        if text == _NOT_FOUND:
            return None
        raise _helper_failed(
            f"{program} has no login for {server}: it ended with status {process.returncode}; "
            f"to see why: echo {server} | {program} get"
        )
    return _parse_answer(text, program=program)


def _parse_answer(text: str, *, program: str) -> Credential | None:
    try:
        answer = json.loads(text)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError):  # from None: it would carry the password
        raise _helper_failed(f"{program} gave an answer that is not understood") from None
    if not (isinstance(username, str) and isinstance(secret, str) and is_text(username + secret)):
        raise _helper_failed(f"{program} gave an answer that is not understood")
    if username == _TOKEN_USER:
        return Credential("", "", identity_token=secret)
    return Credential(username, secret) if username else None


def _inline(
    config: Mapping[str, Any], reference: ImageReference, *, path: Path
) -> Credential | None:
    try:
        return from_docker_config(
            {"auths": config.get("auths")}, host=reference.host, repository=reference.repository
        )
    except SpecError as error:
        raise UsageError(f"{path}: {error.problem}") from error


def _helper_failed(problem: str) -> SourceDenied:
    return SourceDenied(problem, reason=_HELPER_REASON)
