"""Against an independent port of distribution/reference, but for where we are stricter on purpose."""

from docker_image import reference as oracle
from docker_image.digest import InvalidDigest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.reference import ImageReference

PIECES = st.sampled_from(
    ["a", "b9", "A", "_", "__", "___", ".", "..", "-", "--", "/", "//", ":", "@", "5000", "localhost", "docker.io",
     "index.docker.io", "library", "r.example", "r.example:443", "[::1]", "latest", "v1.0", "é", " ", "%", "?",
     "sha256:" + "a" * 64, "sha256:" + "A" * 64, "sha512:" + "0" * 128, "sha384:" + "0" * 96, "md5:" + "a" * 32]
)  # fmt: skip
TEXTS = st.one_of(
    st.lists(PIECES, max_size=7).map("".join),
    st.text(alphabet="aA0._-/:@[]", max_size=25),
    st.text(max_size=15),
)


def parsed_by_oracle(text: str) -> tuple[str, str, str | None, str | None] | None:
    try:
        found = oracle.Reference.parse_normalized_named(text)
    except (oracle.InvalidReference, InvalidDigest):
        return None
    return found.domain(), found.path(), found["tag"], found["digest"]


def parsed_by_us(text: str) -> tuple[str, str, str | None, str | None] | None:
    try:
        found = ImageReference.parse(text)
    except ValueError:
        return None
    return found.host, found.repository, found.tag, str(found.digest) if found.digest else None


def stricter_on_purpose(host: str, digest: str | None) -> bool:
    """Ports have five digits, and OCI registers sha256 and sha512 only."""
    port = host.rpartition("]")[2].partition(":")[2]
    return len(port) > 5 or (digest is not None and digest.startswith("sha384:"))


@given(TEXTS)
def test_parses_references_like_the_distribution_grammar(text: str) -> None:
    if text.endswith("\n"):
        return  # the oracle's `$` lets one pass
    expected = parsed_by_oracle(text)
    if expected is None:
        assert parsed_by_us(text) is None
        return
    host, repository, tag, digest = expected
    if stricter_on_purpose(host, digest):
        assert parsed_by_us(text) is None
        return
    assert parsed_by_us(text) == (host, repository, tag if tag or digest else "latest", digest)


@given(TEXTS)
def test_parsed_reference_is_safe_in_a_url_and_round_trips(text: str) -> None:
    try:
        reference = ImageReference.parse(text)
    except ValueError:
        return
    again = ImageReference.parse(str(reference))
    assert again == reference
    assert not set(str(reference)) & set(" ?#%\\\n\r\t")
    assert ".." not in reference.repository.split("/")
    assert "" not in reference.repository.split("/")
