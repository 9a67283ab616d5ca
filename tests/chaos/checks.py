"""Assertions that all cases share."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from tests.parts.audit import Entry
from tests.parts.downloads import Watch
from tests.parts.fleet import Fleet


@asynccontextmanager
async def unharmed(fleet: Fleet) -> AsyncIterator[Watch]:
    """No download is wrong and no request through Envoy fails while the context lasts."""
    async with fleet.steady() as (watch, report):
        yield watch
    assert watch.wrong == [], (
        f"{watch.wrong[:5]}: {len(watch.wrong)} of {watch.good + len(watch.wrong)}"
    )
    assert report.failed == 0, str(report)
    assert watch.good > 0
    assert report.total > 0


@dataclass(frozen=True, slots=True)
class Audited:
    """The writes of all replicas since `since`, from the audit log."""

    fleet: Fleet
    since: int

    @classmethod
    async def begin(cls, fleet: Fleet) -> Self:
        """Writes from now on."""
        return cls(fleet, await fleet.installation.audit.position())

    async def _taken(self) -> list[Entry]:
        writes = await self.fleet.installation.writes(self.since)
        return [one for one in writes if one.code < 300 and one.resource != "events"]

    async def rewritten(self) -> list[str]:
        """EnvoyFilters that were written more than once with the same spec."""
        seen: dict[str, Mapping[str, Any]] = {}
        twice = []
        for one in await self._taken():
            if one.resource == "envoyfilters":
                spec = one.request.get("spec") or {}
                if seen.get(one.name) == spec:
                    twice.append(str(one))
                seen[one.name] = spec
        return twice

    async def changed_nothing(self) -> list[str]:
        """Updates that the API server accepted but that changed nothing."""
        return [str(one) for one in await self._taken() if one.changed_nothing]
