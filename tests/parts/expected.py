"""The desired AutoWasms of one namespace, and whether the API server has them and their EnvoyFilters.

Changes are retried until the API server accepts them, so it may fail meanwhile. Kubernetes' garbage collector deletes an
EnvoyFilter without its owner, which may take a minute after an outage of the API server; `test_cluster_objects.py` tests
its deletion. Invariant: `wanted` is the last accepted state.
"""

import asyncio
import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from autowasm.api import envoyfilter as expected
from autowasm.api import validation
from autowasm.settings import EnvoyFetch
from tests.parts import wat
from tests.parts.installation import Document, Installation, autowasms, envoyfilters
from tests.parts.kubeapi import ApiError

CONVERGED_WITHIN = 120.0
"""A guard, seconds."""
_CALL_SECONDS = 5.0
_TAKEN_WITHIN = 60.0
_LATER = frozenset({401, 403, 409, 429, 500, 503})
"""The API server has only just started, or another write came in between."""


@dataclass
class ExpectedObjects:
    """Create one with `expected_objects`."""

    installation: Installation
    namespace: str
    modules: list[tuple[str, str]]
    """Images, and the digests of their modules."""
    wanted: dict[str, Document] = field(default_factory=dict)

    async def put(self, name: str, module: int, *, port: int = 9080, padding: int = 0) -> None:
        """Create the AutoWasm, or change it to this module and port; `padding` bytes make it larger."""
        document = self.installation.autowasm(
            self.modules[module][0], name=name, namespace=self.namespace, applyPorts=[port]
        )
        document["metadata"]["annotations"] = {"padding": "x" * padding}
        if name in self.wanted:
            await self._until_taken("PUT", autowasms(self.namespace, name), document)
        else:
            await self._until_taken("POST", autowasms(self.namespace), document)
        self.wanted[name] = document

    async def delete(self, name: str) -> None:
        """Delete the AutoWasm."""
        await self._until_taken("DELETE", autowasms(self.namespace, name), None)
        self.wanted.pop(name, None)

    async def _until_taken(self, method: str, path: str, body: Document | None) -> None:
        """404 and 409 mean that an earlier attempt was accepted although its answer was lost."""
        taken = {"POST": 409, "DELETE": 404}.get(method)
        tried = False
        async with asyncio.timeout(_TAKEN_WITHIN):
            while True:
                try:
                    await self._call(method, path, body)
                except OSError:
                    tried = True
                    await asyncio.sleep(0.1)
                except ApiError as error:
                    if tried and error.status == taken:
                        return
                    if error.status not in _LATER:
                        raise
                    await asyncio.sleep(0.02)
                else:
                    return

    async def _call(self, method: str, path: str, body: Document | None) -> None:
        cluster = self.installation.cluster
        if method == "PUT" and body is not None:
            live: Any = await cluster.request("GET", path, timeout=_CALL_SECONDS)
            annotations = body["metadata"]["annotations"]
            metadata = {**live["metadata"], "annotations": annotations}
            body = {**live, "metadata": metadata, "spec": body["spec"]}
        await cluster.request(method, path, body=body, timeout=_CALL_SECONDS)

    async def wait_converged(self) -> None:
        """Wait until every AutoWasm is Synced with its own module, and exactly the EnvoyFilters that follow from them have an owner.

        Raises TimeoutError with the differences and the end of wasmer's log.
        """
        problems: list[str] = []
        try:
            async with asyncio.timeout(CONVERGED_WITHIN):
                while True:
                    try:
                        await self._all_synced()
                        if not (problems := await self.differences()):
                            return
                    except (OSError, ApiError) as error:  # the API server starts
                        problems = [repr(error)]
                    await self.installation.wasmer.process.check()
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            with suppress(OSError, ApiError):
                problems = await self.differences()
            tail = await self.installation.wasmer.process.tail()
            raise TimeoutError("\n".join([*problems, tail])) from error

    async def _all_synced(self) -> None:
        """One after the other, each by a watch: listing all of them repeatedly would slow wasmer down."""
        for name in list(self.wanted):
            await self.installation.wait_object(
                autowasms(self.namespace, name),
                partial(self._is_synced, name),
                what="converged",
                timeout=2 * CONVERGED_WITHIN,
            )

    def _is_synced(self, name: str, found: Document | None) -> bool:
        return found is not None and self._status_problem(name, found) is None

    async def differences(self) -> list[str]:
        """Each with the name of the AutoWasm."""
        request = self.installation.cluster.request
        objects = (await request("GET", autowasms(self.namespace)))["items"]
        filters = (await request("GET", envoyfilters(self.namespace)))["items"]
        uids = {found["metadata"]["uid"] for found in objects}
        live = {
            found["metadata"]["name"]: found
            for found in filters
            if found["metadata"]["name"] in self.wanted or not _is_garbage(found, uids)
        }
        names = {found["metadata"]["name"] for found in objects}
        problems = [f"{name}: AutoWasm extra or missing" for name in names ^ self.wanted.keys()]
        problems += [
            f"{name}: EnvoyFilter extra or missing" for name in live.keys() ^ self.wanted.keys()
        ]
        for found in objects:
            name = found["metadata"]["name"]
            if name in self.wanted and name in live:
                problem = self._status_problem(name, found) or self._problem(found, live[name])
                problems += [f"{name}: {problem}"] if problem else []
        return problems

    def _digest(self, name: str) -> str:
        image = self.wanted[name]["spec"]["filter"]["source"]["registry"]["image"]
        return dict(self.modules)[image]

    def _status_problem(self, name: str, found: Document) -> str | None:
        status = found.get("status") or {}
        if found["spec"] != self.wanted[name]["spec"]:
            return "not what was applied"
        if status.get("phase") != "Synced":
            return f"phase {status.get('phase')}: {status.get('message')}"
        if status["observedGeneration"] != found["metadata"]["generation"]:
            return "status of another generation"
        if status["module"]["sha256"] != self._digest(name):
            return "another module in the status"
        return None

    def _problem(self, found: Document, live: Document) -> str | None:
        record = expected.record_of(live)
        if record is None or record.sha256 != self._digest(found["metadata"]["name"]):
            return "another module in the EnvoyFilter"
        wanted = expected.render(validation.parse(found), record, EnvoyFetch())
        if live["spec"] != wanted["spec"]:
            return "another EnvoyFilter"
        owners = live["metadata"]["ownerReferences"]
        if owners != wanted["metadata"]["ownerReferences"]:
            return "another owner"
        return None


def _is_garbage(found: Document, uids: set[str]) -> bool:
    """Whether all its owners are gone. Without any it would stay."""
    owners = [one["uid"] for one in found["metadata"].get("ownerReferences") or ()]
    return bool(owners) and uids.isdisjoint(owners)


async def expected_objects(installation: Installation, namespace: str) -> ExpectedObjects:
    """No objects yet, and three modules for them; `namespace` has the pull secret."""
    modules = []
    for value in ("one", "two", "three"):
        module = wat.header_filter(value)
        image = await installation.push(value, module)
        modules.append((image, hashlib.sha256(module).hexdigest()))
    return ExpectedObjects(installation, namespace, modules)
