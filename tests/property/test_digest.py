import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.digest import Digest, DigestVerifier
from autowasm.errors import ContentRejected


@given(st.text(alphabet="sha256:0123456789abcdefA/.\n", max_size=140))
def test_parsed_digest_round_trips_and_is_safe_in_a_path(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except ValueError:
        return
    assert str(digest) == text
    assert digest.hex.isalnum()
    assert digest.hex == digest.hex.lower()


@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.binary(max_size=50), max_size=8))
def test_only_the_expected_bytes_pass_in_any_chunks(
    sent: list[bytes], promised: list[bytes]
) -> None:
    want, got = b"".join(promised), b"".join(sent)
    digest = Digest("sha256", hashlib.sha256(want).hexdigest())
    verifier = DigestVerifier(digest, size=len(want), what="layer")

    def run() -> None:
        for chunk in sent:
            verifier.update(chunk)
        verifier.finish()

    if got == want:
        run()
        return
    with pytest.raises(ContentRejected) as caught:
        run()
    assert caught.value.reason == ("DigestMismatch" if len(got) == len(want) else "SizeMismatch")
