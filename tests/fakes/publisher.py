"""FakePublisher and FakeObjects: a Publisher in memory, and the AutoWasms that it writes statuses into."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autowasm.controller.interfaces import Lookup
from autowasm.errors import SpecError
from autowasm.kube.resources import ObjectKey


@dataclass
class FakeObjects:
    """AutoWasmLookup over documents; the publisher writes statuses into them."""

    documents: dict[ObjectKey, dict[str, Any]] = field(default_factory=dict)
    problems: dict[ObjectKey, SpecError] = field(default_factory=dict)

    def apply(self, document: dict[str, Any]) -> ObjectKey:
        """Like `kubectl apply`: the status stays, the generation counts changes of the spec."""
        metadata = document["metadata"]
        key = ObjectKey(metadata["namespace"], metadata["name"])
        old = self.documents.get(key)
        document = copy.deepcopy(document)
        if old is not None:
            changed = old["spec"] != document["spec"]
            document["metadata"]["generation"] = old["metadata"]["generation"] + changed
            document["status"] = old.get("status", {})
        self.documents[key] = document
        return key

    def lookup(self, key: ObjectKey) -> Lookup | None:
        document = self.documents.get(key)
        if document is None:
            return None
        return Lookup(copy.deepcopy(document), self.problems.get(key))


@dataclass
class FakePublisher:
    """Publisher in memory. Every write that changes something is in `writes`, in order."""

    objects: FakeObjects
    envoyfilters: dict[ObjectKey, dict[str, Any]] = field(default_factory=dict)
    writes: list[tuple[str, Any]] = field(default_factory=list)
    unseen: dict[ObjectKey, dict[str, Any]] = field(default_factory=dict)
    """EnvoyFilters whose label was removed: they exist but are not listed."""
    refusal: Exception | None = None
    """An error that every write of an EnvoyFilter raises."""
    forgotten: list[ObjectKey] = field(default_factory=list)
    resignations: int = 0

    def published(self, key: ObjectKey) -> Mapping[str, Any] | None:
        return self.envoyfilters.get(key)

    def left_behind(self, key: ObjectKey) -> Mapping[str, Any] | None:
        return self.envoyfilters.get(key)

    def resigned(self) -> None:
        self.resignations += 1

    async def find(self, key: ObjectKey, owner: Mapping[str, Any]) -> None:
        if key in self.unseen:
            if self.refusal is not None:
                raise self.refusal
            self.envoyfilters[key] = self.unseen.pop(key)

    async def publish(
        self, key: ObjectKey, owner: Mapping[str, Any], envoyfilter: Mapping[str, Any]
    ) -> bool:
        if self.refusal is not None:
            raise self.refusal
        if self.envoyfilters.get(key) == envoyfilter:
            return False
        self.envoyfilters[key] = copy.deepcopy(dict(envoyfilter))
        self.writes.append(("envoyfilter", self.envoyfilters[key]))
        return True

    async def retract(self, key: ObjectKey) -> None:
        if self.envoyfilters.pop(key, None) is not None:
            self.writes.append(("retract", key))

    def forget(self, key: ObjectKey) -> None:
        self.forgotten.append(key)

    async def write_status(
        self, key: ObjectKey, document: Mapping[str, Any], status: Mapping[str, Any]
    ) -> bool:
        if document.get("status") == status:
            return False
        self.objects.documents[key]["status"] = dict(status)
        self.writes.append(("status", dict(status)))
        return True
