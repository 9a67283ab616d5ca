"""ImageReference: the strict grammar of `host[:port]/repository[:tag][@digest]`, with Docker Hub's short forms.

A URL scheme is refused. Source of the grammar: distribution/reference (`reference.go`); a looser one lets `../`, newlines
and whole URLs reach a registry. Invariant: every part of an `ImageReference` is safe in a URL path and in a log line.
"""

import functools
import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Self

from autowasm.digest import Digest
from autowasm.text import without_secrets

_HOST_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?\Z")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z")
_MAX_NAME_LENGTH = 255  # distribution/reference: NameTotalLengthMax
_LONGEST = 1024  # a name, a tag (128) and a digest are shorter; matching a megabyte holds the loop for 0.1 s
_HIGHEST_PORT = 65535
_KEPT = 1024
"""References that are kept parsed: a reconcile parses the same few many times, and AutoWasms of one image share them."""
_IMAGE_ID = re.compile(r"[0-9a-f]{64}\Z")

DOCKER_HUB = "docker.io"
"""Docker Hub in image references; its API has another host."""


@dataclass(frozen=True, slots=True)
class ImageReference:
    """`host`, `repository`, and a `tag`, a `digest` or both (then the digest decides)."""

    host: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @staticmethod
    def parse(text: str) -> "ImageReference":
        """Parse a reference as a user writes it. Without tag and digest the tag is `latest`. Raises ValueError."""
        return _parse(text)

    @property
    def is_pinned(self) -> bool:
        """True if the reference has a digest, so its content cannot change."""
        return self.digest is not None

    @property
    def name(self) -> str:
        """Host and repository, without tag and digest."""
        return f"{self.host}/{self.repository}"

    @property
    def version(self) -> str:
        """`<reference>` of the distribution API: the digest if there is one, else the tag."""
        return str(self.digest) if self.digest else (self.tag or "latest")

    def pinned(self, digest: Digest) -> Self:
        """The same image by digest; the tag is dropped, because it can move."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


@functools.lru_cache(_KEPT)
def _parse(text: str) -> ImageReference:
    if len(text) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters: {text[:100]!r}…")
    if not text.strip():
        raise ValueError("the image reference is empty: expected host/name:tag")
    shown = repr(without_secrets(text[:200]))
    if "://" in text:
        raise ValueError(f"write the image without a scheme (host/name:tag): {shown}")
    if _IMAGE_ID.match(text):
        raise ValueError(
            f"an image ID is not a reference to a registry (expected host/name:tag): {shown}"
        )
    if "?" in text or "#" in text:
        raise ValueError(
            f"an image reference has no query and no fragment (expected host/name:tag): {shown}"
        )
    rest, at, digest_text = text.partition("@")
    if "/" in digest_text:
        raise ValueError(
            "must not contain a user name or password (expected host/name:tag); remove the part before '@'"
        )
    digest = Digest.parse(digest_text) if at else None
    head, slash, last = rest.rpartition("/")
    name, colon, tag = last.partition(":")
    if colon and not _TAG.match(tag):
        raise ValueError(
            f"not a tag (letters, digits, '_', '.', '-', at most 128): {tag[:140]!r} in {shown}"
        )
    host, repository = _split_host(f"{head}{slash}{name}")
    check_host(host, shown=shown)
    if not _REPOSITORY.match(repository):
        raise ValueError(
            f"not a repository name (lower-case letters, digits, single separators): "
            f"{repository[:100]!r} in {shown}"
        )
    if len(host) + 1 + len(repository) > _MAX_NAME_LENGTH:
        raise ValueError(f"host and repository are longer than {_MAX_NAME_LENGTH} characters")
    if not colon and digest is None:
        tag = "latest"
    return ImageReference(host, repository, tag or None, digest)


def check_host(host: str, *, shown: str) -> None:
    """Raise ValueError unless `host` is `HOST[:PORT]`; `shown` is quoted in the message.

    distribution/reference allows any five digits as a port; no client can connect to one above 65535.
    """
    if not _HOST.match(host):
        raise ValueError(f"not a registry host: {host[:100]!r} in {shown}")
    name, colon, port = host.rpartition(":")
    if host.endswith("]") or not colon:
        name, port = host, ""
    if port and not 1 <= int(port) <= _HIGHEST_PORT:
        raise ValueError(f"the port must be from 1 to {_HIGHEST_PORT}, not {port}: {shown}")
    if name.startswith("["):
        try:
            ipaddress.IPv6Address(name.strip("[]"))
        except ValueError as error:
            raise ValueError(f"not an IPv6 address: {name[:100]!r} in {shown}") from error


def _split_host(name: str) -> tuple[str, str]:
    """Docker's rule: the first part is a host if it has a dot or a port, is `localhost`, or has upper case."""
    first, slash, rest = name.partition("/")
    is_host = "." in first or ":" in first or first == "localhost" or first.lower() != first
    if not slash or not is_host:
        host, repository = DOCKER_HUB, name
    else:
        host, repository = first, rest
    if host == "index.docker.io":
        host = DOCKER_HUB
    if host == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    return host, repository
