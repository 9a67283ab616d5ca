"""The login of a person or a CI job for one registry, from Docker's and podman's files. For `wasmc` only.

Not for the server (`credentials.py` reads Secrets). Invariants: places are searched in the order of `loginplaces.py` and the
search ends at the first login; a password is in no message.

Sources: docker/cli `cli/config/configfile/file.go` (`credHelpers` before `credsStore` before `auths`); containers-auth.json(5)
(the same fields, keys with a path below the host).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from autowasm.errors import SourceDenied, SpecError, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import DOCKER_HUB, ImageReference
from autowasm.registry.credentialhelpers import HELPER_REASON, ask_helper
from autowasm.registry.credentials import (
    Credential,
    from_docker_config,
    from_dockercfg,
    normalize_host,
)
from autowasm.registry.loginplaces import AUTH_VARIABLE, Place, home_of, login_places

_HUB_SERVER: Final = "https://index.docker.io/v1/"
"""The name of Docker Hub in a question to a helper."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FoundLogin:
    """The login for one registry, or the places where it is not."""

    credential: Credential | None
    searched: tuple[str, ...] = ()
    """Every place without a login, with the reason: `/home/me/.docker/config.json (absent)`."""


async def find_login(
    reference: ImageReference, *, environment: Mapping[str, str], limits: Limits, pools: Pools
) -> FoundLogin:
    """The login for the image's repository. Without one access is anonymous.

    In each document a helper of this host (`credHelpers`) wins over the general store (`credsStore`), and both over `auths`.
    A store that does not work is reported and passed over, because public images need no login; so is a file that cannot be
    read, as `Place` has it. Raises UsageError for the files that are not passed over, SourceDenied if this host's own
    helper fails (`CredentialHelper`).
    """
    searched = []
    for place in login_places(environment):
        document, problem = await _document(place, environment, limits=limits, pools=pools)
        if document is None:
            searched.append(f"{place.name} ({problem})")
            continue
        credential = await _login(
            document, place, reference, environment=environment, limits=limits
        )
        if credential is not None:
            return FoundLogin(credential, tuple(searched))
        searched.append(f"{place.name} (has none for it)")
    if home_of(environment) is None:
        searched.append("no home directory: HOME is not set")
    return FoundLogin(None, tuple(searched))


async def _document(
    place: Place, environment: Mapping[str, str], *, limits: Limits, pools: Pools
) -> tuple[Mapping[str, Any] | None, str]:
    """The document at `place`, or None and why there is none. Raises UsageError."""
    try:
        if place.path is None:
            data = environment[AUTH_VARIABLE].encode(errors="surrogateescape")
        else:
            data = await pools.disk.run(_read, place.path, limits.token_bytes + 1)
        return _parse(data, limits=limits), ""
    except (FileNotFoundError, NotADirectoryError):
        return None, "absent"
    except OSError as error:
        problem, ends = f"cannot be read: {error.strerror}", place.named
    except UsageError as error:
        problem, ends = str(error), place.strict
    if ends:
        raise UsageError(f"{place.name}: {problem}")
    _log.warning("file of logins not used", file=place.name, error=problem)
    return None, problem


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)


def _parse(data: bytes, *, limits: Limits) -> Mapping[str, Any]:
    if len(data) > limits.token_bytes:
        raise UsageError("too large for a docker config")
    try:
        config = json.loads(data.strip() or b"{}")
    except (ValueError, RecursionError):  # from None: it would carry the document
        raise UsageError("not JSON") from None
    if not isinstance(config, dict):
        raise UsageError("not a JSON object")
    return config


async def _login(
    config: Mapping[str, Any],
    place: Place,
    reference: ImageReference,
    *,
    environment: Mapping[str, str],
    limits: Limits,
) -> Credential | None:
    if place.is_dockercfg:
        return _inline(config, place, reference)
    host = normalize_host(reference.host)
    server = _HUB_SERVER if host == DOCKER_HUB else reference.host
    helper, store = _helper_of(config, host), config.get("credsStore")
    credential = None
    if helper is not None:
        credential = await ask_helper(helper, server, limits=limits, environment=environment)
    elif isinstance(store, str) and store:
        try:
            credential = await ask_helper(store, server, limits=limits, environment=environment)
        except SourceDenied as error:
            if error.reason != HELPER_REASON:
                raise
            _log.warning("docker's credential store not used", error=str(error))
    return credential or _inline({"auths": config.get("auths")}, place, reference)


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


def _inline(
    entries: Mapping[str, Any], place: Place, reference: ImageReference
) -> Credential | None:
    find = from_dockercfg if place.is_dockercfg else from_docker_config
    try:
        return find(entries, host=reference.host, repository=reference.repository)
    except SpecError as error:
        if place.strict:
            raise UsageError(f"{place.name}: {error.problem}") from error
        _log.warning("file of logins not used", file=place.name, error=error.problem)
        return None
