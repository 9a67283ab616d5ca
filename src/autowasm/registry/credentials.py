"""Credential, and finding the right one in a docker config document (`kubernetes.io/dockerconfigjson`).

Not a reader of files or Secrets, and no credential helpers: those run on a person's machine (`dockerconfig.py`).
Invariants: a password never reaches a repr, a message or a log; an entry for another host never matches, and a malformed
entry of another host harms nobody.

Sources: docker/cli `cli/config` (`auths`, the key of Docker Hub), Kubernetes `pkg/credentialprovider` (paths below a
host, the longest wins; `/v1/` and `/v2/` are not paths).
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from autowasm.errors import SpecError
from autowasm.reference import DOCKER_HUB

ANONYMOUS_FINGERPRINT: Final = "anonymous"
"""Stands for "no credential" wherever a fingerprint is a key."""

_FIELD = "spec.secret"

_HUB_NAMES: Final = frozenset(
    {DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
)

_NOT_A_REPOSITORY: Final = frozenset({"v1", "v2"})
"""`https://host/v1/`, `https://host/v2/`: the API's own path, as `docker login` has written it."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and a password or token for one registry."""

    username: str
    password: str = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell credentials apart in keys and logs, and say nothing else."""
        digest = hashlib.sha256()
        for part in (self.username, self.password):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Key:
    """One spelling of `auths`, taken apart."""

    host: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "_Key":
        rest = text.strip()
        scheme, separator, after = rest.partition("://")
        if separator:
            rest = after
        host, _, path = rest.partition("/")
        path = path.strip("/")
        first, _, below = path.partition("/")
        if first in _NOT_A_REPOSITORY:
            path = below
        return cls(normalize_host(host, scheme=scheme.lower() if separator else "https"), path)

    def covers(self, repository: str) -> bool:
        return not self.path or f"{repository}/".startswith(f"{self.path}/")


def normalize_host(host: str, *, scheme: str = "https") -> str:
    """Lower case, without the default port of https; every name of Docker Hub becomes `docker.io`."""
    host = host.lower().removesuffix(":443" if scheme == "https" else ":80")
    return DOCKER_HUB if host in _HUB_NAMES else host


def fingerprint_of(credential: Credential | None) -> str:
    """The credential's fingerprint, or ANONYMOUS_FINGERPRINT."""
    return credential.fingerprint if credential else ANONYMOUS_FINGERPRINT


def from_docker_config(
    document: bytes | str | Mapping[str, Any], *, host: str, repository: str
) -> Credential | None:
    """The login for `host/repository` in `{"auths": {…}}`, or None if there is none.

    The longest path wins, then the order of the document. Entries without a login (what `docker login` leaves when a
    credential store is in use) are passed over. Raises SpecError (`spec.secret`) if the document or the entry that
    matches is malformed.
    """
    wanted = normalize_host(host)
    matches = []
    for text, entry in _auths(document).items():
        key = _Key.parse(text)
        if key.host == wanted and key.covers(repository):
            matches.append((len(key.path), text, entry))
    matches.sort(key=lambda match: -match[0])  # stable: the document's order among equals
    for _, text, entry in matches:
        credential = _login(entry, name=text)
        if credential is not None:
            return credential
    return None


def _auths(document: bytes | str | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        try:
            document = json.loads(document)
        except (ValueError, RecursionError) as error:
            # Not `from error`: a JSONDecodeError carries the whole document.
            raise SpecError(
                _FIELD, f"not a docker config: not JSON ({type(error).__name__})"
            ) from None
    if not isinstance(document, Mapping):
        raise SpecError(_FIELD, "not a docker config: not a JSON object")
    auths = document.get("auths")
    if auths is None:
        return {}
    if not isinstance(auths, Mapping):
        raise SpecError(_FIELD, "not a docker config: `auths` is not an object")
    return auths


def _login(entry: object, *, name: str) -> Credential | None:
    """As the kubelet has it: `auth` wins over `username` and `password`."""
    if not isinstance(entry, Mapping):
        raise SpecError(_FIELD, f"auths[{name!r}] is not an object")
    values = {key: entry.get(key) or "" for key in ("auth", "username", "password")}
    if not all(isinstance(value, str) for value in values.values()):
        raise SpecError(
            _FIELD, f"auths[{name!r}]: `auth`, `username` and `password` must be strings"
        )
    if values["auth"].strip():
        return _decode_auth(values["auth"].strip(), name=name)
    if not values["username"]:
        return None
    if ":" in values["username"]:
        raise SpecError(_FIELD, f"auths[{name!r}]: a user name cannot contain a colon")
    return Credential(values["username"], values["password"])


def _decode_auth(text: str, *, name: str) -> Credential:
    try:
        padded = text + "=" * (-len(text) % 4)
        decoded = base64.b64decode(padded, validate=True).decode()
    except (binascii.Error, ValueError):  # from None: it would carry the password
        raise SpecError(_FIELD, f"auths[{name!r}]: `auth` is not base64 of user:password") from None
    username, colon, password = decoded.partition(":")
    if not colon or not username:
        raise SpecError(_FIELD, f"auths[{name!r}]: `auth` is not base64 of user:password")
    return Credential(username, password.strip("\x00"))  # docker pads with them
