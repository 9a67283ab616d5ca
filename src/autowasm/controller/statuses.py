"""What is said about an AutoWasm: from an outcome to a Status. Pure.

Not the writing of it. Invariant: `Synced` is said only after the EnvoyFilter is in place; `Degraded` only while one is;
times move only when what they date does.
"""

from msgspec import UNSET

from autowasm.api.record import Record
from autowasm.api.status import (
    MESSAGE_LONGEST,
    Condition,
    ConditionType,
    Module,
    Phase,
    Status,
    remember,
    with_conditions,
)
from autowasm.api.v1alpha1 import REFRESH_ANNOTATION, AutoWasm
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError
from autowasm.units import format_size

_SPEC_REASONS = {"InvalidSpec", "DuplicateObject", "FileInvalid", "MeshWideNotAllowed"}
FOREIGN_REASONS = {"EnvoyFilterConflict", "EnvoyFilterTerminating"}
"""Another's EnvoyFilter has the name, or one that is being deleted."""
WRITE_REASONS = {*FOREIGN_REASONS, "Mutated"}
"""The module is here; it is the EnvoyFilter that could not be put in place."""
SERVICE_REASONS = {"ServiceNotFound", "ServicePortMissing"}
"""The module is here; sidecars could not fetch it. What is in place stays."""
REFUSED = "EnvoyFilterRefused"
"""The module is here; the API server does not take the EnvoyFilter: admission, a quota, rights, etcd's limit. The same."""
_FETCHED = ("True", "Fetched", "the module is fetched, checked and stored")


def synced(autowasm: AutoWasm, record: Record, *, previous: Status, now: str) -> Status:
    """Fetched, checked, stored, published."""
    module = _module(record, previous, now)
    message = (
        f"module sha256:{record.sha256[:12]} ({format_size(record.size)}, ABI {record.abi}) "
        f"from {record.origin} is published"
    )
    return Status(
        phase=Phase.SYNCED,
        message=_cut(message),
        observed_generation=autowasm.metadata.generation,
        module=module,
        history=remember(previous.history, module),
        refresh=autowasm.metadata.annotations.get(REFRESH_ANNOTATION, ""),
        pods=previous.pods,
        conditions=_conditions(
            previous,
            autowasm.metadata.generation,
            now,
            fetched=_FETCHED,
            published=("True", "Published", "the EnvoyFilter is in place"),
            ready=("True", "Synced", ""),
        ),
    )


def fetching(autowasm: AutoWasm, *, live: bool, previous: Status, now: str) -> Status:
    """A fetch is under way for longer than a moment."""
    message = f"fetching {_source_text(autowasm)}"
    if live:
        message += "; the module from before is in place meanwhile"
    return Status(
        phase=Phase.FETCHING,
        message=_cut(message),
        observed_generation=previous.observed_generation,
        module=previous.module,
        history=previous.history,
        refresh=previous.refresh,
        pods=previous.pods,
        conditions=_conditions(
            previous,
            previous.observed_generation,
            now,
            fetched=("Unknown", "Fetching", message),
            published=_published(live),
            ready=("False", "Fetching", ""),
        ),
    )


def spreading(record: Record, *, live: bool, previous: Status, now: str) -> Status:
    """The module is stored here; the other replicas learn what to fetch, before any Envoy does (ADR 14)."""
    message = f"module sha256:{record.sha256[:12]} is stored; the other replicas copy it"
    generation = previous.observed_generation
    return Status(
        phase=Phase.FETCHING,
        message=message,
        observed_generation=generation,
        module=_module(record, previous, now),
        history=previous.history,
        refresh=previous.refresh,
        pods=previous.pods,
        conditions=_conditions(
            previous,
            generation,
            now,
            fetched=_FETCHED,
            published=_published(live),
            ready=("False", "Fetching", ""),
        ),
    )


def failed(
    error: AutoWasmError,
    *,
    generation: int,
    in_place: Sha256Hex | None,
    previous: Status,
    now: str,
) -> Status:
    """The last attempt failed: `Degraded` while a module is in place, else `Failed`."""
    message = str(error)
    if in_place is not None:
        message += f"; the module from before (sha256:{in_place[:12]}) is still in place"
    fetched = ("Unknown" if error.reason in _SPEC_REASONS else "False", error.reason, str(error))
    published = _published(in_place is not None)
    if error.reason in WRITE_REASONS:
        fetched, published = _FETCHED, ("False", error.reason, str(error))
    if error.reason in SERVICE_REASONS or error.reason == REFUSED:
        fetched = _FETCHED
        published = published if in_place is not None else ("False", error.reason, str(error))
    return Status(
        phase=Phase.DEGRADED if in_place is not None else Phase.FAILED,
        message=_cut(message),
        observed_generation=generation,
        module=previous.module,
        history=previous.history,
        refresh=previous.refresh,
        pods=previous.pods,
        conditions=_conditions(
            previous,
            generation,
            now,
            fetched=fetched,
            published=published,
            ready=("False", error.reason, ""),
        ),
    )


def _module(record: Record, previous: Status, now: str) -> Module:
    """The module entry, with the time at which this record was first seen."""
    known = [previous.module] if previous.module is not UNSET else []
    for entry in (*known, *previous.history):
        if entry.record() == record:
            return entry
    return Module.of(record, now)


def _published(live: bool) -> tuple[str, str, str]:
    if live:
        return ("True", "Published", "the EnvoyFilter is in place")
    return ("False", "NotPublished", "no EnvoyFilter was written yet")


def _conditions(
    previous: Status,
    generation: int,
    now: str,
    *,
    fetched: tuple[str, str, str],
    published: tuple[str, str, str],
    ready: tuple[str, str, str],
) -> tuple[Condition, ...]:
    wanted = []
    for kind, (status, reason, message) in (
        (ConditionType.FETCHED, fetched),
        (ConditionType.PUBLISHED, published),
        (ConditionType.READY, ready),
    ):
        wanted.append(
            Condition(
                type=kind.value,
                status=status,
                reason=reason,
                message=_cut(message),
                observed_generation=generation,
            )
        )
    loaded = previous.condition(ConditionType.LOADED)  # not ours to change: see `reporting.py`
    conditions = with_conditions(previous, tuple(wanted), now=now)
    return (*conditions, loaded) if loaded is not None else conditions


def _source_text(autowasm: AutoWasm) -> str:
    source = autowasm.spec.filter.source
    if source.registry is not None:
        return source.registry.image
    return source.object.url.partition("?")[0] if source.object else ""


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_LONGEST else text[: MESSAGE_LONGEST - 1] + "…"
