"""Subject: one AutoWasm as one reconcile sees it. Read once, at the start; not kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from msgspec import UNSET

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import status as statuses
from autowasm.api.record import Record, belongs_to
from autowasm.api.status import Status
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.digest import Sha256Hex
from autowasm.kube.resources import ObjectKey


@dataclass(frozen=True, slots=True)
class Subject:
    """`document` is the object as the API has it."""

    key: ObjectKey
    document: Mapping[str, Any]
    live: Record | None
    """The record of the EnvoyFilter in place; None also if it carries none that its spec agrees with."""
    previous: Status
    digests: tuple[Sha256Hex, ...] = ()
    """The modules that the EnvoyFilter in place makes proxies fetch, whatever its record says."""

    @classmethod
    def of(
        cls, key: ObjectKey, document: Mapping[str, Any], *, live: Mapping[str, Any] | None
    ) -> Self:
        """`live`: the EnvoyFilter in place, if it is one of ours."""
        previous = statuses.read(document.get("status"))
        if live is None:
            return cls(key, document, None, previous)
        record, digests = envoyfilters.record_of(live), envoyfilters.digests_of(live)
        return cls(key, document, record, previous, digests)

    @property
    def in_place(self) -> Sha256Hex | None:
        """The module in place; None if there is no EnvoyFilter of ours, or one that names no module."""
        return self.digests[0] if self.digests else None

    def told(self, autowasm: AutoWasm) -> Record | None:
        """The record in the status. None if the spec does not name where it comes from: anyone may have written it."""
        if self.previous.module is UNSET:
            return None
        record = self.previous.module.record()
        return record if belongs_to(record, str(autowasm.spec.filter.source)) else None
