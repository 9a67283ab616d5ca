"""From `spec.secret` to a Credential: read at every attempt, never listed, never kept (design D11).

Not where Secrets come from: that is a `SecretReader` of the controller or of standalone mode. Invariant: no message of
this module shows a value of a Secret.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from autowasm.errors import SourceDenied, SpecError
from autowasm.reference import ImageReference
from autowasm.registry import credentials
from autowasm.registry.credentials import Credential

DOCKER_CONFIG_TYPE = "kubernetes.io/dockerconfigjson"
_DOCUMENT_KEYS = {DOCKER_CONFIG_TYPE: ".dockerconfigjson"}
"""Secret type to the key that holds the docker config. Each further kind of Secret is a row here."""


@dataclass(frozen=True, slots=True)
class PullSecret:
    """A Secret as far as we need it."""

    type: str
    data: Mapping[str, bytes] = field(repr=False)


class SecretReader(Protocol):
    """Where Secrets come from."""

    async def read(self, namespace: str, name: str) -> PullSecret | None:
        """The Secret, None if there is none. Raises SourceUnavailable if that cannot be told now."""


async def credential_for(
    reader: SecretReader, *, namespace: str, name: str, reference: ImageReference
) -> Credential | None:
    """The credential that the Secret has for this repository; None if it has none for it (then: anonymous).

    Raises SourceDenied (`SecretNotFound`) and SpecError (`SecretInvalid`) naming the Secret.
    """
    secret = await reader.read(namespace, name)
    if secret is None:
        raise SourceDenied(
            f"spec.secret: there is no Secret {name} in namespace {namespace}; create it "
            "(kubectl create secret docker-registry), or remove the field for a public image",
            reason="SecretNotFound",
        )
    document_key = _DOCUMENT_KEYS.get(secret.type)
    if document_key is None:
        raise SpecError(
            "spec.secret",
            f"Secret {name} has type {secret.type or 'Opaque'}; a pull secret has type "
            f"{' or '.join(_DOCUMENT_KEYS)}",
            reason="SecretInvalid",
        )
    document = secret.data.get(document_key)
    if document is None:
        raise SpecError(
            "spec.secret", f"Secret {name} has no key {document_key}", reason="SecretInvalid"
        )
    try:
        return credentials.from_docker_config(
            document, host=reference.host, repository=reference.repository
        )
    except SpecError as error:
        # Not InvalidSpec: the object is right, and mending the Secret is enough.
        raise SpecError(
            "spec.secret", f"Secret {name}: {error.problem}", reason="SecretInvalid"
        ) from error
