"""StandaloneMode: provides the config directory to the reconciler, and its changes as keys.

Implements `AutoWasmLookup` and `SecretReader`. Files are read in `directory.py`. Invariant: an object whose
file cannot be read now never counts as deleted.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from autowasm.api.v1alpha1 import API_VERSION, KIND
from autowasm.artifacts.pullsecrets import PullSecret
from autowasm.controller.interfaces import Lookup
from autowasm.errors import SpecError
from autowasm.kube.resources import ObjectKey
from autowasm.reasons import Reason
from autowasm.standalone import documents
from autowasm.standalone.directory import ConfigDirectory, DuplicateObject
from autowasm.standalone.documents import next_generation
from autowasm.standalone.publisher import StandalonePublisher


class StandaloneMode:
    """Objects and Secrets from `directory`, and statuses as `publisher` last wrote them."""

    def __init__(self, directory: ConfigDirectory, publisher: StandalonePublisher) -> None:
        self._directory = directory
        self.publisher = publisher

    async def check(self) -> None:
        """Check the user's flags before anything is opened or written. Raises UsageError."""
        await self._directory.check()
        await self.publisher.check()

    async def start(self, tasks: asyncio.TaskGroup) -> None:  # no task runs before `run`
        """Read the config directory and the written files once. Raises UsageError if the directory cannot be read."""
        await self.publisher.load()
        await self._directory.load()

    def keys(self) -> frozenset[ObjectKey]:
        """All keys to reconcile at the start: those that are defined or published."""
        return frozenset(self._directory.keys()) | frozenset(self.publisher.published_keys())

    async def run(
        self, *, changed: Callable[[ObjectKey], None], secret_changed: Callable[[ObjectKey], None]
    ) -> None:
        """Follow the directory forever. `secret_changed` gets the keys of AutoWasms that name the Secret."""
        await self._directory.run(_Wake(self, changed, secret_changed))

    def lookup(self, key: ObjectKey) -> Lookup | None:
        """The object, with generation and status as an API server would set them."""
        found = self._directory.get(key)
        before = self.publisher.status(key)
        if found is None:
            return self._unreadable(key, before)
        if isinstance(found, DuplicateObject):
            return Lookup(before or _bare(key), documents.duplicate(key, found.files))
        document = dict(found.object)
        metadata = dict(document.get("metadata") or {})
        metadata["generation"] = next_generation(before, document.get("spec"))
        document["metadata"] = metadata
        document["status"] = (before or {}).get("status") or {}
        if found.problem is None:
            return Lookup(document)
        problem = SpecError(
            str(found.file),
            f"{found.problem}; correct the file, or remove it",
            reason=Reason.FILE_INVALID,
        )
        return Lookup(document, problem)

    def _unreadable(self, key: ObjectKey, before: Mapping[str, Any] | None) -> Lookup | None:
        """A published object that may be in a file that could not be read since the start."""
        files = self._directory.never_read()
        if not files or self.publisher.published(key) is None:
            return None
        named = ", ".join(f"{file} ({'; '.join(why)})" for file, why in sorted(files.items()))
        problem = SpecError(
            "metadata.name",
            f"no readable file defines {key}, but {named} may define it; correct the file, or remove it",
            reason=Reason.FILE_INVALID,
        )
        return Lookup(before or _bare(key), problem)

    async def read(self, namespace: str, name: str) -> PullSecret | None:
        """A `kind: Secret` document of the directory."""
        secret = self._directory.secret(ObjectKey(namespace, name))
        if secret is None:
            return None
        # A file has no uid: a Secret of the same name is the same Secret.
        uid = f"{namespace}/{name}"
        return PullSecret(secret.type, secret.data, uid=uid, annotations=secret.annotations)

    def users(self, secret: ObjectKey) -> Iterator[ObjectKey]:
        """AutoWasms that name the Secret."""
        for key in self._directory.keys():  # noqa: SIM118  # not a mapping
            if key.namespace != secret.namespace:
                continue
            found = self._directory.get(key)
            if found is None or isinstance(found, DuplicateObject):
                continue
            spec = found.object.get("spec")
            if isinstance(spec, Mapping) and spec.get("secret") == secret.name:
                yield key


class _Wake:
    """Converts changes of the directory to keys of AutoWasms."""

    def __init__(
        self,
        mode: StandaloneMode,
        changed: Callable[[ObjectKey], None],
        secret_changed: Callable[[ObjectKey], None],
    ) -> None:
        self._mode = mode
        self._secret_changed = secret_changed
        self.changed = changed

    def secret_changed(self, key: ObjectKey) -> None:
        for user in self._mode.users(key):
            self._secret_changed(user)

    def reread(self) -> None:
        for key in self._mode.keys():  # noqa: SIM118  # not a mapping
            self.changed(key)


def _bare(key: ObjectKey) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": key.name, "namespace": key.namespace},
        "spec": {},
    }
