"""Requests to the API server, read from its audit log (`kubernetes.py` switches it on).

Not a live feed: each read returns the requests answered so far. Invariant: a request appears once, with its
final status; for a watch that still runs, there is only its start.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

_CHANGING = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One request. `resource` has its subresource after a slash; times are seconds since the epoch."""

    id: str
    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    code: int
    received: float
    answered: float
    request: Mapping[str, Any]
    """The body that was sent, empty unless the log's level is `RequestResponse`."""
    response: Mapping[str, Any]

    @property
    def changes(self) -> bool:
        """Whether it is a write."""
        return self.verb in _CHANGING

    @property
    def changed_nothing(self) -> bool:
        """Whether the API server accepted an update but stored nothing, because the object was unchanged."""
        before, after = (
            (document.get("metadata") or {}).get("resourceVersion")
            for document in (self.request, self.response)
        )
        return self.verb == "update" and before is not None and before == after

    def __str__(self) -> str:
        return f"{self.verb} {self.group}/{self.resource} {self.namespace}/{self.name}: {self.code}"


@dataclass(frozen=True, slots=True)
class AuditLog:
    """The log in the file `path`."""

    path: Path

    async def position(self) -> int:
        """The end of the log now: give it to `entries` as `since`."""
        return (await asyncio.to_thread(self.path.stat)).st_size

    async def entries(self, *, user: str, since: int = 0) -> list[Entry]:
        """All requests of the user that were answered, or begun as a watch, after the position `since`."""
        return await asyncio.to_thread(self._read, user, since)

    async def has_write(self, version: str, *, user: str) -> bool:
        """Whether a write of the user that made this resourceVersion is in the log, whose level must be `RequestResponse`."""
        text = f'"resourceVersion":"{version}"'
        entries = await asyncio.to_thread(self._read, user, 0, text)
        return any(
            entry.changes
            and (entry.response.get("metadata") or {}).get("resourceVersion") == version
            for entry in entries
        )

    async def writes(self, *, user: str, since: int = 0) -> list[Entry]:
        """The writes of `entries`."""
        return [entry for entry in await self.entries(user=user, since=since) if entry.changes]

    def _read(self, user: str, since: int, text: str = "") -> list[Entry]:
        """`text`: a part of the lines, to parse no others."""
        entries: dict[str, Entry] = {}
        marked = f'"username":"{user}"'.encode()
        with self.path.open("rb") as log:
            log.seek(since)
            for line in log:
                if line.endswith(b"\n") and marked in line and text.encode() in line:
                    entry = _entry(json.loads(line))
                    if entry.user == user:
                        entries[entry.id] = entry
        return list(entries.values())


def _entry(line: Mapping[str, Any]) -> Entry:
    about = line.get("objectRef") or {}
    resource = "/".join(part for part in (about.get("resource"), about.get("subresource")) if part)
    return Entry(
        id=line["auditID"],
        user=line["user"].get("username", ""),
        verb=line["verb"],
        group=about.get("apiGroup", ""),
        resource=resource or line["requestURI"].partition("?")[0],
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        code=(line.get("responseStatus") or {}).get("code", 0),
        received=datetime.fromisoformat(line["requestReceivedTimestamp"]).timestamp(),
        answered=datetime.fromisoformat(line["stageTimestamp"]).timestamp(),
        request=line.get("requestObject") or {},
        response=line.get("responseObject") or {},
    )
