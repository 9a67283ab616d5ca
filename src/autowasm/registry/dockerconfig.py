"""Finds, keeps and removes the logins of a person or a CI job in the files and variables of Docker, podman, buildah and skopeo.

For `wasmc` only. Not for the server, which reads Secrets (see `credentials.py`) and runs no programs named in a file.
Invariants of a search: the order depends on the environment and the user's home only, so a message can name every searched
place; the search ends at the first login; a credential helper (`docker-credential-NAME`) ends within
`limits.credential_helper_timeout`; neither a password nor a helper's output, which holds it, is in a message.

LoginStore keeps and removes logins where docker does, so that docker, crane, oras and wasmc find them. Invariants: the file is
`$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`; a credential helper for the host (`credHelpers`), else the store
(`credsStore`), gets the login, and the file holds it only if neither is configured; everything else in the file is kept; the file is replaced
as a whole, readable by its owner only; no message has the password.

Sources: docker/cli `cli/config/config.go` ($DOCKER_CONFIG) and `cli/config/configfile/file.go` ($DOCKER_AUTH_CONFIG before
files, docker/cli#6008; `credHelpers` before `credsStore` before `auths`; mode 0600, links are followed),
`cli/config/credentials/native_store.go` (an empty entry in `auths` beside a store); containers-auth.json(5) (the same fields,
keys with a path below the host); containers/common `pkg/auth` ($REGISTRY_AUTH_FILE replaces
${XDG_RUNTIME_DIR}/containers/auth.json); docker/cli#6156 (GitLab CI); docker/docker-credential-helpers `client/client.go`,
`credentials/error.go` (the `get` protocol), `credentials/credentials.go` (`store`, `erase`).
"""

import asyncio
import base64
import json
import os
import pwd
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from autowasm.errors import SourceDenied, SpecError, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reasons import Reason
from autowasm.reference import DOCKER_HUB, ImageReference
from autowasm.registry.credentials import (
    Credential,
    from_docker_config,
    from_dockercfg,
    is_text,
    normalize_host,
)

AUTH_VARIABLE: Final = "DOCKER_AUTH_CONFIG"
"""A variable that holds a document, not the name of a file."""
_INDENT: Final = "\t"
"""As docker writes the file."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file, or a variable that holds a document (`path` None)."""

    name: str
    """For messages."""
    path: Path | None = None
    named: bool = False
    """The user named this file: if it cannot be opened, the command fails."""
    strict: bool = False
    """The user named this place, or it is Docker's own: a malformed document fails the command."""
    is_dockercfg: bool = False
    """The document has the older form: the contents of `auths` at its top level."""


def login_places(environment: Mapping[str, str]) -> tuple[Place, ...]:
    """The places in search order; the first one with a login for the registry wins."""
    home = home_of(environment)
    places = (
        [Place(f"${AUTH_VARIABLE}", named=True, strict=True)]
        if environment.get(AUTH_VARIABLE)
        else []
    )
    if places and environment.get("GITLAB_CI"):
        # The runner sets the variable for its own pulls: the job's `docker login` comes first.
        return (*_files(environment, home), *places)
    return (*places, *_files(environment, home))


def home_of(environment: Mapping[str, str]) -> Path | None:
    """$HOME, else the user's entry in passwd; None for a user without either (an arbitrary uid in a container)."""
    if environment.get("HOME"):
        return Path(environment["HOME"])
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def _files(environment: Mapping[str, str], home: Path | None) -> list[Place]:
    docker = environment.get("DOCKER_CONFIG")
    override = environment.get("REGISTRY_AUTH_FILE")
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}"
    config = environment.get("XDG_CONFIG_HOME") or (home and home / ".config")
    # containers-auth.json(5): below /run/containers/$UID the file has no further folder.
    podman = Path(runtime) / "containers" if environment.get("XDG_RUNTIME_DIR") else Path(runtime)
    places = []
    if docker:
        places.append(_file(Path(docker) / "config.json", named=True))
    if override:
        places.append(_file(Path(override), named=True))
    else:
        places.append(_file(podman / "auth.json"))
    if config:
        places.append(_file(Path(config) / "containers" / "auth.json"))
    if home is not None:
        if not docker:
            places.append(_file(home / ".docker" / "config.json", strict=True))
        places.append(_file(home / ".dockercfg", is_dockercfg=True))
    return places


def _file(
    path: Path, *, named: bool = False, strict: bool = False, is_dockercfg: bool = False
) -> Place:
    return Place(str(path), path, named=named, strict=strict or named, is_dockercfg=is_dockercfg)


_NOT_FOUND: Final = "credentials not found in native keychain"
_TOKEN_USER: Final = "<token>"  # noqa: S105 - a user name
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9._-]+\Z")


async def ask_helper(
    helper: str, server: str, *, limits: Limits, environment: Mapping[str, str]
) -> Credential | None:
    """Run `docker-credential-HELPER get`; None if it has no login for `server`. Raises SourceDenied."""
    program = f"docker-credential-{helper}"
    status, text = await _run_helper(helper, "get", server, limits=limits, environment=environment)
    if status:
        if text == _NOT_FOUND:
            return None
        raise _failed(
            f"{program} has no login for {server}: exit status {status}; "
            f"to see why: echo {server} | {program} get"
        )
    return _parse_answer(text, program=program)


async def run_helper(
    helper: str,
    action: str,
    text: str,
    *,
    limits: Limits,
    environment: Mapping[str, str],
    absent_is_fine: bool = False,
) -> bool:
    """Run `docker-credential-HELPER store` or `erase`. False if there is no such login, which `absent_is_fine` allows.

    Raises SourceDenied; the output is not shown, because it may hold the password.
    """
    status, output = await _run_helper(helper, action, text, limits=limits, environment=environment)
    if status and not (absent_is_fine and output == _NOT_FOUND):
        raise _failed(f"docker-credential-{helper} {action} failed: exit status {status}")
    return not status


async def _run_helper(
    helper: str, action: str, text: str, *, limits: Limits, environment: Mapping[str, str]
) -> tuple[int, str]:
    program = f"docker-credential-{helper}"
    if not _HELPER_NAME.match(helper):
        raise _failed(f"not the name of a credential helper: {helper[:100]!r}")
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            action,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(environment),
        )
    except OSError as error:
        raise _failed(f"{program} cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(limits.credential_helper_timeout):
            output, _ = await process.communicate(text.encode(errors="surrogateescape"))
    except TimeoutError as error:
        raise _failed(
            f"{program} did not answer within {limits.credential_helper_timeout:g} s"
        ) from error
    finally:
        if process.returncode is None:
            # Kills it and closes the pipes: `wait` also waits for the pipes, which the helper's children may hold.
            process._transport.close()  # type: ignore[attr-defined]  # asyncio has no public form
            await process.wait()
    return process.returncode or 0, output.decode(errors="replace").strip()


def _parse_answer(text: str, *, program: str) -> Credential | None:
    try:
        answer = json.loads(text)
        username, secret = answer["Username"], answer["Secret"]
    except (
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):  # from None: the exception holds the password
        raise _failed(f"{program} returned output that is not a credential") from None
    if not (isinstance(username, str) and isinstance(secret, str) and is_text(username + secret)):
        raise _failed(f"{program} returned output that is not a credential")
    if username == _TOKEN_USER:
        return Credential("", "", identity_token=secret)
    return Credential(username, secret) if username else None


def _failed(problem: str) -> SourceDenied:
    return SourceDenied(problem, reason=Reason.CREDENTIAL_HELPER)


HUB_SERVER: Final = "https://index.docker.io/v1/"
"""The name of Docker Hub in a request to a helper."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FoundLogin:
    """The login for one registry, or None; and the places without one."""

    credential: Credential | None
    searched: tuple[str, ...] = ()
    """Every place without a login, with the reason: `/home/me/.docker/config.json (absent)`."""


async def find_login(
    reference: ImageReference, *, environment: Mapping[str, str], limits: Limits, pools: Pools
) -> FoundLogin:
    """The login for the image's repository. Without one access is anonymous.

    In each document a helper of this host (`credHelpers`) wins over the general store (`credsStore`), and both over `auths`.
    If the store fails, a warning is logged and `auths` is used, because public images need no login. A file that cannot be
    used is skipped with a warning, unless `Place.named` or `Place.strict` forbids it: then UsageError is raised. Raises
    SourceDenied (`CredentialHelper`) if this host's own helper fails.
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
        searched.append(f"{place.name} (no login for this registry)")
    if home_of(environment) is None:
        searched.append("no home directory: HOME is not set")
    return FoundLogin(None, tuple(searched))


async def _document(
    place: Place, environment: Mapping[str, str], *, limits: Limits, pools: Pools
) -> tuple[Mapping[str, Any] | None, str]:
    """The document at `place`, or None and the reason. Raises UsageError."""
    try:
        if place.path is None:
            data = environment[AUTH_VARIABLE].encode(errors="surrogateescape")
        else:
            data = await pools.disk.run(_read, place.path, limits.token_bytes + 1)
        return parse_config(data, limits=limits), ""
    except (FileNotFoundError, NotADirectoryError):
        return None, "absent"
    except OSError as error:
        problem, ends = f"cannot be read: {error.strerror}", place.named
    except UsageError as error:
        problem, ends = str(error), place.strict
    if ends:
        raise UsageError(f"{place.name}: {problem}")
    _log.warning("login file skipped", file=place.name, error=problem)
    return None, problem


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)


def parse_config(data: bytes, *, limits: Limits) -> Mapping[str, Any]:
    """The document of a docker config. Raises UsageError, without the content."""
    if len(data) > limits.token_bytes:
        raise UsageError("too large for a docker config")
    try:
        config = json.loads(data.strip() or b"{}")
    except (ValueError, RecursionError):  # from None: the exception holds the document
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
    server = HUB_SERVER if host == DOCKER_HUB else reference.host
    helper, store = helper_of(config, host), config.get("credsStore")
    credential = None
    if helper is not None:
        credential = await ask_helper(helper, server, limits=limits, environment=environment)
    elif isinstance(store, str) and store:
        try:
            credential = await ask_helper(store, server, limits=limits, environment=environment)
        except SourceDenied as error:
            if error.reason != Reason.CREDENTIAL_HELPER:
                raise
            _log.warning("docker's credential store skipped", error=str(error))
    return credential or _inline({"auths": config.get("auths")}, place, reference)


def helper_of(config: Mapping[str, Any], host: str) -> str | None:
    """The credential helper that `credHelpers` names for a normalized host."""
    helpers = config.get("credHelpers")
    if not isinstance(helpers, dict):
        return None
    for name, helper in helpers.items():
        if host_of(name) == host and isinstance(helper, str) and helper:
            return helper
    return None


def host_of(key: str) -> str:
    """The normalized host of a key in a docker config."""
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
        _log.warning("login file skipped", file=place.name, error=error.problem)
        return None


class LoginStore:
    """The logins of docker's configuration."""

    def __init__(self, environment: Mapping[str, str], *, limits: Limits, pools: Pools) -> None:
        """Raises UsageError if there is no place for a configuration."""
        self._environment = environment
        self._limits = limits
        self._pools = pools
        self.path = _config_path(environment)

    async def keep(self, host: str, credential: Credential) -> str:
        """Keep the login. Returns the place, for a message. Raises UsageError, SourceDenied (`CredentialHelper`), OSError."""
        config = await self._pools.disk.run(self._read)
        server, helper = server_of(host), _keeper(config, host)
        auths = config.setdefault("auths", {})
        for name in _names(auths, host):
            del auths[name]
        if helper is None:
            pair = f"{credential.username}:{credential.password}".encode(errors="surrogateescape")
            auths[server] = {"auth": base64.b64encode(pair).decode()}
            place = str(self.path)
        else:
            login = {
                "ServerURL": server,
                "Username": credential.username,
                "Secret": credential.password,
            }
            await self._ask(helper, "store", json.dumps(login))
            auths[server] = {}
            place = f"docker-credential-{helper}"
        await self._pools.disk.run(self._write, config)
        return place

    async def remove(self, host: str) -> bool:
        """Remove the login from the helper and the file. False if there is none. Raises as `keep`."""
        config = await self._pools.disk.run(self._read)
        helper, auths = _keeper(config, host), config.get("auths") or {}
        found = False
        if helper is not None:
            found = await self._ask(helper, "erase", server_of(host), absent_is_fine=True)
        names = _names(auths, host)
        for name in names:
            del auths[name]
        if names:
            await self._pools.disk.run(self._write, config)
        return found or bool(names)

    async def _ask(
        self, helper: str, action: str, text: str, *, absent_is_fine: bool = False
    ) -> bool:
        return await run_helper(
            helper,
            action,
            text,
            limits=self._limits,
            environment=self._environment,
            absent_is_fine=absent_is_fine,
        )

    def _read(self) -> dict[str, Any]:
        try:
            with self.path.open("rb") as file:
                data = file.read(self._limits.token_bytes + 1)
        except FileNotFoundError:
            return {}
        try:
            config = dict(parse_config(data, limits=self._limits))
        except UsageError as error:
            raise UsageError(f"{self.path}: {error}") from error
        if config.get("auths") is None:
            config.pop("auths", None)
        if not isinstance(config.get("auths", {}), dict):
            raise UsageError(f"{self.path}: auths is not a JSON object")
        return config

    def _write(self, config: Mapping[str, Any]) -> None:
        """Replace the file. A link to it, as dotfile managers make, is followed and kept."""
        target = Path(os.path.realpath(self.path))
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(prefix=".config-", dir=target.parent)  # mode 0600
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(config, file, indent=_INDENT)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def server_of(host: str) -> str:
    """The name of a registry in docker's configuration and in requests to helpers."""
    return HUB_SERVER if normalize_host(host) == DOCKER_HUB else host


def _keeper(config: Mapping[str, Any], host: str) -> str | None:
    store = config.get("credsStore")
    own = helper_of(config, normalize_host(host))
    return own or (store if isinstance(store, str) and store else None)


def _names(auths: Mapping[str, Any], host: str) -> list[str]:
    """The entries of the host, under any of its names; those with a path below it are other logins."""
    wanted = normalize_host(host)
    return [name for name in auths if host_of(name) == wanted and _is_whole_host(name)]


def _is_whole_host(name: str) -> bool:
    path = (name.partition("://")[2] or name).partition("/")[2].strip("/")
    return path in {"", "v1", "v2"}


def _config_path(environment: Mapping[str, str]) -> Path:
    if environment.get("DOCKER_CONFIG"):
        return Path(environment["DOCKER_CONFIG"]) / "config.json"
    home = home_of(environment)
    if home is None:
        raise UsageError("no home directory: HOME is not set; set DOCKER_CONFIG to a folder")
    return home / ".docker" / "config.json"
