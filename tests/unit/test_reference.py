import pytest

from autowasm.digest import Digest
from autowasm.reference import ImageReference

SHA = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("alpine", "docker.io", "library/alpine", "latest", None),
        ("alpine:3", "docker.io", "library/alpine", "3", None),
        ("user/filter", "docker.io", "user/filter", "latest", None),
        ("docker.io/alpine", "docker.io", "library/alpine", "latest", None),
        ("index.docker.io/alpine", "docker.io", "library/alpine", "latest", None),
        ("ccr.ccs.tencentyun.com/xxx/wasm-add-header:v0.3", "ccr.ccs.tencentyun.com",
         "xxx/wasm-add-header", "v0.3", None),
        ("localhost/filter", "localhost", "filter", "latest", None),
        ("localhost:5000/a/b/c:v1", "localhost:5000", "a/b/c", "v1", None),
        ("localhost:5000", "docker.io", "library/localhost", "5000", None),
        ("REGISTRY/filter", "REGISTRY", "filter", "latest", None),
        ("[::1]:5000/filter:v1", "[::1]:5000", "filter", "v1", None),
        ("[2001:db8::1]/filter:v1", "[2001:db8::1]", "filter", "v1", None),
        ("r.example:65535/f:v1", "r.example:65535", "f", "v1", None),
        ("r.example:1/f:v1", "r.example:1", "f", "v1", None),
        (f"r.example/f@{SHA}", "r.example", "f", None, SHA),
        (f"r.example/f:v1@{SHA}", "r.example", "f", "v1", SHA),
    ],
)  # fmt: skip
def test_parses_references_like_docker(
    text: str, host: str, repository: str, tag: str | None, digest: str | None
) -> None:
    reference = ImageReference.parse(text)
    assert (reference.host, reference.repository, reference.tag) == (host, repository, tag)
    assert reference.digest == (Digest.parse(digest) if digest else None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the image reference is empty"),
        (" ", "the image reference is empty"),
        ("https://r.example/f:v1", "without a scheme"),
        ("r.example/F:v1", "lower-case"),
        ("r.example/../f", "repository name"),
        ("r.example//f", "repository name"),
        ("r.example/f/", "repository name"),
        ("r.example/f:", "not a tag"),
        ("r.example/f:-x", "not a tag"),
        ("r.example/f:" + "x" * 129, "not a tag"),
        ("r.example/f:v1\n", "not a tag"),
        ("r.example/f\n", "repository name"),
        ("r.example/f:v1 ", "not a tag"),
        ("r.example/f?x=1", "no query"),
        ("r.example:port/f", "registry host"),
        ("r.example:123456/f", "registry host"),
        ("r.example:/f", "registry host"),
        ("r.example:65536/f", "from 1 to 65535, not 65536"),
        ("r.example:99999/f:v1", "from 1 to 65535"),
        ("r.example:0/f", "from 1 to 65535, not 0"),
        ("[::1]:65536/f", "from 1 to 65535"),
        ("[::1]:/f", "registry host"),
        ("[::::]/f", "not an IPv6 address"),
        ("[1]:5000/f", "not an IPv6 address"),
        ("user@r.example/f", "user name"),
        ("r_x.example/f", "registry host"),
        ("-r.example/f", "registry host"),
        ("r.example/f@sha256:abc", "64 lower-case"),
        (f"r.example/f@{SHA}@{SHA}", "digest"),
        ("r.example/" + "a" * 250, "longer than 255"),
        ("a" * 64, "image ID"),
    ],
)
def test_refusal_names_the_problem(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ImageReference.parse(text)


def test_message_shows_a_part_of_a_long_text_only() -> None:
    with pytest.raises(ValueError, match="longer than 1024") as caught:
        ImageReference.parse("r.example/" + "X" * 100_000)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text", ["r.example/f:v1", f"r.example/f@{SHA}", f"r.example/f:v1@{SHA}", "docker.io/u/f:x"]
)
def test_full_form_reads_back(text: str) -> None:
    assert str(ImageReference.parse(text)) == text


def test_digest_decides_and_pins() -> None:
    tagged = ImageReference.parse("r.example/f:v1")
    pinned = tagged.pinned(Digest.parse(SHA))
    assert not tagged.is_pinned
    assert tagged.version == "v1"
    assert pinned.is_pinned
    assert (str(pinned), pinned.version) == (f"r.example/f@{SHA}", SHA)
    assert pinned.name == tagged.name == "r.example/f"
