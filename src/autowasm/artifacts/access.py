"""AccessReader: what login a fetch may show, and what to say when that was not enough.

Not the proof that a login is enough: that is the source's answer. Invariant: a namespace's fetch sees Secrets of that
namespace only.
"""

from dataclasses import dataclass

from autowasm.artifacts import pullsecrets
from autowasm.artifacts.pullsecrets import Access, SecretReader, ServiceAccounts
from autowasm.artifacts.source import FetchRequest
from autowasm.errors import SourceDenied, SourceNotFound
from autowasm.reference import ImageReference


@dataclass(frozen=True, slots=True)
class AccessReader:
    """`service_accounts` None: only `spec.secret` counts (the default)."""

    secrets: SecretReader
    service_accounts: ServiceAccounts | None = None

    async def read(self, request: FetchRequest) -> Access:
        """Read the Secret now. Objects need none. Raises what `pullsecrets.access_for` raises."""
        if request.source.registry is None:
            return Access()
        return await pullsecrets.access_for(
            self.secrets,
            namespace=request.namespace,
            secret=request.secret,
            reference=ImageReference.parse(request.source.registry.image),
            service_accounts=self.service_accounts,
        )


def explain_denied(
    request: FetchRequest, access: Access, error: SourceDenied | SourceNotFound
) -> SourceDenied | SourceNotFound:
    """Say so if the Secret that was named has nothing for the host. Many registries answer 404 for what is private."""
    if request.secret is None or access.credential is not None or request.source.registry is None:
        return error
    host = ImageReference.parse(request.source.registry.image).host
    return type(error)(
        f"{error}; spec.secret: Secret {request.secret} has no entry for {host}, so the image was asked for anonymously",
        reason=error.reason,
    )
