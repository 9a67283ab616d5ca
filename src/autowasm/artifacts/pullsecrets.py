"""Pull secrets: reads the Credential named by `spec.secret` at every attempt; Secrets are never listed and never cached (ADR 19).

The source decides whether a credential is sufficient. Invariants: no message of this module shows a value of a Secret;
a login is taken from a Secret only for the registry that the Secret itself names, so an AutoWasm's author cannot send it
elsewhere; a fetch for a namespace reads Secrets of that namespace only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from autowasm.api.v1alpha1 import GROUP
from autowasm.artifacts.source import FetchRequest
from autowasm.errors import SourceDenied, SourceNotFound, SpecError
from autowasm.reasons import Reason
from autowasm.reference import ImageReference
from autowasm.registry import credentials
from autowasm.registry.credentials import Credential, fingerprint_of

DOCKER_CONFIG_TYPE: Final = "kubernetes.io/dockerconfigjson"
DOCKERCFG_TYPE: Final = "kubernetes.io/dockercfg"
BASIC_AUTH_TYPE: Final = "kubernetes.io/basic-auth"
REGISTRY_ANNOTATION: Final = f"{GROUP}/registry"
"""On a basic-auth Secret: the `HOST[:PORT][/PREFIX]` that it is for. Such Secrets are also used for git and other services;
without the annotation any author of an AutoWasm could have one sent to a host of theirs."""

_FIELD: Final = "spec.secret"
_MAX_SECRETS: Final = 32
"""Of one ServiceAccount: each costs a request to the API server at each attempt."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PullSecret:
    """The fields of a Secret that we read."""

    type: str
    data: Mapping[str, bytes] = field(repr=False)
    uid: str = ""
    """Distinguishes it from another one of the same name."""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PullAccess:
    """The credential that an AutoWasm may send to a registry."""

    credential: Credential | None = None
    secret_uid: str = ""
    """Of the Secret that holds the credential; empty without one."""

    @property
    def fingerprint(self) -> str:
        """Changes when the credential changes."""
        return fingerprint_of(self.credential)


class SecretReader(Protocol):
    """Reads Secrets."""

    async def read(self, namespace: str, name: str) -> PullSecret | None:
        """The Secret, None if there is none. Raises SourceUnavailable if it cannot be read now."""


class ServiceAccounts(Protocol):
    """Reads the `imagePullSecrets` of a namespace's own ServiceAccount."""

    async def pull_secrets(self, namespace: str) -> tuple[str, ...]:
        """Names of the Secrets. Raises SourceDenied, and SourceUnavailable if they cannot be read now."""


async def access_for(
    reader: SecretReader,
    *,
    namespace: str,
    secret: str | None,
    reference: ImageReference,
    service_accounts: ServiceAccounts | None = None,
) -> PullAccess:
    """The credential for this repository: from `spec.secret`, else from the ServiceAccount's Secrets, else none.

    Raises the errors of `credential_for`. An error in a Secret of the ServiceAccount is logged and the Secret skipped: it is there for
    other images too.
    """
    if secret is not None:
        return await credential_for(reader, namespace=namespace, name=secret, reference=reference)
    if service_accounts is None:
        return PullAccess()
    for name in (await service_accounts.pull_secrets(namespace))[:_MAX_SECRETS]:
        try:
            access = await credential_for(
                reader, namespace=namespace, name=name, reference=reference
            )
        except (SourceDenied, SpecError) as error:
            _log.info(
                "pull secret of the service account not used",
                namespace=namespace,
                secret=name,
                reason=error.reason,
            )
            continue
        if access.credential is not None:
            return access
    return PullAccess()


async def credential_for(
    reader: SecretReader, *, namespace: str, name: str, reference: ImageReference
) -> PullAccess:
    """The Secret's credential for this repository; anonymous access if the Secret has none for it.

    Raises SourceDenied (`SecretNotFound`) and SpecError (`SecretInvalid`) naming the Secret.
    """
    secret = await reader.read(namespace, name)
    if secret is None:
        raise SourceDenied(
            f"{_FIELD}: there is no Secret {name} in namespace {namespace}; create it "
            "(kubectl create secret docker-registry), or remove the field for a public image",
            reason=Reason.SECRET_NOT_FOUND,
        )
    read = _READERS.get(secret.type)
    if read is None:
        raise _invalid(
            name,
            f"has type {secret.type or 'Opaque'}; a pull secret has type {' or '.join(_READERS)}",
        )
    try:
        credential = read(secret, reference)
    except SpecError as error:
        # Not InvalidSpec: the object is valid, and correcting the Secret is enough.
        raise _invalid(name, error.problem) from error
    return PullAccess(credential, secret.uid) if credential is not None else PullAccess()


def _docker_config(secret: PullSecret, reference: ImageReference) -> Credential | None:
    return credentials.from_docker_config(
        _value(secret, ".dockerconfigjson"), host=reference.host, repository=reference.repository
    )


def _dockercfg(secret: PullSecret, reference: ImageReference) -> Credential | None:
    return credentials.from_dockercfg(
        _value(secret, ".dockercfg"), host=reference.host, repository=reference.repository
    )


def _basic_auth(secret: PullSecret, reference: ImageReference) -> Credential | None:
    registry = secret.annotations.get(REGISTRY_ANNOTATION, "").strip()
    if not registry:
        raise SpecError(
            _FIELD,
            f"is of type {BASIC_AUTH_TYPE} and does not name its registry; its owner must add the annotation "
            f"{REGISTRY_ANNOTATION}: HOST",
        )
    return credentials.from_basic_auth(
        _value(secret, "username"),
        _value(secret, "password"),
        registry=registry,
        host=reference.host,
        repository=reference.repository,
    )


_READERS: Final[Mapping[str, Callable[[PullSecret, ImageReference], Credential | None]]] = {
    DOCKER_CONFIG_TYPE: _docker_config,
    DOCKERCFG_TYPE: _dockercfg,
    BASIC_AUTH_TYPE: _basic_auth,
}


def _value(secret: PullSecret, key: str) -> bytes:
    value = secret.data.get(key)
    if value is None:
        raise SpecError(_FIELD, f"has no key {key}")
    return value


def _invalid(name: str, problem: str) -> SpecError:
    joint = " " if problem.startswith(("has ", "is ")) else ": "
    return SpecError(_FIELD, f"Secret {name}{joint}{problem}", reason=Reason.SECRET_INVALID)


@dataclass(frozen=True, slots=True)
class PullAccessReader:
    """Reads the credential of a request. `service_accounts` None: only `spec.secret` counts (the default)."""

    secrets: SecretReader
    service_accounts: ServiceAccounts | None = None

    async def read(self, request: FetchRequest) -> PullAccess:
        """Read the Secret now. Objects need none. Raises as `access_for`."""
        if request.source.registry is None:
            return PullAccess()
        return await access_for(
            self.secrets,
            namespace=request.namespace,
            secret=request.secret,
            reference=ImageReference.parse(request.source.registry.image),
            service_accounts=self.service_accounts,
        )


def explain_denied(
    request: FetchRequest, access: PullAccess, error: SourceDenied | SourceNotFound
) -> SourceDenied | SourceNotFound:
    """Add to the error that the named Secret has no entry for the host. Many registries answer 404 for a private image."""
    if request.secret is None or access.credential is not None or request.source.registry is None:
        return error
    host = ImageReference.parse(request.source.registry.image).host
    return type(error)(
        f"{error}; spec.secret: Secret {request.secret} has no entry for {host}, so the image was requested anonymously",
        reason=error.reason,
    )
