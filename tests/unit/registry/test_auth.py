"""Challenges, and the responses to them."""

import base64
import json
from urllib.parse import parse_qs, urlsplit

import pytest

from autowasm.errors import AddressBlocked, SourceUnavailable
from autowasm.registry.auth import Authorizer, LoginAttempt, TokenRequest, parse_challenges
from autowasm.registry.credentials import Credential

BOB = Credential("bob", "s3cret")
BASIC = "Basic " + base64.b64encode(b"bob:s3cret").decode()


class TokenEndpoint:
    def __init__(self, answer: object = None) -> None:
        self.answer = {"token": "t0"} if answer is None else answer
        self.requests: list[tuple[str, str | None]] = []
        self.forms: list[dict[str, list[str]]] = []

    def __call__(self, request: TokenRequest, login: LoginAttempt) -> bytes:
        self.requests.append((request.url, request.authorization))
        self.forms.append(parse_qs(request.form.decode()))
        return json.dumps(self.answer).encode()

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.requests[-1][0]).query)


class ScriptedAuthorizer(Authorizer):
    """An Authorizer with a new LoginAttempt for each response, unless the test passes one."""

    def respond(self, challenge_header: str | None, *, login: LoginAttempt | None = None) -> bool:
        return super().respond(challenge_header, login=login or LoginAttempt())


def make(
    endpoint: TokenEndpoint,
    *,
    credential: Credential | None = BOB,
    url: str = "https://r.example/",
    actions: str = "pull",
) -> ScriptedAuthorizer:
    return ScriptedAuthorizer(
        registry_url=url,
        repository="a/b",
        actions=actions,
        credential=credential,
        fetch_token=endpoint,
    )


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, []),
        ("", []),
        ('Basic realm="r"', [("basic", {"realm": "r"})]),
        ("Basic realm=r", [("basic", {"realm": "r"})]),
        ("Basic", [("basic", {})]),
        (
            'Bearer realm="https://t/x,y",service=s , scope="repository:a/b:pull,push"',
            [
                (
                    "bearer",
                    {"realm": "https://t/x,y", "service": "s", "scope": "repository:a/b:pull,push"},
                )
            ],
        ),
        (
            'Negotiate, Basic realm="a \\"b\\"", BEARER Realm="https://t"',
            [("negotiate", {}), ("basic", {"realm": 'a "b"'}), ("bearer", {"realm": "https://t"})],
        ),
        ('Bearer realm = "https://t"', [("bearer", {"realm": "https://t"})]),
        ('realm="no scheme"', []),
        ('Basic realm="never closed', [("basic", {})]),
    ],
)
def test_challenges_are_read_as_rfc_9110_writes_them(
    header: str | None, expected: list[tuple[str, dict[str, str]]]
) -> None:
    found = [(challenge.scheme, challenge.parameters) for challenge in parse_challenges(header)]
    assert found[: len(expected)] == expected
    assert len(found) <= len(expected) + 1


def test_basic_is_answered_once_with_the_credential() -> None:
    authorizer = make(TokenEndpoint())
    assert authorizer.respond('Basic realm="r"')
    assert authorizer.header == BASIC
    assert not authorizer.respond('Basic realm="r"'), "a refused password is not sent again"


def test_a_login_that_was_typed_in_another_encoding_is_sent_as_it_was_typed() -> None:
    typed = Credential(*(word.decode(errors="surrogateescape") for word in (b"jo\xe9", b"s\xff")))
    authorizer = make(TokenEndpoint(), credential=typed)
    assert authorizer.respond('Basic realm="r"')
    assert authorizer.header == "Basic " + base64.b64encode(b"jo\xe9:s\xff").decode()


def test_basic_without_a_credential_is_not_answered() -> None:
    assert not make(TokenEndpoint(), credential=None).respond('Basic realm="r"')


def test_no_challenge_is_not_answered() -> None:
    assert not make(TokenEndpoint()).respond(None)


def test_bearer_is_answered_with_a_token() -> None:
    endpoint = TokenEndpoint()
    authorizer = make(endpoint)
    assert authorizer.respond(
        'Bearer realm="https://auth.example/token?x=1",service="s",scope="repository:a/b:pull"'
    )
    assert authorizer.header == "Bearer t0"
    assert endpoint.requests[0][1] == BASIC
    assert endpoint.query == {"x": ["1"], "service": ["s"], "scope": ["repository:a/b:pull"]}


def test_bearer_comes_before_basic() -> None:
    authorizer = make(TokenEndpoint())
    assert authorizer.respond('Basic realm="r", Bearer realm="https://auth.example/token"')
    assert authorizer.header == "Bearer t0"


def test_an_anonymous_token_is_asked_for_without_credential() -> None:
    endpoint = TokenEndpoint({"access_token": "t1"})
    authorizer = make(endpoint, credential=None)
    assert authorizer.respond('Bearer realm="https://auth.example/token"')
    assert endpoint.requests[0][1] is None
    assert authorizer.header == "Bearer t1"
    assert endpoint.query == {"scope": ["repository:a/b:pull"]}


def test_a_push_asks_for_all_its_actions_at_once() -> None:
    endpoint = TokenEndpoint()
    make(endpoint, actions="pull,push").respond(
        'Bearer realm="https://t.example/",scope="repository:a/b:pull"'
    )
    assert endpoint.query["scope"] == ["repository:a/b:pull,push"]


@pytest.mark.parametrize("scope", ["registry:catalog:*", "repository:a/b:pull repository:c:pull"])
def test_a_scope_that_is_not_only_ours_is_asked_for_as_it_is(scope: str) -> None:
    endpoint = TokenEndpoint()
    make(endpoint).respond(f'Bearer realm="https://t.example/",scope="{scope}"')
    assert endpoint.query["scope"] == [scope]


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.example/token",
        "ftp://auth.example",
        "/token",
        "",
        "https://u:p@auth.example/",
        "https://auth.example:x/",
    ],
)
def test_a_credential_is_not_taken_to_a_doubtful_token_endpoint(realm: str) -> None:
    endpoint = TokenEndpoint()
    with pytest.raises(AddressBlocked) as caught:
        make(endpoint).respond(f'Bearer realm="{realm}"')
    assert caught.value.reason == "UrlNotAllowed"
    assert endpoint.requests == []


def test_a_plain_http_registry_may_have_a_plain_http_token_endpoint() -> None:
    authorizer = make(TokenEndpoint(), url="http://r.example:5000/")
    assert authorizer.respond('Bearer realm="http://auth.example/token"')


@pytest.mark.parametrize(
    "answer", [[], "x", {}, {"token": ""}, {"token": 1}, {"token": "a\r\nX: y"}, {"token": "ü"}]
)
def test_an_answer_without_a_token_is_unexpected(answer: object) -> None:
    with pytest.raises(SourceUnavailable, match="returned no token") as caught:
        make(TokenEndpoint(answer)).respond('Bearer realm="https://t.example/"')
    assert caught.value.reason == "UnexpectedAnswer"
    assert caught.value.__cause__ is None


def test_basic_is_taken_where_bearer_names_no_token_endpoint() -> None:
    endpoint = TokenEndpoint()
    authorizer = make(endpoint)
    assert authorizer.respond('Bearer, Basic realm="r"')
    assert (authorizer.header, endpoint.requests) == (BASIC, [])


def test_an_identity_token_is_posted_as_a_refresh_token() -> None:
    endpoint = TokenEndpoint({"access_token": "t2"})
    authorizer = make(endpoint, credential=Credential("bob", "s3cret", identity_token="refresh&me"))
    assert authorizer.respond('Bearer realm="https://auth.example/token",service=s')
    assert endpoint.requests == [("https://auth.example/token", None)], (
        "no password beside the token"
    )
    assert endpoint.forms == [
        {
            "grant_type": ["refresh_token"],
            "client_id": ["autowasm"],
            "service": ["s"],
            "scope": ["repository:a/b:pull"],
            "refresh_token": ["refresh&me"],
        }
    ]
    assert authorizer.header == "Bearer t2"
    assert not authorizer.shows_login()


def test_a_registry_token_is_sent_as_it_is_once_and_to_no_token_endpoint() -> None:
    endpoint = TokenEndpoint()
    authorizer = make(endpoint, credential=Credential("", "", registry_token="jwt"))
    assert authorizer.respond('Bearer realm="https://auth.example/token"')
    assert authorizer.header == "Bearer jwt"
    assert authorizer.shows_login()
    assert not authorizer.respond('Bearer realm="https://auth.example/token"')
    assert endpoint.requests == []


def test_a_token_is_no_password() -> None:
    for credential in (
        Credential("", "", registry_token="jwt"),
        Credential("", "", identity_token="refresh"),
    ):
        assert not make(TokenEndpoint(), credential=credential).respond('Basic realm="r"')


def test_repr_of_a_token_request_hides_the_credentials() -> None:
    request = TokenRequest("https://t.example/", "Basic s3cret", b"refresh_token=s3cret")
    assert "s3cret" not in repr(request)
