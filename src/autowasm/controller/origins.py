"""What Envoys may ask us for on behalf of an AutoWasm, and where it can be had again (ADR 7, ADR 15).

Not the fetching. Invariants: whatever the EnvoyFilter in place names is known, with a record or without; a record that is
not the spec's own makes at most its digest known, and names no origin: it may be forged.
"""

from collections.abc import Mapping
from typing import Any

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api.record import Record, belongs_to
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.published import Origin, PublishedModules
from autowasm.controller.subject import Subject
from autowasm.kube.resources import ObjectKey


def remember_origins(
    published: PublishedModules, subject: Subject, autowasm: AutoWasm | None, *more: Record
) -> None:
    """`more`: what is about to be published. `autowasm` None: its spec cannot be read."""
    source = autowasm.spec.filter.source if autowasm else None
    secret = autowasm.spec.secret if autowasm else None
    told = subject.told(autowasm) if autowasm else None
    records = dict.fromkeys(record for record in (*more, subject.live, told) if record is not None)
    namespace = subject.key.namespace
    origins = [
        Origin(namespace, record.sha256, record=record, source=source, secret=secret)
        if source and belongs_to(record, str(source))
        else Origin(namespace, record.sha256)
        for record in records
    ]
    recorded = {record.sha256 for record in records}
    origins += [Origin(namespace, sha256) for sha256 in subject.digests if sha256 not in recorded]
    history = [entry.sha256 for entry in subject.previous.history]
    published.set(str(subject.key), tuple(origins), history=history)


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
