"""The seam between those who bring blobs and the one who finds room for them (`retention.py`).

Not a policy. Invariant: every blob enters the store through `committing`, whoever brought it.
"""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from autowasm.digest import Sha256Hex


class Claim(Protocol):
    """A namespace's word that it is about to pin a blob."""

    def hold(self, sha256: Sha256Hex, size: int) -> None:
        """The blob is stored: keep it until it is pinned, for a minute at most.

        Raises StorageError (`NamespaceShareExceeded`).
        """


class Keeper(Protocol):
    """Finds room, and says no where there is none. All raise StorageError."""

    def claim(
        self,
        namespace: str,
        *,
        owner: str = "",
        sha256: Sha256Hex | None = None,
        size: int | None = None,
    ) -> AbstractAsyncContextManager[Claim]:
        """Room in the namespace's share for a blob, as far as digest and size are known (`NamespaceShareExceeded`).

        What `owner` alone has published counts for nothing: the blob will replace it. Early after a start it takes until it is known what the namespace has published.
        """

    def room(self, size: int | None) -> AbstractAsyncContextManager[None]:
        """Room for the work of fetching a module of `size` bytes; None: not known yet (`StorageFull`)."""

    def committing(self, sha256: Sha256Hex, size: int) -> AbstractAsyncContextManager[None]:
        """Room in the budget while the blob is stored, which happens inside (`StorageFull`)."""


class _Nothing:
    def hold(self, sha256: Sha256Hex, size: int) -> None:
        pass


class KeepAll:
    """No budget, no eviction: for `wasmc`, and for tests of other things."""

    @contextlib.asynccontextmanager
    async def claim(
        self,
        namespace: str,
        *,
        owner: str = "",
        sha256: Sha256Hex | None = None,
        size: int | None = None,
    ) -> AsyncIterator[Claim]:
        """Always."""
        yield _Nothing()

    @contextlib.asynccontextmanager
    async def room(self, size: int | None) -> AsyncIterator[None]:
        """Always."""
        yield

    @contextlib.asynccontextmanager
    async def committing(self, sha256: Sha256Hex, size: int) -> AsyncIterator[None]:
        """Always."""
        yield
