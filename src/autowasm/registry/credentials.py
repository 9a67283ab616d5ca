"""Credential, and its lookup in a docker config document (`kubernetes.io/dockerconfigjson`, `dockercfg`).

Files and credential helpers of a person's machine are in `dockerconfig.py`. Invariants: a password never reaches a repr, a
message or a log; an entry for another host never matches, and a malformed entry of another host has no effect.

Sources: docker/cli `cli/config` (`auths`, the key of Docker Hub, `identitytoken`, `registrytoken`), Kubernetes
`pkg/credentialprovider` (paths below a host, the longest wins; `/v1/` and `/v2/` are not paths; `*` for one label of a
host name, as in `*.example.com`).
"""

import base64
import binascii
import fnmatch
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, quote_plus

from autowasm.errors import SpecError
from autowasm.limits import Limits
from autowasm.reference import DOCKER_HUB

ANONYMOUS_FINGERPRINT: Final = "anonymous"
"""The key for "no credential" where fingerprints are keys."""

_FIELD = "spec.secret"
_MAX_PARTS: Final = Limits().docker_config_parts

_HUB_NAMES: Final = frozenset(
    {DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
)

_NOT_A_REPOSITORY: Final = frozenset({"v1", "v2"})
"""`https://host/v1/`, `https://host/v2/`: the path of the API, which `docker login` writes."""


@dataclass(frozen=True, slots=True)
class Credential:
    """The login for one registry: a user name and a password, or a token of one of two kinds."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)
    """OAuth2 refresh token: sent to the token endpoint instead of a password."""
    registry_token: str = field(default="", repr=False)
    """Bearer token: sent unchanged, to the registry only."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that distinguish credentials in keys and logs, and reveal nothing else."""
        digest = hashlib.sha256()
        for part in (self.username, self.password, self.identity_token, self.registry_token):
            data = part.encode(errors="surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.hexdigest()[:16]

    @property
    def shown(self) -> str:
        """The user name, or "the token", for messages."""
        if self.registry_token or self.identity_token:
            return "the token"
        return f"user {self.username!r}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets to remove from messages, because a server may echo them: as text, in a Basic header, a URL and a form."""
        pair = f"{self.username}:{self.password}".encode(errors="surrogateescape")
        encoded = base64.b64encode(pair).decode() if self.password else ""
        parts = (self.password, self.identity_token, self.registry_token)
        forms = (form for part in parts for form in _in_urls(part))
        return tuple(dict.fromkeys(part for part in (encoded, *parts, *forms) if part))


def _in_urls(text: str) -> tuple[str, str, str]:
    """The text as encoded in a path, in a query and in a form."""
    data = text.encode(errors="surrogateescape")
    return quote(data), quote(data, safe=""), quote_plus(data)


@dataclass(frozen=True, slots=True)
class _Key:
    """A parsed key of `auths`."""

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

    def covers(self, host: str, repository: str) -> bool:
        if not _same_host(self.host, host):
            return False
        return not self.path or f"{repository}/".startswith(f"{self.path}/")


def _same_host(pattern: str, host: str) -> bool:
    """Whether `pattern` matches `host`; `*` in a label of the pattern matches any part of that label, never a dot."""
    if "*" not in pattern:
        return pattern == host
    wanted, labels = pattern.split("."), host.split(".")
    return len(wanted) == len(labels) and all(map(fnmatch.fnmatchcase, labels, wanted))


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

    The longest path wins, then the order of the document. Entries without a login (`docker login` writes them when it uses
    a credential store) are skipped. Raises SpecError (`spec.secret`) if the document or the matching entry is malformed.
    """
    return _from_entries(_auths(_object(document)), host=host, repository=repository)


def from_dockercfg(
    document: bytes | str | Mapping[str, Any], *, host: str, repository: str
) -> Credential | None:
    """The same for the older form of the file: the contents of `auths` at its top level."""
    return _from_entries(_object(document), host=host, repository=repository)


def from_basic_auth(
    username: bytes, password: bytes, *, registry: str, host: str, repository: str
) -> Credential | None:
    """The login of a `kubernetes.io/basic-auth` Secret for `registry`, which has the form of a key of `auths`.

    None if `registry` does not cover `host/repository`. Raises SpecError.
    """
    if not _Key.parse(registry).covers(normalize_host(host), repository):
        return None
    try:
        credential = Credential(username.decode(), password.decode())
    except UnicodeDecodeError:  # from None: the exception holds the bytes
        raise SpecError(_FIELD, "`username` and `password` must be UTF-8") from None
    if not credential.username or ":" in credential.username:
        raise SpecError(_FIELD, "`username` is empty or has a colon in it")
    return credential


def _from_entries(entries: Mapping[str, Any], *, host: str, repository: str) -> Credential | None:
    wanted = normalize_host(host)
    matches = []
    for text, entry in entries.items():
        key = _Key.parse(text)
        if key.covers(wanted, repository):
            matches.append((len(key.path), text, entry))
    matches.sort(key=lambda match: -match[0])  # stable: equal ones keep the document's order
    for _, text, entry in matches:
        credential = _login(entry, name=text)
        if credential is not None:
            return credential
    return None


def _object(document: bytes | str | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        parts = sum(document.count(sign) for sign in _signs(document))
        if parts > _MAX_PARTS:
            raise SpecError(
                _FIELD,
                f"not a docker config, or too large: {parts} values; at most {_MAX_PARTS} are accepted: remove the registries that the "
                "image does not come from",
            )
        try:
            document = json.loads(document)
        except (ValueError, RecursionError) as error:
            # Not `from error`: a JSONDecodeError holds the whole document.
            raise SpecError(
                _FIELD, f"not a docker config: not JSON ({type(error).__name__})"
            ) from None
    if not isinstance(document, Mapping):
        raise SpecError(_FIELD, "not a docker config: not a JSON object")
    return document


def _signs(document: bytes | str) -> tuple[Any, ...]:
    """The JSON separators, of which there is one for each value."""
    return (",", "{", "[") if isinstance(document, str) else (b",", b"{", b"[")


def _auths(document: Mapping[str, Any]) -> Mapping[str, Any]:
    auths = document.get("auths")
    if auths is None:
        return {}
    if not isinstance(auths, Mapping):
        raise SpecError(_FIELD, "not a docker config: `auths` is not an object")
    return auths


_TEXTS: Final = ("auth", "username", "password", "identitytoken", "registrytoken")


def _login(entry: object, *, name: str) -> Credential | None:
    """As in the kubelet, `auth` wins over `username` and `password`; tokens are read as well."""
    if entry is None:
        return None  # Go decodes it as an entry without a login
    if not isinstance(entry, Mapping):
        raise SpecError(_FIELD, f"auths[{name!r}] is not an object")
    values = {key: entry.get(key) or "" for key in _TEXTS}
    if not all(isinstance(value, str) for value in values.values()):
        raise SpecError(_FIELD, f"auths[{name!r}]: `auth`, `username` and tokens must be strings")
    username, password = values["username"], values["password"]
    identity, registry = values["identitytoken"].strip(), values["registrytoken"].strip()
    if not all(token.isascii() and token.isprintable() for token in (identity, registry)):
        raise SpecError(_FIELD, f"auths[{name!r}]: a token must be printable ASCII")
    if values["auth"].strip():
        username, password = _decode_auth(values["auth"].strip(), name=name)
    elif ":" in username:
        raise SpecError(_FIELD, f"auths[{name!r}]: a user name cannot contain a colon")
    if not is_text(username + password):
        raise SpecError(_FIELD, f"auths[{name!r}]: `username` and `password` must be valid Unicode")
    if not (username or identity or registry):
        return None
    return Credential(username, password, identity, registry)


def is_text(value: str) -> bool:
    """Whether `value` can be encoded as UTF-8: JSON can hold half a surrogate pair, which cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _decode_auth(text: str, *, name: str) -> tuple[str, str]:
    """User name and password of `auth`. `base64` wraps lines at 76 characters; Go's decoder (docker, the kubelet) skips line ends."""
    text = text.replace("\r", "").replace("\n", "")
    try:
        padded = text + "=" * (-len(text) % 4)
        decoded = base64.b64decode(padded, validate=True).decode()
    except (binascii.Error, ValueError):  # from None: the exception holds the password
        raise SpecError(_FIELD, f"auths[{name!r}]: `auth` is not base64 of user:password") from None
    username, colon, password = decoded.partition(":")
    if not colon or not username:
        raise SpecError(_FIELD, f"auths[{name!r}]: `auth` is not base64 of user:password")
    return username, password.strip("\x00")  # docker pads with NUL bytes
