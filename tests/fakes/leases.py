"""A Lease as an API server stores it: resourceVersions, conflicts, no-op updates; with delays and failures that a test sets."""

import asyncio
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autowasm.kube.errors import AlreadyExists, ApiError, Conflict, NotFound, Unreachable

Document = dict[str, Any]


@dataclass
class FakeLeases:
    """The server. `stored` is the object; `history` has every earlier state, with the loop's time."""

    stored: Document | None = None
    version: int = 0
    history: list[tuple[float, Document]] = field(default_factory=list)

    @property
    def spec(self) -> Document:
        """The spec of the stored object."""
        assert self.stored is not None
        spec: Document = self.stored["spec"]
        return spec

    def get(self) -> Document:
        if self.stored is None:
            raise NotFound("no lease", code=404)
        return copy.deepcopy(self.stored)

    def create(self, spec: Mapping[str, Any]) -> Document:
        if self.stored is not None:
            raise AlreadyExists("there is one", code=409)
        return self._store({"metadata": {"name": "x", "uid": "1"}, "spec": dict(spec)})

    def update(self, spec: Mapping[str, Any], read: Mapping[str, Any]) -> Document:
        if self.stored is None:
            raise NotFound("no lease", code=404)
        if self.stored["metadata"]["resourceVersion"] != read["metadata"]["resourceVersion"]:
            raise Conflict("changed", code=409)
        if self.stored["spec"] == spec:
            return copy.deepcopy(self.stored)
        return self._store({"metadata": dict(self.stored["metadata"]), "spec": dict(spec)})

    def _store(self, document: Document) -> Document:
        self.version += 1
        document["metadata"]["resourceVersion"] = str(self.version)
        self.stored = copy.deepcopy(document)
        self.history.append((asyncio.get_running_loop().time(), document["spec"]))
        return document


@dataclass
class FakeLeaseClient:
    """One candidate's connection to it. A call reaches the server after `before` seconds, and the answer takes `after` more."""

    server: FakeLeases
    before: Callable[[], float] = lambda: 0.0
    after: Callable[[], float] = lambda: 0.0
    failure: Callable[[], ApiError | None] = lambda: None
    calls: list[str] = field(default_factory=list)

    async def get(self, *, timeout: float) -> Document:
        return await self._call("get", timeout, self.server.get)

    async def create(self, spec: Mapping[str, Any], *, timeout: float) -> Document:
        return await self._call("create", timeout, lambda: self.server.create(spec))

    async def update(
        self, spec: Mapping[str, Any], *, read: Mapping[str, Any], timeout: float
    ) -> Document:
        return await self._call("update", timeout, lambda: self.server.update(spec, read))

    async def _call(self, verb: str, timeout: float, work: Callable[[], Document]) -> Document:
        self.calls.append(verb)
        if (failure := self.failure()) is not None:
            raise failure
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(self.before())
                answer = work()
                await asyncio.sleep(self.after())
                return answer
        except TimeoutError as error:
            raise Unreachable("no answer in time") from error
