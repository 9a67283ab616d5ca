"""PolicyFile: the operator's policy file, followed as it changes.

Not what it means (`sourcepolicy.py`). Invariants: at a start a file that cannot be read ends the program, an operator who
asks for a policy is never run without it; later, what cannot be read or understood leaves the last good policy in force
(ADR 7); a change counts once two looks show the same, so half a file is never a policy.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import structlog
import watchfiles

from autowasm.api.v1alpha1 import AutoWasm
from autowasm.controller.policy.sourcepolicy import SourcePolicy
from autowasm.errors import UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools

_log = structlog.get_logger(__name__)

_LOOK_MS = 5_000
"""A look this often, for file systems that tell nobody of changes."""
_SECOND_LOOK = 0.3
"""Seconds until a change is looked at again: editors and copying tools write in parts."""
_LOST_PAUSE = 1.0


class PolicyFile:
    """`load` once, then `run` for ever. Without a file everything is allowed."""

    def __init__(self, path: Path | None, *, limits: Limits, pools: Pools) -> None:
        self._path = path
        self._limit = limits.spec_bytes
        self._disk = pools.disk
        self._content = b""
        self._refused: bytes | None = None
        self._trouble = ""
        self.policy: SourcePolicy | None = None

    async def load(self) -> None:
        """Raises UsageError if there is a file and it is no policy."""
        if self._path is None:
            return
        try:
            self._content = await self._disk.run(_read, self._path, self._limit)
        except OSError as error:
            raise UsageError(
                f"--policy-file {self._path}: cannot be read: {error.strerror or error}"
            ) from error
        self.policy = SourcePolicy.parse(self._content)

    def check(self, autowasm: AutoWasm) -> None:
        """Raises SpecError (`PolicyDenied`)."""
        if self.policy is not None:
            self.policy.check(autowasm)

    def object_hosts(self, namespace: str) -> tuple[str, ...] | None:
        """Hosts of objects and their redirects; None: any."""
        return self.policy.object_hosts(namespace) if self.policy is not None else None

    async def run(self, changed: Callable[[], None]) -> None:
        """Follow the file for ever; `changed` is called when another policy is in force."""
        if self._path is None:
            return
        while True:
            try:
                await self._follow(self._path, changed)
            except (OSError, RuntimeError) as error:  # RuntimeError: no inotify to be had
                self._report(str(error))
                await asyncio.sleep(_LOST_PAUSE)
                await self._look(self._path, changed)

    async def _follow(self, path: Path, changed: Callable[[], None]) -> None:
        """The directory, not the file: a ConfigMap's file is a link to a link that is swapped."""
        changes = watchfiles.awatch(
            path.parent, rust_timeout=_LOOK_MS, yield_on_timeout=True, recursive=False
        )
        async with contextlib.aclosing(changes):
            async for _ in changes:
                await self._look(path, changed)

    async def _look(self, path: Path, changed: Callable[[], None]) -> None:
        try:
            content = await self._disk.run(_read, path, self._limit)
            if content in {self._content, self._refused}:
                return
            await asyncio.sleep(_SECOND_LOOK)
            if await self._disk.run(_read, path, self._limit) != content:
                return  # it changes still: the next look
            policy = SourcePolicy.parse(content)
        except OSError as error:
            self._report(error.strerror or str(error))
            return
        except UsageError as error:
            self._refused = content
            self._report(str(error))
            return
        self._content, self._refused, self._trouble, self.policy = content, None, "", policy
        _log.info("policy in force", rules=len(policy.rules))
        changed()

    def _report(self, trouble: str) -> None:
        """Say it when it changes."""
        if trouble != self._trouble:
            _log.error("policy file not taken, the last policy holds", error=trouble)
        self._trouble = trouble


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"larger than {limit} bytes")
    return content
