"""ReconcileContext: one AutoWasm as read at the start of a reconcile, its fetch, and the origins of its modules (ADR 7, ADR 15).

An Origin names a module that sidecars may request, and a source to fetch it from again. Invariants: every module of the
EnvoyFilter in place is remembered, with or without a record; a record that does not belong to the spec's source may be forged, so
only its digest is remembered, without a source.
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
from autowasm.artifacts.source import FetchRequest
from autowasm.digest import Sha256Hex
from autowasm.kube.resources import ObjectKey


@dataclass(frozen=True, slots=True)
class ReconcileContext:
    """`document` is the object as the API server returned it."""

    key: ObjectKey
    document: Mapping[str, Any]
    live: Record | None
    """The record of the EnvoyFilter in place; None also if the record contradicts its spec."""
    previous: Status
    digests: tuple[Sha256Hex, ...] = ()
    """The modules that the EnvoyFilter in place makes sidecars fetch, regardless of its record."""
    records: tuple[Record, ...] = ()
    """`live`, and during a staged rollout the record of the module that it replaces."""

    @classmethod
    def of(
        cls, key: ObjectKey, document: Mapping[str, Any], *, live: Mapping[str, Any] | None
    ) -> Self:
        """`live`: our EnvoyFilter in place, if there is one."""
        previous = statuses.read(document.get("status"))
        if live is None:
            return cls(key, document, None, previous)
        records, digests = envoyfilters.records_of(live), envoyfilters.digests_of(live)
        return cls(key, document, next(iter(records), None), previous, digests, records)

    @property
    def in_place(self) -> Sha256Hex | None:
        """The module in place; None if there is no EnvoyFilter of ours, or if it names no module."""
        return self.digests[0] if self.digests else None

    def replicated(self, autowasm: AutoWasm) -> Record | None:
        """The record in the status. None if it does not belong to the spec's source: any client may have written it."""
        if self.previous.module is UNSET:
            return None
        record = self.previous.module.record()
        return record if belongs_to(record, str(autowasm.spec.filter.source)) else None


def remember_origins(
    published: PublishedModules, context: ReconcileContext, autowasm: AutoWasm | None, *more: Record
) -> None:
    """`more`: the record that will be published. `autowasm` None: the spec is invalid."""
    source = autowasm.spec.filter.source if autowasm else None
    secret = autowasm.spec.secret if autowasm else None
    replicated = context.replicated(autowasm) if autowasm else None
    records = dict.fromkeys((*more, *context.records))
    if replicated is not None:
        records[replicated] = None
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
    """The AutoWasm is gone. Sidecars may request the module until the EnvoyFilter is gone too (None), because a new Pod fetches at start.

    The garbage collector takes a moment; an orphaned EnvoyFilter (`kubectl delete --cascade=orphan`) stays permanently.
    """
    digests = envoyfilters.digests_of(envoyfilter) if envoyfilter is not None else ()
    if digests:
        published.set(str(key), tuple(Origin(key.namespace, sha256) for sha256 in digests))
    else:
        published.remove(str(key))


def fetch_request(
    autowasm: AutoWasm, *, record: Record | None = None, known: Record | None = None
) -> FetchRequest:
    """The request to the fetcher for this object."""
    return FetchRequest(
        namespace=autowasm.metadata.namespace,
        owner=f"{autowasm.metadata.namespace}/{autowasm.metadata.name}",
        source=autowasm.spec.filter.source,
        secret=autowasm.spec.secret,
        expected=autowasm.spec.filter.sha256,
        record=record,
        known=known,
    )
