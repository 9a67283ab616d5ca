"""Which sources a namespace may use."""

import pytest

from autowasm.controller.sourcepolicy import SourcePolicy
from autowasm.errors import SpecError, UsageError
from autowasm.settings import PreflightMode
from tests.fakes.autowasms import autowasm, digest

POLICY = SourcePolicy.parse(
    b"""
namespaces:
  team-a:
    registries: [ghcr.io/team-a, "*.corp.example", "docker.io/library"]
    objects: [storage.example, "*.s3.example:8443"]
  "prod-*": {digestRequired: true}
  "prod-eu-*": {registries: []}
  "*": {registries: [public.example], objects: []}
"""
)


def check(namespace: str, *, image: str = "", url: str = "", sha256: str | None = None) -> None:
    source = {"registry": {"image": image}} if image else {"object": {"url": url}}
    fields = {"sha256": sha256} if sha256 else {}
    POLICY.check(autowasm(namespace=namespace, source=source, **fields))


@pytest.mark.parametrize(
    ("namespace", "image"),
    [
        ("team-a", "ghcr.io/team-a/x:v1"),
        ("team-a", "ghcr.io/team-a:v1"),
        ("team-a", "GHCR.IO:443/team-a/x:v1"),
        ("team-a", "reg.corp.example:5000/any:v1"),
        ("team-a", "nginx:v1"),
        ("team-a", "registry-1.docker.io/library/nginx:v1"),
        ("prod-us", f"any.example/x@sha256:{digest('a')}"),
        ("other", "public.example/x:v1"),
    ],
)
def test_allowed_images(namespace: str, image: str) -> None:
    check(namespace, image=image)


@pytest.mark.parametrize(
    ("namespace", "image", "says"),
    [
        ("team-a", "ghcr.io/team-ab/x:v1", "rule 'team-a' allows images from ghcr.io/team-a"),
        ("team-a", "ghcr.io/other/x:v1", "not from ghcr.io/other/x"),
        ("team-a", "corp.example/x:v1", "rule 'team-a'"),
        ("team-a", "corp.example.evil.example/x:v1", "rule 'team-a'"),
        ("team-a", "user/nginx:v1", "not from docker.io/user/nginx"),
        ("prod-us", "any.example/x:v1", "rule 'prod-\\*' requires a digest"),
        ("prod-eu-1", f"any.example/x@sha256:{digest('a')}", "rule 'prod-eu-\\*' .* nowhere"),
        ("team-b", "ghcr.io/team-a/x:v1", "rule '\\*' allows images from public.example"),
    ],
)
def test_refused_images_name_the_rule(namespace: str, image: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        check(namespace, image=image)
    assert (caught.value.field, caught.value.reason) == (
        "spec.filter.source.registry.image",
        "PolicyDenied",
    )


@pytest.mark.parametrize("entry", ["r.example:65536", "r.example:0/team", "r.example:99999999999"])
def test_a_port_that_cannot_be_is_refused(entry: str) -> None:
    document = f'namespaces: {{team-a: {{registries: ["{entry}"]}}}}'.encode()
    with pytest.raises(UsageError, match="must be from 1 to 65535"):
        SourcePolicy.parse(document)


@pytest.mark.parametrize(
    ("namespace", "url", "sha256", "allowed"),
    [
        ("team-a", "https://storage.example/x", None, True),
        ("team-a", "https://STORAGE.example:444/x", None, True),
        ("team-a", "https://b.s3.example:8443/x", None, True),
        ("team-a", "https://b.s3.example/x", None, False),
        ("team-a", "https://storage.example.evil.example/x", None, False),
        ("prod-us", "https://any.example/x", None, False),
        ("prod-us", "https://any.example/x", digest("a"), True),
        ("other", "https://storage.example/x", None, False),
    ],
)
def test_objects(namespace: str, url: str, sha256: str | None, allowed: bool) -> None:
    if allowed:
        check(namespace, url=url, sha256=sha256)
        return
    with pytest.raises(SpecError, match="rule") as caught:
        check(namespace, url=url, sha256=sha256)
    assert caught.value.field == "spec.filter.source.object.url"


def test_sha256_of_the_module_counts_as_a_digest() -> None:
    check("prod-us", image="any.example/x:v1", sha256=digest("a"))


def test_a_namespace_without_a_rule_may_use_nothing() -> None:
    policy = SourcePolicy.parse(b"namespaces: {team-a: {}}")
    policy.check(autowasm(namespace="team-a"))
    with pytest.raises(SpecError, match="no rule matches namespace team-b"):
        policy.check(autowasm(namespace="team-b"))
    assert policy.object_hosts("team-a") is None
    assert policy.object_hosts("team-b") == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "namespaces: []",
        "namespaces: {a: {registry: []}}",
        "namespaces: {a: {registries: x}}",
        "namespaces: {a: {registries: [https://x]}}",
        "namespaces: {a: {objects: [x/y]}}",
        "namespaces: {a: {registries: ['']}}",
        "namespaces: {a: {digestRequired: 'yes'}}",
        "namespaces: {a: {preflight: loud}}",
        "a: b: c",
        "namespaces: {a: {digestRequired: true}, a: {}}",
        "namespaces: {a: {registries: [x.example], registries: []}}",
        "\0",
    ],
)
def test_a_file_that_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--policy-file"):
        SourcePolicy.parse(text.encode())


def test_all_mistakes_of_a_policy_file_are_reported_in_its_own_words() -> None:
    text = """
namespaces:
  a: {registries: r.io, digestRequired: 'true', preflight: warm}
  b:
  d: {registry: [a], objects: [1]}
  1: {}
allow: []
"""
    with pytest.raises(UsageError) as caught:
        SourcePolicy.parse(text.encode())
    assert str(caught.value).removeprefix("--policy-file: ").split("; namespaces") == [
        "namespaces: the key 1 must be a string: put it in quotes",
        '[a].registries: "r.io" is a string; use a list: ["r.io"]',
        '[a].digestRequired: "true" is a string; remove the quotes',
        "[a].preflight: must be one of off, warn, enforce, strict, not 'warm'; did you mean warn?",
        "[b]: is null; use a mapping with registries, objects, digestRequired or preflight; {} allows every source",
        "[d].registry: unknown field; did you mean registries?",
        "[d].objects[0]: 1 is a number; put it in quotes; allow: unknown field; the object has the fields namespaces",
    ]


def test_all_wrong_entries_of_a_policy_file_are_reported() -> None:
    text = b"namespaces: {a: {registries: ['https://r.io', 'r.io:0'], objects: [o.io/x, '']}}"
    with pytest.raises(UsageError) as caught:
        SourcePolicy.parse(text)
    assert str(caught.value).split("; namespaces") == [
        "--policy-file: namespaces[a].registries[0]: 'https://r.io' is not HOST[:PORT][/PREFIX]; remove the scheme",
        "[a].registries[1]: the port of 'r.io:0' must be from 1 to 65535",
        "[a].objects[0]: 'o.io/x' must be HOST[:PORT], without a path",
        "[a].objects[1]: '' is not HOST[:PORT]",
    ]


def test_off_without_quotes_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match='write "off" in quotes'):
        SourcePolicy.parse(b"namespaces: {a: {preflight: off}}")
    found = SourcePolicy.parse(b'namespaces: {a: {preflight: "off"}}').rule_for("a")
    assert found is not None
    assert found[1].preflight is PreflightMode.OFF
    with pytest.raises(UsageError) as caught:
        SourcePolicy.parse(b"namespaces: {a: {registries: true}}")
    assert "in quotes" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfen\x00", "line 1: byte 0 is not UTF-8; save the file as UTF-8"),
        (b"namespaces:\n  {{ .a }}: {}\n", "line 2, column 3: a key must be text"),
        (b"namespaces: {a: {rollout: {pause: 5}}}", "pause: 5 is a number; use a duration"),
        (b"namespaces: {a: {registries: ['https://me:word@a.io']}}", "remove the scheme"),
        (b"namespaces: {a: {registries: ['me:word@a.io']}}", "'a.io' is not HOST"),
    ],
)
def test_a_file_of_another_form_is_refused_without_its_passwords(content: bytes, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        SourcePolicy.parse(content)
    assert says in str(caught.value)
    assert "word" not in str(caught.value)
    assert "\n" not in str(caught.value)
