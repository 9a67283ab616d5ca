"""Keeps and removes logins where docker does, so that docker, crane, oras and wasmc find them.

`dockerconfig.py` finds them. Invariants: the file is `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`; a credential helper for the host
(`credHelpers`), else the store (`credsStore`), gets the login, and the file holds it only without both; everything else in
the file is kept; the file is replaced as a whole, readable by its owner only; no message has the password.

Sources: docker/cli `cli/config/configfile/file.go` (order, mode 0600, links are followed), `cli/config/credentials/native_store.go` (an
empty entry in `auths` beside a store); docker/docker-credential-helpers `credentials/credentials.go` (`store`, `erase`).
"""

import base64
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from autowasm.errors import UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import DOCKER_HUB
from autowasm.registry.credentials import Credential, normalize_host
from autowasm.registry.dockerconfig import (
    HUB_SERVER,
    helper_of,
    home_of,
    host_of,
    parse_config,
    run_helper,
)

_INDENT: Final = "\t"
"""As docker writes the file."""


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
