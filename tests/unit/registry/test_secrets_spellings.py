"""Forms of Secrets and of entries that `test_credentials.py` does not have: tokens, dockercfg, basic-auth, patterns."""

import base64
import json

import pytest

from autowasm.errors import SpecError
from autowasm.registry.credentials import (
    Credential,
    from_basic_auth,
    from_docker_config,
    from_dockercfg,
)

AUTH = base64.b64encode(b"alice:s3cret").decode()
ALICE = Credential("alice", "s3cret")


def find(
    auths: dict[str, object], host: str = "r.example", repository: str = "team/filter"
) -> Credential | None:
    return from_docker_config(json.dumps({"auths": auths}), host=host, repository=repository)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"identitytoken": "i"}, Credential("", "", identity_token="i")),
        ({"registrytoken": "r"}, Credential("", "", registry_token="r")),
        ({"auth": AUTH, "identitytoken": "i"}, Credential("alice", "s3cret", identity_token="i")),
        (
            {"username": "alice", "password": "s3cret", "registrytoken": "r"},
            Credential("alice", "s3cret", registry_token="r"),
        ),
        ({"email": "a@b"}, None),
    ],
)
def test_tokens_are_read(entry: object, expected: Credential | None) -> None:
    assert find({"r.example": entry}) == expected


@pytest.mark.parametrize(
    "entry", [{"identitytoken": 1}, {"registrytoken": "s3cret\r\nX: y"}, {"identitytoken": "ü"}]
)
def test_a_token_that_would_break_a_header_is_refused(entry: object) -> None:
    with pytest.raises(SpecError, match="token") as caught:
        find({"r.example": entry})
    assert "s3cret" not in str(caught.value)


def test_every_part_of_a_login_tells_it_from_others_and_none_is_shown() -> None:
    logins = [
        ALICE,
        Credential("alice", "s3cre"),
        Credential("alice", "s3cret", identity_token="s3cret"),
        Credential("alice", "s3cret", registry_token="s3cret"),
    ]
    assert len({login.fingerprint for login in logins}) == len(logins)
    assert all("s3cret" not in repr(login) + login.shown for login in logins)


@pytest.mark.parametrize(
    ("key", "host", "found"),
    [
        ("*.example", "r.example", True),
        ("https://*.example/v1/", "r.example", True),
        ("r*.example", "reg.example", True),
        ("*.example", "a.b.example", False),
        ("*.example", "example", False),
        ("*.example:5000", "r.example", False),
        ("*", "r.example", False),
    ],
)
def test_a_star_stands_for_a_part_of_one_label(key: str, host: str, found: bool) -> None:
    assert (find({key: {"auth": AUTH}}, host=host) == ALICE) is found


def test_dockercfg_is_auths_without_the_frame() -> None:
    document = json.dumps({"https://r.example/v1/": {"auth": AUTH}, "other.example": {"auth": "x"}})
    assert from_dockercfg(document, host="r.example", repository="a/b") == ALICE
    assert from_dockercfg(document, host="r2.example", repository="a/b") is None
    with pytest.raises(SpecError, match="not a JSON object"):
        from_dockercfg("[]", host="r.example", repository="a/b")


@pytest.mark.parametrize(
    ("registry", "found"),
    [
        ("r.example", True),
        ("R.EXAMPLE:443", True),
        ("https://r.example/v2/", True),
        ("r.example/team", True),
        ("r.example/tea", False),
        ("r.example:5000", False),
        ("evil.example", False),
        ("r.example.evil.example", False),
    ],
)
def test_basic_auth_is_for_the_registry_that_its_secret_names(registry: str, found: bool) -> None:
    credential = from_basic_auth(
        b"alice", b"s3cret", registry=registry, host="r.example", repository="team/filter"
    )
    assert (credential == ALICE) is found


@pytest.mark.parametrize(("username", "password"), [(b"", b"x"), (b"a:b", b"x"), (b"\xff", b"x")])
def test_basic_auth_that_cannot_be_sent_is_refused(username: bytes, password: bytes) -> None:
    with pytest.raises(SpecError):
        from_basic_auth(username, password, registry="r.example", host="r.example", repository="a")
