import hashlib

import pytest

from autowasm.digest import Digest, DigestVerifier, sha256_hex
from autowasm.errors import ContentRejected

DATA = b"hello" * 100
DIGEST = Digest.of(DATA)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "a" * 128,
        "sha512:" + "a" * 64,
        "SHA256:" + "a" * 64,
        "md5:" + "a" * 32,
        "sha256:../../../../etc/passwd",
        "a" * 64,
    ],
)
def test_malformed_digest_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="digest"):
        Digest.parse(text)


@pytest.mark.parametrize(("algorithm", "length"), [("sha256", 64), ("sha512", 128)])
def test_digest_reads_back(algorithm: str, length: int) -> None:
    text = f"{algorithm}:{'0a' * (length // 2)}"
    assert str(Digest.parse(text)) == text


@pytest.mark.parametrize("text", ["", "a" * 63, "A" * 64, "a" * 64 + "\n", "../" + "a" * 61])
def test_only_lower_case_hex_is_a_sha256(text: str) -> None:
    with pytest.raises(ValueError, match="64 lower-case"):
        sha256_hex(text)


def test_digest_is_that_of_the_standard_library() -> None:
    assert DIGEST.hex == hashlib.sha256(DATA).hexdigest()


def test_right_bytes_pass() -> None:
    verifier = DigestVerifier(DIGEST, size=len(DATA), what="layer")
    verifier.update(DATA[:7])
    verifier.update(memoryview(DATA)[7:])
    verifier.finish()
    assert verifier.received == len(DATA)


def test_first_byte_too_many_is_refused_at_once() -> None:
    verifier = DigestVerifier(DIGEST, size=len(DATA), what="layer x")
    verifier.update(DATA)
    with pytest.raises(ContentRejected, match=r"layer x: .* more than the 500 bytes") as caught:
        verifier.update(b"!")
    assert caught.value.reason == "SizeMismatch"


@pytest.mark.parametrize(
    ("size", "sent", "reason"),
    [
        (len(DATA), DATA[:-1], "SizeMismatch"),
        (len(DATA), b"x" * len(DATA), "DigestMismatch"),
        (None, DATA[:-1], "DigestMismatch"),
    ],
)
def test_missing_or_other_bytes_are_refused(size: int | None, sent: bytes, reason: str) -> None:
    verifier = DigestVerifier(DIGEST, size=size, what="layer")
    verifier.update(sent)
    with pytest.raises(ContentRejected) as caught:
        verifier.finish()
    assert caught.value.reason == reason


def test_sha512_is_checked_too() -> None:
    verifier = DigestVerifier(
        Digest("sha512", hashlib.sha512(DATA).hexdigest()), size=None, what="layer"
    )
    verifier.update(DATA)
    verifier.finish()
