"""Credentials from docker config documents."""

import base64
import json

import pytest

from autowasm.errors import SpecError
from autowasm.registry.credentials import (
    ANONYMOUS_FINGERPRINT,
    Credential,
    fingerprint_of,
    from_docker_config,
)


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def find(
    auths: object, *, host: str = "r.example", repository: str = "team/app"
) -> Credential | None:
    return from_docker_config(
        json.dumps({"auths": auths}).encode(), host=host, repository=repository
    )


def test_repr_and_fingerprint_do_not_show_the_password() -> None:
    credential = Credential("bob", "s3cret")
    assert "s3cret" not in repr(credential)
    assert "bob" in repr(credential)
    assert len(credential.fingerprint) == 16
    assert credential.fingerprint == Credential("bob", "s3cret").fingerprint


def test_fingerprint_depends_on_where_the_name_ends() -> None:
    assert Credential("a", "bc").fingerprint != Credential("ab", "c").fingerprint
    assert fingerprint_of(None) == ANONYMOUS_FINGERPRINT


@pytest.mark.parametrize(
    "key",
    [
        "docker.io",
        "index.docker.io",
        "https://index.docker.io/v1/",
        "https://index.docker.io/v1",
        "registry-1.docker.io",
        "https://registry.hub.docker.com",
    ],
)
def test_every_name_of_docker_hub_is_docker_hub(key: str) -> None:
    found = find({key: auth("bob:p")}, host="docker.io", repository="library/x")
    assert found == Credential("bob", "p")


@pytest.mark.parametrize(
    "key",
    [
        "r.example.evil",
        "evil-r.example",
        "r.example:5000",
        "http://r.example/teams",
        "r.example/team/ap",
    ],
)
def test_a_similar_but_different_host_key_does_not_match(key: str) -> None:
    assert find({key: auth("bob:p")}) is None


def test_the_default_port_of_https_is_no_difference() -> None:
    assert find({"r.example:443": auth("a:b")}) == Credential("a", "b")
    assert find({"r.example": auth("a:b")}, host="r.example:443") == Credential("a", "b")


def test_a_path_matches_whole_components_and_the_longest_wins() -> None:
    auths = {"r.example": auth("host:p"), "r.example/team": auth("team:p")}
    assert find(auths) == Credential("team", "p")
    assert find(auths, repository="teamwork/app") == Credential("host", "p")


def test_a_password_may_hold_colons_and_docker_pads_with_nul() -> None:
    assert find({"r.example": auth("bob:a:b:c\x00\x00")}) == Credential("bob", "a:b:c")


def test_auth_wins_over_username_and_password() -> None:
    both = {**auth("a:b"), "username": "c", "password": "d"}
    assert find({"r.example": both}) == Credential("a", "b")


def test_base64_without_padding_is_read() -> None:
    text = base64.b64encode(b"bob:pa").decode().rstrip("=")
    assert find({"r.example": {"auth": text}}) == Credential("bob", "pa")


def test_an_entry_left_by_a_credential_store_is_passed_over() -> None:
    auths = {"https://r.example/v1/": {}, "r.example": auth("a:b")}
    assert find(auths) == Credential("a", "b")
    assert find({"r.example": {}}) is None


def test_no_auths_means_no_login() -> None:
    assert from_docker_config(b"{}", host="r.example", repository="a") is None


@pytest.mark.parametrize(
    "entry",
    [
        {"auth": "%%%secret%%%"},
        {"auth": base64.b64encode(b"secret").decode()},
        {"auth": base64.b64encode(b":secret").decode()},
        {"auth": base64.b64encode(b"\xff\xfe:secret").decode()},
        {"auth": 1},
        {"username": "a:b", "password": "secret"},
        {"username": "a", "password": ["secret"]},
        {"username": "a", "password": "secret\ud800"},
        {"username": "\udfffa", "password": "secret"},
        "secret",
    ],
)
def test_a_malformed_matching_entry_is_refused_without_showing_it(entry: object) -> None:
    with pytest.raises(SpecError, match=r"spec\.secret: auths\['r\.example'\]") as caught:
        find({"r.example": entry})
    assert "secret" not in str(caught.value).removeprefix("spec.secret")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_in_auth_are_passed_over_as_go_does(end: str) -> None:
    password = "x" * 200
    wrapped = base64.encodebytes(f"_json_key:{password}".encode()).decode().replace("\n", end)
    assert wrapped.count(end) > 3
    expected = Credential("_json_key", password)
    for text in (wrapped, f"{end}{wrapped}", wrapped.rstrip("=\r\n")):
        assert find({"r.example": {"auth": text}}) == expected


def test_a_space_inside_auth_is_refused_as_go_does() -> None:
    with pytest.raises(SpecError, match="not base64"):
        find({"r.example": {"auth": "Ym9i OnMzY3JldA=="}})


def test_a_malformed_entry_of_another_host_is_ignored() -> None:
    assert find({"other.example": "nonsense", "r.example": auth("a:b")}) == Credential("a", "b")


@pytest.mark.parametrize(
    "document", [b"", b"secret", b"[]", b'{"auths": []}', b"\xff", b"[" * 99999]
)
def test_a_malformed_document_is_refused_without_showing_it(document: bytes) -> None:
    with pytest.raises(SpecError, match="not a docker config") as caught:
        from_docker_config(document, host="r.example", repository="a")
    assert "secret" not in str(caught.value).removeprefix("spec.secret")


def test_an_entry_of_null_holds_no_login() -> None:
    assert find({"r.example": None}) is None
    assert find({"r.example/team": None, "r.example": auth("bob:p")}) == Credential("bob", "p")
