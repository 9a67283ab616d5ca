"""ClusterSecrets: pull secrets, and a namespace's default pull secret names, read from the API server on demand.

Not a cache: each attempt reads the current state (ADR 19). Invariants: each Secret is read by `get`, never listed; concurrent
callers for the same Secret share one call (single flight).
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

from autowasm.artifacts.pullsecrets import PullSecret
from autowasm.artifacts.singleflight import SingleFlight
from autowasm.errors import SecretAccessForbidden, SourceUnavailable
from autowasm.kube.client import KubeClient
from autowasm.kube.errors import ApiError, Forbidden, NotFound
from autowasm.kube.resources import SECRETS, SERVICEACCOUNTS, ObjectKey
from autowasm.reasons import Reason


class ClusterSecrets:
    """`SecretReader` and `ServiceAccounts` of a cluster. `tasks` owns the calls, which outlive their first caller."""

    def __init__(self, client: KubeClient, tasks: asyncio.TaskGroup) -> None:
        self._client = client
        self._reads = SingleFlight(tasks)

    async def read(self, namespace: str, name: str) -> PullSecret | None:
        """GET the Secret, once for concurrent callers. Raises SecretAccessForbidden, SourceUnavailable."""
        key = ObjectKey(namespace, name)
        # At start-up, all AutoWasms of a namespace request the same Secret at the same time.
        return await self._reads.join(key, partial(self._get_secret, key), slot=nullcontext)

    async def _get_secret(self, key: ObjectKey) -> PullSecret | None:
        try:
            document = await self._client.get(SECRETS, key)
        except NotFound:
            return None
        except Forbidden as error:
            raise SecretAccessForbidden(
                f"spec.secret: wasmer is not allowed to read Secret {key}; its ServiceAccount needs `get` on secrets",
                reason=Reason.SECRET_FORBIDDEN,
            ) from error
        except ApiError as error:
            raise SourceUnavailable(
                f"spec.secret: Secret {key} cannot be read now: {error}",
                reason=Reason.SECRET_UNAVAILABLE,
                retry_after=error.retry_after,
            ) from error
        metadata = document.get("metadata") or {}
        return PullSecret(
            str(document.get("type", "")),
            _decoded(document.get("data") or {}),
            uid=str(metadata.get("uid") or ""),
            annotations=metadata.get("annotations") or {},
        )

    async def pull_secrets(self, namespace: str) -> tuple[str, ...]:
        """`imagePullSecrets` of the namespace's `default` ServiceAccount. Raises SecretAccessForbidden, SourceUnavailable."""
        key = ObjectKey(namespace, "default")
        work = partial(self._get_pull_secrets, key)
        names: tuple[str, ...] = await self._reads.join(
            ("serviceaccount", key), work, slot=nullcontext
        )
        return names

    async def _get_pull_secrets(self, key: ObjectKey) -> tuple[str, ...]:
        try:
            document = await self._client.get(SERVICEACCOUNTS, key)
        except NotFound:
            return ()
        except Forbidden as error:
            raise SecretAccessForbidden(
                f"wasmer is not allowed to read ServiceAccount {key}; --service-account-pull-secrets needs `get` on serviceaccounts",
                reason=Reason.SERVICE_ACCOUNT_FORBIDDEN,
            ) from error
        except ApiError as error:
            raise SourceUnavailable(
                f"ServiceAccount {key} cannot be read now: {error}",
                reason=Reason.SECRET_UNAVAILABLE,
                retry_after=error.retry_after,
            ) from error
        entries = document.get("imagePullSecrets") or ()
        return tuple(str(entry["name"]) for entry in entries if entry.get("name"))


def _decoded(data: Mapping[str, str]) -> dict[str, bytes]:
    result = {}
    for name, text in data.items():
        try:
            result[name] = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError, TypeError):
            continue  # the API server stores no such Secret; the reader reports the missing key
    return result
