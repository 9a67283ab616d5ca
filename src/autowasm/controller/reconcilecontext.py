"""Subject: one AutoWasm as one reconcile sees it. Read once, at the start; not kept.

What Envoys may ask us for on behalf of an AutoWasm, and where it can be had again (ADR 7, ADR 15).

Not the fetching. Invariants: whatever the EnvoyFilter in place names is known, with a record or without; a record that is
not the spec's own makes at most its digest known, and names no origin: it may be forged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from msgspec import UNSET

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import status as statuses
from autowasm.api.record import Record, belongs_to
from autowasm.api.status import Status
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.published import Origin, PublishedModules
from autowasm.digest import Sha256Hex
from autowasm.kube.resources import ObjectKey


@dataclass(frozen=True, slots=True)
class ReconcileContext:
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


def remember_origins(
    published: PublishedModules, context: ReconcileContext, autowasm: AutoWasm | None, *more: Record
) -> None:
    """`more`: what is about to be published. `autowasm` None: its spec cannot be read."""
    source = autowasm.spec.filter.source if autowasm else None
    secret = autowasm.spec.secret if autowasm else None
    told = context.told(autowasm) if autowasm else None
    records = dict.fromkeys(record for record in (*more, context.live, told) if record is not None)
    namespace = context.key.namespace
    origins = [
        Origin(namespace, record.sha256, record=record, source=source, secret=secret)
        if source and belongs_to(record, str(source))
        else Origin(namespace, record.sha256)
        for record in records
    ]
    recorded = {record.sha256 for record in records}
    origins += [Origin(namespace, sha256) for sha256 in context.digests if sha256 not in recorded]
    history = [entry.sha256 for entry in context.previous.history]
    published.set(str(context.key), tuple(origins), history=history)


def remember_orphan(
    published: PublishedModules, key: ObjectKey, envoyfilter: Mapping[str, Any] | None
) -> None:
    """Its AutoWasm is gone. Until the EnvoyFilter is too (None), its proxies may ask: a new Pod fetches at its start.

    The garbage collector takes moments; one that was left on purpose (`kubectl delete --cascade=orphan`) stays for good.
    """
    digests = envoyfilters.digests_of(envoyfilter) if envoyfilter is not None else ()
    if digests:
        published.set(str(key), tuple(Origin(key.namespace, sha256) for sha256 in digests))
    else:
        published.remove(str(key))
