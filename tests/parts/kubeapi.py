"""A client of the API server for tests: kept connections, server-side apply, and watches instead of polls.

Not our own client (`autowasm.kube`), which is under test. Invariant: a call returns the API server's answer or raises. A
call on a kept connection that the server closed before it answered is repeated once, on a new connection.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import quote, urlsplit

from tests.parts import wire

ADMIN = "admin"

Document = dict[str, Any]

_JSON = "application/json"
_MERGE_PATCH = "application/merge-patch+json"
_METADATA = f"{_JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_APPLY_PATCH = "application/apply-patch+yaml"
_FIELD_MANAGER = "kubectl"
_IDLE_SECONDS = 60
"""kube-apiserver closes connections that are idle for 90 s."""
_CHECK_SECONDS = 1
_RETRY_SECONDS = 0.05
_DISCOVERY_SECONDS = 20


class ApiError(Exception):
    """The API server answered with a `status` other than 2xx."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class KubeApi:
    """Calls of the API server at `url`, as users with these bearer `tokens`."""

    def __init__(self, url: str, *, tokens: Mapping[str, str], tls: ssl.SSLContext) -> None:
        self.url = url
        self._tokens = tokens
        self._tls = tls
        self._idle: list[tuple[asyncio.AbstractEventLoop, float, wire.Connection]] = []
        self._resources: dict[str, dict[str, tuple[str, bool]]] = {}

    def headers(self, user: str, *, content_type: str = _JSON) -> dict[str, str]:
        """The headers of a request by `user`."""
        return {
            "authorization": f"Bearer {self._tokens[user]}",
            "accept": _JSON,
            "content-type": content_type,
        }

    async def close(self) -> None:
        """Close the kept connections."""
        while self._idle:
            _, _, connection = self._idle.pop()
            await connection.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        user: str = ADMIN,
        timeout: float = 30,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> wire.Answer:
        """One call, repeated after a 429, as kubectl does. Raises OSError (also TimeoutError) if there is no answer."""
        headers = self.headers(user, content_type=content_type) | {"accept": accept}
        async with asyncio.timeout(timeout):
            while True:
                kept = self._kept()
                connection = kept or await self._open()
                try:
                    answer = await connection.request(method, path, headers=headers, body=body)
                except wire.NoAnswer:
                    await connection.close()
                    if kept is None:
                        raise
                    continue
                except BaseException:
                    await connection.close()
                    raise
                await self._keep(connection)
                if answer.status != 429:
                    return answer
                await asyncio.sleep(_RETRY_SECONDS)  # a new definition's storage is initialized

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        user: str = ADMIN,
        timeout: float = 30,
        content_type: str = "",
    ) -> Document:
        """One call, as JSON; a PATCH is a merge patch unless `content_type` is another type.

        Raises ApiError on a status other than 2xx, and OSError if there is no answer.
        """
        content = json.dumps(body).encode() if body is not None else b""
        kind = content_type or (_MERGE_PATCH if method == "PATCH" else _JSON)
        answer = await self.call(
            method, path, body=content, user=user, timeout=timeout, content_type=kind
        )
        check(answer, method, path)
        said: Document = json.loads(answer.body)
        return said

    async def each(
        self, calls: Iterable[tuple[str, str, Mapping[str, Any] | None]], *, connections: int = 4
    ) -> None:
        """Many calls (method, path, body) as the administrator, over this many connections.

        Raises ApiError on a status other than 2xx, and OSError, within an ExceptionGroup.
        """
        waiting = iter(calls)
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(self._work_through(waiting))

    async def _work_through(
        self, calls: Iterator[tuple[str, str, Mapping[str, Any] | None]]
    ) -> None:
        for method, path, body in calls:
            await self.request(method, path, body=body)

    async def apply(self, *documents: Mapping[str, Any]) -> list[Document]:
        """Server-side apply, as `kubectl apply --server-side --force-conflicts`; the stored objects, in this order.

        Raises ApiError with the API server's message, KeyError for a kind that it does not serve.
        """
        return [
            await self.request(
                "PATCH",
                await self._apply_path(document),
                body=document,
                content_type=_APPLY_PATCH,
            )
            for document in documents
        ]

    async def _apply_path(self, document: Mapping[str, Any]) -> str:
        path = await self.path_of(document)
        return f"{path}?fieldManager={_FIELD_MANAGER}&force=true&fieldValidation=Strict"

    async def dry_run(self, document: Mapping[str, Any]) -> str:
        """`apply` without storing anything; the warning of the API server, empty if there is none. Raises as `apply`."""
        path = f"{await self._apply_path(document)}&dryRun=All"
        answer = await self.call(
            "PATCH",
            path,
            body=json.dumps(document).encode(),
            content_type=_APPLY_PATCH,
        )
        check(answer, "PATCH", path)
        return answer.headers.get("warning", "")

    async def delete(self, path: str, *, missing_ok: bool = True) -> None:
        """Delete the object or the collection at `path`. Does not wait until it is gone, and reads no object."""
        answer = await self.call("DELETE", path)
        if answer.status != 404 or not missing_ok:
            check(answer, "DELETE", path)

    async def list_names(self, collection: str) -> list[tuple[str, str]]:
        """Namespace and name of each object of a collection; spec and status are not read."""
        answer = await self.call("GET", collection, accept=_METADATA)
        check(answer, "GET", collection)
        metadata = [one["metadata"] for one in json.loads(answer.body)["items"] or ()]
        return [(one.get("namespace", ""), one["name"]) for one in metadata]

    async def exists(self, path: str) -> bool:
        """Whether there is an object, or a resource, at `path`."""
        try:
            await self.request("GET", path)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def path_of(self, document: Mapping[str, Any]) -> str:
        """The path of the object. Raises KeyError for a kind that the API server does not serve within some seconds."""
        group, kind = document["apiVersion"], document["kind"]
        # The API server serves a new definition some moments after it is established.
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCOVERY_SECONDS):
                while kind not in self._resources.get(group, {}):
                    self._resources[group] = await self._discover(group)
                    if kind not in self._resources[group]:
                        await asyncio.sleep(_RETRY_SECONDS)
        plural, namespaced = self._resources.get(group, {})[kind]
        metadata = document["metadata"]
        prefix = f"/apis/{group}" if "/" in group else f"/api/{group}"
        within = f"/namespaces/{metadata.get('namespace', 'default')}" if namespaced else ""
        return f"{prefix}{within}/{plural}/{metadata['name']}"

    async def _discover(self, group: str) -> dict[str, tuple[str, bool]]:
        try:
            path = f"/apis/{group}" if "/" in group else f"/api/{group}"
            resources = (await self.request("GET", path))["resources"]
        except ApiError as error:
            if error.status != 404:
                raise
            resources = []
        return {
            one["kind"]: (one["name"], one["namespaced"])
            for one in resources
            if "/" not in one["name"]
        }

    async def apply_crds(self, *definitions: Mapping[str, Any], timeout: float = 60) -> None:
        """`apply` CustomResourceDefinitions, and wait until they are served. Raises ApiError, TimeoutError."""
        await self.apply(*definitions)
        async with asyncio.timeout(timeout):
            for definition in definitions:
                path = await self.path_of(definition)
                await self.wait_object(path, _is_established, timeout=timeout)

    async def wait_for(self, path: str, *, timeout: float = 120) -> Document:
        """The object at `path`, as soon as it exists. Raises TimeoutError."""

        def there(found: Document | None) -> bool:
            return found is not None

        found = await self.wait_object(path, there, timeout=timeout)
        assert found is not None
        return found

    async def wait_gone(self, path: str, *, timeout: float = 60) -> None:
        """Return once there is no object at `path`. Raises TimeoutError."""

        def gone(found: Document | None) -> bool:
            return found is None

        await self.wait_object(path, gone, timeout=timeout)

    async def wait_object(
        self,
        path: str,
        condition: Callable[[Document | None], bool],
        *,
        timeout: float = 30,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> Document | None:
        """The object at `path` (None: there is none) once it fulfils the condition; it watches instead of polling.

        `meanwhile` is called about every second, and may raise. Raises TimeoutError with the last version.
        """
        last: Document | None = None
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        last = await self.request("GET", path)
                    except ApiError as error:
                        if error.status not in (403, 404):  # 403: the namespace does not exist yet
                            raise
                        last = None
                    if condition(last):
                        return last
                    if meanwhile is not None:
                        await meanwhile()
                    version = last["metadata"]["resourceVersion"] if last else ""
                    try:
                        async with asyncio.timeout(_CHECK_SECONDS):
                            async with aclosing(self._versions(path, version)) as versions:
                                async for last in versions:
                                    if condition(last):
                                        return last
                    except TimeoutError:
                        pass  # the outer deadline raises at its own end
                    except (ApiError, OSError):
                        await asyncio.sleep(_RETRY_SECONDS)
        except TimeoutError as error:
            raise TimeoutError(f"{path} after {timeout:g} s: {json.dumps(last)}") from error

    async def _versions(self, path: str, version: str) -> AsyncGenerator[Document | None, None]:
        """Versions of the object after `version`, until the API server ends the watch."""
        collection, _, name = path.rpartition("/")
        query = f"watch=1&fieldSelector={quote(f'metadata.name={name}')}"
        if version:
            query += f"&resourceVersion={version}"
        connection = await self._open()
        try:
            target = f"{collection}?{query}"
            headers = self.headers(ADMIN)
            async with aclosing(connection.stream("GET", target, headers=headers)) as lines:
                async for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return
                    yield None if event["type"] == "DELETED" else event["object"]
        finally:
            await connection.close()

    async def _open(self) -> wire.Connection:
        return await wire.Connection.open(urlsplit(self.url).netloc, tls=self._tls)

    async def _keep(self, connection: wire.Connection) -> None:
        """Keep the connection for the next call if the server does."""
        if connection.usable:
            self._idle.append((asyncio.get_running_loop(), time.monotonic(), connection))
        else:
            await connection.close()

    def _kept(self) -> wire.Connection | None:
        """A connection of this loop that can be used again."""
        loop, now = asyncio.get_running_loop(), time.monotonic()
        for entry in reversed(self._idle):
            owner, since, connection = entry
            if owner is loop and connection.usable and now - since < _IDLE_SECONDS:
                self._idle.remove(entry)
                return connection
        return None


def _is_established(crd: Document | None) -> bool:
    conditions = ((crd or {}).get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def check(answer: wire.Answer, method: str, path: str) -> None:
    """Raise ApiError unless the status is 2xx."""
    if not 200 <= answer.status < 300:
        text = answer.body.decode(errors="replace")
        raise ApiError(f"{method} {path}: {answer.status} {text}", status=answer.status)
