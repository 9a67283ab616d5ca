"""Repository: the verbs of the OCI distribution specification for one repository, blocking.

Not a client: no retries, no parsing, no choice of layer. Invariants: a blob is verified while it is written, never after;
every status that is not the wanted one becomes an error that says what to do.
"""

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autowasm.digest import Digest, DigestVerifier
from autowasm.errors import StorageError
from autowasm.limits import Limits
from autowasm.net.answers import Answerer, error_for
from autowasm.net.urls import next_hop
from autowasm.reference import ImageReference
from autowasm.registry.answer import Answer
from autowasm.registry.credentials import Credential
from autowasm.registry.transport import RegistryTransport
from autowasm.registry.upload import Body


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest as it came: neither parsed nor verified."""

    data: bytes
    media_type: str | None
    announced: Digest | None
    """`Docker-Content-Digest`."""


class Repository:
    """Reads and writes through one transport. Every method may raise what `net/answers.py` and a request can."""

    def __init__(
        self,
        transport: RegistryTransport,
        reference: ImageReference,
        *,
        credential: Credential | None,
        limits: Limits,
    ) -> None:
        self._transport = transport
        self._name = reference.name
        self._limits = limits
        self._hint = (
            f"{credential.shown} may not do this, or the password is wrong"
            if credential
            else "no credential was given; give one that may do this"
        )

    def close(self) -> None:
        """Close kept connections."""
        self._transport.close()

    def get_manifest(self, version: str, *, accept: str) -> ManifestAnswer:
        """GET the manifest under a tag or digest. Raises ContentRejected (`TooLarge`) too."""
        url = self._transport.manifest_url(version)
        what = f"image {self._shown(version)}"
        with self._transport.ask("GET", url, headers={"Accept": accept}) as answer:
            self._expect(answer, 200, what=what)
            data = answer.read(limit=self._limits.manifest_bytes, what=what)
            media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            return ManifestAnswer(data, media_type or None, _announced(answer))

    def head_manifest(self, version: str, *, accept: str) -> Digest | None:
        """HEAD the same: the digest that the registry announces, None if it announces none."""
        url = self._transport.manifest_url(version)
        with self._transport.ask("HEAD", url, headers={"Accept": accept}) as answer:
            self._expect(answer, 200, what=f"image {self._shown(version)}")
            return _announced(answer)

    def download(self, digest: Digest, *, size: int, destination: Path) -> None:
        """GET a blob into `destination` (overwritten), verified on the way; a partial file is left to the caller.

        Raises ContentRejected (`SizeMismatch`, `DigestMismatch`) and StorageError too.
        """
        what = f"layer {digest} of {self._name}"
        verifier = DigestVerifier(digest, size=size, what=what)
        with self._transport.ask("GET", self._transport.blob_url(digest)) as answer:
            self._expect(answer, 200, what=what)
            # Network errors are translated already: an OSError in here comes from the disk.
            with _storage_errors(destination), destination.open("wb") as file:
                for chunk in answer.chunks():
                    verifier.update(chunk)
                    file.write(chunk)
        verifier.finish()

    def has_blob(self, digest: Digest) -> bool:
        """HEAD a blob."""
        with self._transport.ask("HEAD", self._transport.blob_url(digest)) as answer:
            self._expect(answer, 200, 404, what=f"layer {digest} of {self._name}")
            return answer.status == 200

    def put_blob(self, digest: Digest, *, size: int, content: bytes | Path) -> None:
        """POST, then PUT the whole blob (distribution specification, "Pushing a blob monolithically")."""
        what = f"upload of {digest} to {self._name}"
        url = self._transport.upload_url()
        with self._transport.ask("POST", url, headers={"Content-Length": "0"}) as answer:
            self._expect(answer, 202, what=what)
            location = next_hop(url, answer.headers.get("Location"), hops=1, limit=1)
        joint = "&" if "?" in location else "?"
        with self._transport.ask(
            "PUT",
            f"{location}{joint}digest={digest}",
            headers={"Content-Type": "application/octet-stream"},
            body=Body(content, size=size),
        ) as answer:
            self._expect(answer, 201, 204, what=what)

    def put_manifest(self, version: str, *, data: bytes, media_type: str) -> Digest | None:
        """PUT a manifest: the digest that the registry says it has, if it says so."""
        with self._transport.ask(
            "PUT",
            self._transport.manifest_url(version),
            headers={"Content-Type": media_type},
            body=Body(data, size=len(data)),
        ) as answer:
            self._expect(answer, 201, what=f"upload of the manifest {self._shown(version)}")
            return _announced(answer)

    def _expect(self, answer: Answer, *wanted: int, what: str) -> None:
        if answer.status not in wanted:
            answerer = Answerer(
                what=what,
                not_found="ImageNotFound",
                unavailable="RegistryUnavailable",
                denied_hint=self._hint,
            )
            raise error_for(answer.status, answer.headers, answerer=answerer)

    def _shown(self, version: str) -> str:
        return f"{self._name}{'@' if ':' in version else ':'}{version}"


def _announced(answer: Answer) -> Digest | None:
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
            reason="StorageFull" if full else "StorageUnavailable",
        ) from error
