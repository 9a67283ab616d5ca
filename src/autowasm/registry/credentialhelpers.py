"""Credential helpers: programs named `docker-credential-NAME` that keep a person's logins. For `wasmc` only.

Not for the server, which runs no programs that a file names. Invariants: a helper ends within
`limits.credential_helper_timeout`; the output of a helper is never shown, because it holds the password.

Sources: docker/docker-credential-helpers `client/client.go` and `credentials/error.go` (the `get` protocol).
"""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Final

from autowasm.errors import SourceDenied
from autowasm.limits import Limits
from autowasm.registry.credentials import Credential, is_text

HELPER_REASON: Final = "CredentialHelper"
"""Reason of every error in this module."""

_NOT_FOUND: Final = "credentials not found in native keychain"
_TOKEN_USER: Final = "<token>"  # noqa: S105 - a user name
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9._-]+\Z")


async def ask_helper(
    helper: str, server: str, *, limits: Limits, environment: Mapping[str, str]
) -> Credential | None:
    """Run `docker-credential-HELPER get`; None if it knows no login for `server`. Raises SourceDenied."""
    program = f"docker-credential-{helper}"
    if not _HELPER_NAME.match(helper):
        raise _failed(f"not the name of a credential helper: {helper[:100]!r}")
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
        raise _failed(f"{program} cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(limits.credential_helper_timeout):
            output, _ = await process.communicate(server.encode())
    except TimeoutError as error:
        raise _failed(
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
        raise _failed(
            f"{program} has no login for {server}: it ended with status {process.returncode}; "
            f"to see why: echo {server} | {program} get"
        )
    return _parse_answer(text, program=program)


def _parse_answer(text: str, *, program: str) -> Credential | None:
    try:
        answer = json.loads(text)
        username, secret = answer["Username"], answer["Secret"]
    except (
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):  # from None: it would carry the password
        raise _failed(f"{program} gave an answer that is not understood") from None
    if not (isinstance(username, str) and isinstance(secret, str) and is_text(username + secret)):
        raise _failed(f"{program} gave an answer that is not understood")
    if username == _TOKEN_USER:
        return Credential("", "", identity_token=secret)
    return Credential(username, secret) if username else None


def _failed(problem: str) -> SourceDenied:
    return SourceDenied(problem, reason=HELPER_REASON)
