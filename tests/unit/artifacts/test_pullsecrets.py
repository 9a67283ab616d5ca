import base64
from collections.abc import Mapping

import pytest

from autowasm.artifacts import pullsecrets
from autowasm.artifacts.pullsecrets import DOCKER_CONFIG_TYPE, PullSecret
from autowasm.errors import SourceDenied, SpecError
from autowasm.reference import ImageReference
from autowasm.registry.credentials import Credential
from tests.fakes.sources import FakeSecrets

REFERENCE = ImageReference.parse("r.example/team/filter:v1")
AUTH = base64.b64encode(b"alice:s3cret").decode()


async def credential(secret: PullSecret | None) -> Credential | None:
    secrets = FakeSecrets({("default", "pull"): secret} if secret else {})
    return await pullsecrets.credential_for(
        secrets, namespace="default", name="pull", reference=REFERENCE
    )


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
