import base64
from collections.abc import Mapping

import pytest

from autowasm.artifacts import pullsecrets
from autowasm.artifacts.pullsecrets import DOCKER_CONFIG_TYPE, PullSecret
from autowasm.errors import SourceDenied, SpecError
from autowasm.reference import ImageReference
from autowasm.registry.credentials import Credential
from tests.fakes.pullsecrets import FakeSecrets

REFERENCE = ImageReference.parse("r.example/team/filter:v1")
AUTH = base64.b64encode(b"alice:s3cret").decode()


async def credential(secret: PullSecret | None) -> Credential | None:
    secrets = FakeSecrets({("default", "pull"): secret} if secret else {})
    access = await pullsecrets.credential_for(
        secrets, namespace="default", name="pull", reference=REFERENCE
    )
    return access.credential


def docker_config(document: str) -> PullSecret:
    return PullSecret(DOCKER_CONFIG_TYPE, {".dockerconfigjson": document.encode()})


@pytest.mark.parametrize(
    "entry", [f'{{"auth":"{AUTH}"}}', '{"username":"alice","password":"s3cret"}']
)
async def test_login_for_the_registry_is_found(entry: str) -> None:
    found = await credential(docker_config(f'{{"auths":{{"r.example":{entry}}}}}'))
    assert found == Credential("alice", "s3cret")


async def test_secret_for_another_registry_means_anonymous() -> None:
    assert await credential(docker_config('{"auths":{"other.example":{"auth":"x"}}}')) is None


async def test_missing_secret_is_named_with_its_namespace() -> None:
    with pytest.raises(SourceDenied, match="no Secret pull in namespace default") as caught:
        await credential(None)
    assert caught.value.reason == "SecretNotFound"


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        ("Opaque", {".dockerconfigjson": b"{}"}, "has type Opaque; a pull secret has type"),
        ("", {}, "has type Opaque"),
        (DOCKER_CONFIG_TYPE, {"config.json": b"s3cret"}, "has no key .dockerconfigjson"),
        (DOCKER_CONFIG_TYPE, {".dockerconfigjson": b"s3cret"}, "pull: not a docker config"),
        (
            DOCKER_CONFIG_TYPE,
            {".dockerconfigjson": b'{"auths":{"r.example":{"auth":"s3cret"}}}'},
            "base64",
        ),
    ],
)
async def test_useless_secret_is_explained_without_its_values(
    kind: str, data: Mapping[str, bytes], says: str
) -> None:
    """Reason SecretInvalid, not InvalidSpec: the object is right, so nothing else may be made of it."""
    with pytest.raises(SpecError) as caught:
        await credential(PullSecret(kind, data))
    assert says in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert (caught.value.field, caught.value.reason) == ("spec.secret", "SecretInvalid")


def test_repr_shows_no_value() -> None:
    assert "s3cret" not in repr(docker_config("s3cret"))


def basic_auth(registry: str | None) -> PullSecret:
    annotations = {pullsecrets.REGISTRY_ANNOTATION: registry} if registry is not None else {}
    data = {"username": b"alice", "password": b"s3cret"}
    return PullSecret(pullsecrets.BASIC_AUTH_TYPE, data, uid="u1", annotations=annotations)


async def test_basic_auth_is_sent_to_the_registry_that_its_owner_named_and_no_other() -> None:
    assert await credential(basic_auth("https://r.example/")) == Credential("alice", "s3cret")
    assert await credential(basic_auth("other.example")) is None
    for registry in (None, " "):
        with pytest.raises(
            SpecError, match=r"must add the annotation wasm\.tcm\.io/registry"
        ) as caught:
            await credential(basic_auth(registry))
        assert caught.value.reason == "SecretInvalid"


async def test_dockercfg_is_read() -> None:
    document = f'{{"r.example":{{"auth":"{AUTH}"}}}}'.encode()
    secret = PullSecret(pullsecrets.DOCKERCFG_TYPE, {".dockercfg": document})
    assert await credential(secret) == Credential("alice", "s3cret")


class Accounts:
    def __init__(self, *names: str) -> None:
        self.names = names

    async def pull_secrets(self, namespace: str) -> tuple[str, ...]:
        return self.names


async def test_secrets_of_the_service_account_count_only_without_one_in_the_spec() -> None:
    secrets = FakeSecrets()
    secrets.secrets["default", "broken"] = docker_config("{")
    secrets.login("default", "other", "bob", host="other.example")
    secrets.login("default", "mine", "alice", host="r.example", uid="u1")
    secrets.login("elsewhere", "foreign", "mallory", host="r.example")
    accounts = Accounts("missing", "foreign", "broken", "other", "mine")

    async def find(secret: str | None, *, of_account: bool = True) -> pullsecrets.PullAccess:
        return await pullsecrets.access_for(
            secrets,
            namespace="default",
            secret=secret,
            reference=REFERENCE,
            service_accounts=accounts if of_account else None,
        )

    found = await find(None)
    assert found == pullsecrets.PullAccess(Credential("alice", "alicealice"), "u1")
    assert await find(None, of_account=False) == pullsecrets.PullAccess()
    assert await find("other") == pullsecrets.PullAccess()
    with pytest.raises(SourceDenied):
        await find("missing")


async def test_service_account_without_a_login_for_the_registry_means_anonymous() -> None:
    secrets = FakeSecrets()
    secrets.secrets["default", "broken"] = docker_config("{")
    secrets.login("default", "other", "bob", host="other.example")
    for names in ((), ("missing",), ("broken", "other")):
        found = await pullsecrets.access_for(
            secrets,
            namespace="default",
            secret=None,
            reference=REFERENCE,
            service_accounts=Accounts(*names),
        )
        assert found == pullsecrets.PullAccess()
