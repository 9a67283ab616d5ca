"""Repository: the verbs of the OCI distribution specification for one repository, blocking.

Retries, parsing and the choice of layers are in `client.py`, `manifest.py` and `layouts.py`. Invariants: a blob is verified
while it is written, never after; every unexpected status becomes an error with advice.
"""

import contextlib
import errno
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit

from autowasm.digest import Digest, DigestVerifier, HashedFile, Sha256Hex, Signature
from autowasm.errors import WASMER, Advice, SourceUnavailable, StorageError
from autowasm.limits import Limits
from autowasm.net.errors import LATER, Operation, Responder, error_for
from autowasm.net.urls import next_hop, redact
from autowasm.reasons import Reason
from autowasm.reference import ImageReference
from autowasm.registry.credentials import Credential
from autowasm.registry.transport import RegistryResponse, RegistryTransport, UploadBody


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest as received: neither parsed nor verified."""

    data: bytes
    media_type: str | None
    announced: Digest | None
    """`Docker-Content-Digest`."""


class Repository:
    """Reads and writes through one transport. Every method may raise the errors of `net/errors.py` and of a transfer."""

    def __init__(
        self,
        transport: RegistryTransport,
        reference: ImageReference,
        *,
        credential: Credential | None,
        limits: Limits,
        advice: Advice = WASMER,
    ) -> None:
        self._transport = transport
        self._host = reference.host
        self._name = reference.name
        self._credential = credential
        self._limits = limits
        self._advice = advice

    def close(self) -> None:
        """Close kept connections."""
        self._transport.close()

    def get_manifest(self, version: str, *, accept: str) -> ManifestAnswer:
        """GET the manifest under a tag or digest. Raises ContentRejected (`TooLarge`) too."""
        url = self._transport.manifest_url(version)
        what = f"image {self._shown(version)}"
        with self._transport.exchange("GET", url, headers={"Accept": accept}) as answer:
            self._expect(answer, 200, what=what)
            _refuse_page(answer, what=what)
            data = answer.read(limit=self._limits.manifest_bytes, what=what)
            media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            return ManifestAnswer(data, media_type or None, _announced(answer))

    def head_manifest(self, version: str, *, accept: str) -> Digest | None:
        """HEAD the same: the digest that the registry announces, None if it announces none or refuses a HEAD (403).

        Only a GET reveals whether a 403 is about the method or the image, and returns the registry's reason.
        """
        url = self._transport.manifest_url(version)
        with self._transport.exchange("HEAD", url, headers={"Accept": accept}) as answer:
            if answer.status == 403:
                return None
            self._expect(answer, 200, what=f"image {self._shown(version)}")
            return _announced(answer)

    def download(self, digest: Digest, *, size: int, destination: Path) -> HashedFile | None:
        """GET a blob into `destination` (overwritten), verified during the download. The caller removes a partial file.

        Returns the written file; None if its sha256 is not known, because `digest` is of another algorithm. Raises ContentRejected (`SizeMismatch`, `DigestMismatch`) and StorageError too.
        """
        what = f"layer {digest} of {self._name}"
        verifier = DigestVerifier(digest, size=size, what=what)
        with self._transport.exchange("GET", self._transport.blob_url(digest)) as answer:
            self._expect(answer, 200, what=what)
            _refuse_page(answer, what=what)
            # Network errors are already translated: an OSError here comes from the disk.
            with _storage_errors(destination), destination.open("wb") as file:
                for chunk in answer.chunks():
                    verifier.update(chunk)
                    file.write(chunk)
                file.flush()
                signature = Signature.of(file.fileno())
        verifier.finish()
        if digest.algorithm != "sha256" or signature.size != size:
            return None
        return HashedFile(Sha256Hex(digest.hex), signature)

    def has_blob(self, digest: Digest, *, size: int) -> bool:
        """Whether the registry reports (with a 200) that it has the blob, so that no upload is needed.

        Registries refuse this HEAD in many ways (403, 405, 501) and still accept the upload; if not, the upload returns the
        reason. Raises for statuses that mean "later", which the upload would receive too, and for a refused login, which
        must not be sent repeatedly.
        """
        with self._transport.exchange("HEAD", self._transport.blob_url(digest)) as answer:
            if answer.status in LATER | {502, 503, 504} or (
                answer.status == 401 and answer.with_login
            ):
                self._expect(answer, 200, what=f"layer {digest} of {self._name}")
            length = answer.headers.get("Content-Length", str(size))
            return answer.status == 200 and not answer.is_page and length == str(size)

    def put_blob(self, digest: Digest, *, size: int, content: bytes | Path) -> None:
        """POST, then PUT the whole blob (distribution specification, "Pushing a blob monolithically")."""
        what = f"upload of {digest} to {self._name}"
        url = self._transport.upload_url()
        with self._transport.exchange("POST", url, headers={"Content-Length": "0"}) as answer:
            self._expect(answer, 202, what=what, doing=Operation.UPLOAD)
            location = next_hop(url, _upload_location(url, answer), hops=1, limit=1)
        joint = "&" if "?" in location else "?"
        with self._transport.exchange(
            "PUT",
            f"{location}{joint}digest={digest}",
            headers={"Content-Type": "application/octet-stream"},
            body=UploadBody(content, size=size),
        ) as answer:
            self._expect(answer, 201, 204, what=what, doing=Operation.UPLOAD)

    def put_manifest(self, version: str, *, data: bytes, media_type: str) -> Digest | None:
        """PUT a manifest. Returns the digest that the registry announces, None if it announces none."""
        with self._transport.exchange(
            "PUT",
            self._transport.manifest_url(version),
            headers={"Content-Type": media_type},
            body=UploadBody(data, size=len(data)),
        ) as answer:
            what = f"upload of the manifest {self._shown(version)}"
            self._expect(answer, 201, what=what, doing=Operation.UPLOAD_MANIFEST)
            return _announced(answer)

    def delete_manifest(self, version: str) -> None:
        """DELETE a tag, or a manifest and all of its tags."""
        with self._transport.exchange("DELETE", self._transport.manifest_url(version)) as answer:
            what = f"deletion of {self._shown(version)}"
            self._expect(answer, 202, 200, 204, what=what, doing=Operation.DELETE)

    def list_tags(self, *, most: int) -> list[str]:
        """GET all pages of the list of tags; at most `most` tags are read."""
        what, tags = f"the tags of {self._name}", list[str]()
        url: str | None = self._transport.tags_url()
        while url is not None and len(tags) < most:
            with self._transport.exchange("GET", url) as answer:
                self._expect(answer, 200, what=what)
                _refuse_page(answer, what=what)
                data = answer.read(limit=self._limits.manifest_bytes, what=what)
                page = _tags_of(data, what=what)
                following = _next_page(answer.headers.get("Link", ""), url)
            tags += page
            url = following if page else None  # an endless list of empty pages ends
        return tags[:most]

    def check_login(self) -> None:
        """GET `/v2/`, which registries answer only for a login that they accept."""
        with self._transport.exchange("GET", self._transport.base_url()) as answer:
            what = f"the login to {self._host}"
            self._expect(answer, 200, what=what)
            _refuse_page(answer, what=what)

    def _expect(
        self, answer: RegistryResponse, *wanted: int, what: str, doing: Operation = Operation.READ
    ) -> None:
        if answer.status in wanted:
            return
        answerer = Responder(
            what=what,
            not_found=Reason.IMAGE_NOT_FOUND,
            unavailable=Reason.REGISTRY_UNAVAILABLE,
            denied_hint=self._denied_hint(answer),
            not_found_hint=self._not_found_hint(answer),
            unexpected_hint=self._limit_hint(answer),
            doing=doing,
            tls_hint=self._advice.no_plain_http if self._transport.is_plain_http else "",
        )
        raise error_for(answer.status, answer.headers, answerer=answerer, message=answer.message())

    def _denied_hint(self, answer: RegistryResponse) -> str:
        """Advice for a refused request: about the sent login, or how to configure one."""
        if not self._transport.is_own(answer.url):
            return f"the registry redirected to {redact(answer.url)}, which refused the request; no login is sent to that host"
        credential = self._credential
        if credential is None:
            return f"no login was sent; {self._advice.log_in(self._host)}"
        if not answer.with_login:
            return f"the login of {credential.shown} was not sent: the registry requests no login of a supported kind"
        if answer.status == 401:
            return f"sent with the login of {credential.shown}, which is wrong, has expired or lacks permission"
        known = "" if str(answer.message()) else ", which lacks permission"
        return f"sent with the login of {credential.shown}{known}"

    def _not_found_hint(self, answer: RegistryResponse) -> str:
        if self._credential is None and self._transport.is_own(answer.url):
            return f"no login was sent: if it is private, {self._advice.log_in(self._host)}"
        return ""

    def _limit_hint(self, answer: RegistryResponse) -> str:
        if answer.status != 429 or self._credential is not None:
            return ""
        login = self._advice.log_in(self._host)
        return (
            f"too many requests; no login was sent, and the limit is often higher with one: {login}"
        )

    def _shown(self, version: str) -> str:
        return f"{self._name}{'@' if ':' in version else ':'}{version}"


_LINK = re.compile(r'<(?P<url>[^>]+)>\s*;[^,]*\brel="?next"?')


def _next_page(link: str, url: str) -> str | None:
    """The next page of a list (RFC 8288), only at the same host."""
    found = _LINK.search(link)
    if found is None:
        return None
    following = urljoin(url, found["url"])
    return following if urlsplit(following)[:2] == urlsplit(url)[:2] else None


def _tags_of(data: bytes, *, what: str) -> list[str]:
    try:
        tags = json.loads(data)["tags"] or []
        if isinstance(tags, list) and all(isinstance(each, str) for each in tags):
            return tags
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise SourceUnavailable(
        f"{what}: the registry returned no list of tags", reason=Reason.UNEXPECTED_ANSWER
    )


def _refuse_page(answer: RegistryResponse, *, what: str) -> None:
    """Refuse a 200 with a web page: a proxy's login page, a registry's user interface."""
    if answer.is_page:
        message = str(answer.message())
        raise SourceUnavailable(
            f"{what}: {redact(answer.url)} returned a web page{f' ({message})' if message else ''}, not a registry response: a "
            "proxy or a login page may have answered, or the registry's API is at another host or port",
            reason=Reason.UNEXPECTED_ANSWER,
        )


def _upload_location(url: str, answer: RegistryResponse) -> str | None:
    """The URL for the next request of the upload. A registry behind a proxy that terminates TLS often writes `http://` and its own name.

    If the request went over https and the host is the same, the upload stays on https, as in oras-go
    (`registry/remote/repository.go`).
    """
    location = answer.headers.get("Location")
    try:
        own, there = urlsplit(url), urlsplit(location or "")
    except ValueError:
        return location  # `next_hop` reports that it is not a URL
    if own.scheme == "https" and there.scheme == "http" and there.hostname == own.hostname:
        return urlunsplit(there._replace(scheme="https", netloc=own.netloc))
    return location


def _announced(answer: RegistryResponse) -> Digest | None:
    try:
        return Digest.parse(answer.headers.get("Docker-Content-Digest", ""))
    except ValueError:
        return None


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            f"cannot write {path}: {error.strerror}",
            reason=Reason.STORAGE_FULL if full else Reason.STORAGE_UNAVAILABLE,
        ) from error
