"""What Envoys may ask us for on behalf of an AutoWasm, and where it can be had again (design D7, D8).

Not the fetching. Invariant: a record that is not the spec's own makes at most its digest known, and names no origin: it may
be forged.
"""

from autowasm.api.record import Record, belongs_to
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.published import Origin, PublishedModules
from autowasm.controller.subject import Subject


def remember_origins(
    published: PublishedModules, subject: Subject, autowasm: AutoWasm | None, *more: Record
) -> None:
    """`more`: what is about to be published. `autowasm` None: its spec cannot be read."""
    source = autowasm.spec.filter.source if autowasm else None
    secret = autowasm.spec.secret if autowasm else None
    told = subject.told(autowasm) if autowasm else None
    records = dict.fromkeys(record for record in (*more, subject.live, told) if record is not None)
    published.set(
        str(subject.key),
        tuple(
            Origin(
                subject.key.namespace,
                source if source and belongs_to(record, str(source)) else None,
                secret,
                record,
            )
            for record in records
        ),
        history=[entry.sha256 for entry in subject.previous.history],
    )
