"""decide(): ADR 7 and ADR 20 as a table."""

from typing import Any

import pytest
from msgspec import UNSET

from autowasm.api.record import Record
from autowasm.api.status import Condition, Module, Phase, Status
from autowasm.controller.decision import ResolveSource, UseRecord, decide
from autowasm.reasons import Reason
from tests.fakes.autowasms import URL, autowasm, digest, record

TAG, OTHER, LATEST = "r.example/f:v1", "r.example/f:v2", "r.example/f:latest"
PINNED = "r.example/f@sha256:" + "1" * 64
LIVE = "live"


def recorded(image: str, *, sha256: str = "a" * 64) -> Record:
    if "@" in image:
        return record(image="r.example/f:x", source=f"registry:{image}", sha256=sha256)
    return record(image=image, sha256=sha256)


def status(
    generation: int = 1,
    *,
    module: Record | None = None,
    history: tuple[Record, ...] = (),
    fetched: str = "True",
    reason: str = "Fetched",
    refresh: str = "",
    phase: Phase = Phase.SYNCED,
) -> Status:
    return Status(
        phase=phase,
        observed_generation=generation,
        module=Module.of(module, "t") if module else UNSET,
        history=tuple(Module.of(each, "t") for each in history),
        refresh=refresh,
        conditions=(Condition(type="Fetched", status=fetched, reason=reason),),
    )


def object_of(image: str, *, generation: int = 1, refresh: str | None = None, **fields: Any) -> Any:
    annotations = {} if refresh is None else {"wasm.tcm.io/refresh": refresh}
    metadata = {"annotations": annotations}
    return autowasm(image=image, generation=generation, metadata=metadata, **fields)


OLD, NEW = recorded(TAG), recorded(OTHER, sha256="b" * 64)
CURRENT = recorded(LATEST)

USES: dict[str, tuple[Any, Record | None, Status, Record]] = {
    "a restart": (object_of(TAG), OLD, status(), OLD),
    "a restart without a status": (object_of(TAG), OLD, Status(), OLD),
    "a restart before the EnvoyFilter was written": (object_of(TAG), None, status(module=OLD), OLD),
    "another generation, same source": (object_of(TAG, generation=2), OLD, status(), OLD),
    "after a failure": (object_of(TAG), OLD, status(fetched="False", reason="X"), OLD),
    "back to an earlier source": (
        object_of(TAG, generation=3), NEW, status(2, module=NEW, history=(NEW, OLD)), OLD,
    ),
    "the live record before the status's": (
        object_of(TAG), OLD, status(module=recorded(TAG, sha256="c" * 64)), OLD,
    ),
    "the digest that is expected": (object_of(TAG, sha256=digest("a")), OLD, status(), OLD),
    "the entry with the digest that is expected": (
        object_of(TAG, sha256=digest("c")), OLD, status(history=(OLD, recorded(TAG, sha256="c" * 64))),
        recorded(TAG, sha256="c" * 64),
    ),
    "latest, restarted": (object_of(LATEST), CURRENT, status(), CURRENT),
    "Always, restarted": (object_of(TAG, pullPolicy="Always"), OLD, status(), OLD),
    "latest with IfNotPresent, changed": (
        object_of(LATEST, generation=2, pullPolicy="IfNotPresent"), CURRENT, status(), CURRENT,
    ),
    "a digest with Always, changed": (
        object_of(PINNED, generation=2, pullPolicy="Always"), recorded(PINNED), status(), recorded(PINNED),
    ),
    "Always, but the published module is lost": (
        object_of(LATEST), CURRENT, status(fetched="False", reason=Reason.PUBLISHED_MODULE_LOST), CURRENT,
    ),
    "refresh that was handled": (object_of(TAG, refresh="1"), OLD, status(refresh="1"), OLD),
    "refresh that was taken away": (object_of(TAG), OLD, status(refresh="1"), OLD),
    "an empty refresh": (object_of(TAG, refresh=""), OLD, status(), OLD),
}  # fmt: skip


@pytest.mark.parametrize("case", USES)
def test_uses_the_record_at(case: str) -> None:
    wanted, live, previous, expected = USES[case]
    assert decide(wanted, live=live, previous=previous) == UseRecord(expected)


RESOLVES: dict[str, tuple[Any, Record | None, Status]] = {
    "nothing known": (object_of(TAG), None, Status()),
    "another source": (object_of(OTHER, generation=2), OLD, status()),
    "another kind of source": (
        object_of(TAG, generation=2, source={"object": {"url": URL}}), OLD, status(),
    ),
    "another digest expected": (object_of(TAG, generation=2, sha256=digest("d")), OLD, status()),
    "latest, changed": (object_of(LATEST, generation=2), CURRENT, status()),
    "Always, changed": (object_of(TAG, generation=2, pullPolicy="Always"), OLD, status()),
    "Always, the change's resolution failed": (
        object_of(LATEST, generation=2), CURRENT, status(2, fetched="False", reason="RegistryUnavailable"),
    ),
    "Always, the change's Secret was broken": (
        object_of(LATEST, generation=2), CURRENT, status(2, fetched="False", reason="SecretInvalid"),
    ),
    "Always, the change's resolution is still on its way to the other replicas": (
        object_of(LATEST), CURRENT, status(phase=Phase.FETCHING),
    ),
    "Always, nothing known of the past": (object_of(LATEST), CURRENT, Status()),
    "refresh": (object_of(TAG, refresh="1"), OLD, status()),
    "another refresh": (object_of(TAG, refresh="2"), OLD, status(refresh="1")),
    "refresh, the published module is lost": (
        object_of(TAG, refresh="1"), OLD, status(fetched="False", reason=Reason.PUBLISHED_MODULE_LOST),
    ),
    "a forged live record": (
        object_of(TAG), recorded("evil.example/f:v1"), status(),
    ),
    "a forged status": (
        object_of(TAG), None,
        status(module=record(image="evil.example/f:v1", source=f"registry:{TAG}"),
               history=(record(image=TAG, sha256="../x"),)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RESOLVES)
def test_resolves_at(case: str) -> None:
    wanted, live, previous = RESOLVES[case]
    assert isinstance(decide(wanted, live=live, previous=previous), ResolveSource)


def test_resolve_key_differs_for_each_generation_and_refresh() -> None:
    wishes = {
        decide(object_of(LATEST, generation=generation, refresh=refresh), live=None, previous=Status())
        for generation in (1, 2)
        for refresh in (None, "1", "2")
    }  # fmt: skip
    assert len(wishes) == 6


def test_polled_record_replaces_the_live_record() -> None:
    moved = recorded(TAG, sha256="c" * 64)
    assert decide(object_of(TAG), live=OLD, previous=status(), found=moved) == UseRecord(moved)


@pytest.mark.parametrize(
    ("wanted", "previous"),
    [
        (object_of(TAG, refresh="now"), status()),
        (object_of(TAG, generation=2, pullPolicy="Always"), status()),
        (object_of(OTHER), status()),
    ],
    ids=["the user asks for a look now", "the spec was changed since", "another source"],
)
def test_a_changed_resolve_key_takes_precedence_over_a_polled_record(
    wanted: Any, previous: Status
) -> None:
    moved = recorded(TAG, sha256="c" * 64)
    assert isinstance(decide(wanted, live=OLD, previous=previous, found=moved), ResolveSource)


def test_polled_record_that_was_lost_since_is_not_used() -> None:
    moved = recorded(TAG, sha256="c" * 64)
    assert decide(
        object_of(TAG), live=OLD, previous=status(), found=moved, lost={moved}
    ) == UseRecord(OLD)


def test_live_record_is_kept_although_its_origin_lost_it() -> None:
    assert decide(object_of(TAG), live=OLD, previous=status(), lost={OLD}) == UseRecord(OLD)


def test_record_that_is_gone_and_not_live_is_skipped_for_the_next_one() -> None:
    earlier = recorded(TAG, sha256="c" * 64)
    previous = status(module=OLD, history=(earlier,))
    assert decide(object_of(TAG), live=NEW, previous=previous, lost={OLD}) == UseRecord(earlier)


@pytest.mark.parametrize(
    "wanted",
    [object_of(TAG, generation=2), object_of(TAG, pullPolicy="Always")],
    ids=["the spec was changed, IfNotPresent", "Always, the spec is as it was"],
)
def test_polled_record_is_used_unless_always_resolves_a_change(wanted: Any) -> None:
    moved = recorded(TAG, sha256="c" * 64)
    assert decide(wanted, live=OLD, previous=status(), found=moved) == UseRecord(moved)


def test_polled_record_is_not_used_if_the_spec_expects_another_digest() -> None:
    moved = recorded(TAG, sha256="c" * 64)
    wanted = object_of(TAG, sha256=digest("a"))
    assert decide(wanted, live=OLD, previous=status(), found=moved) == UseRecord(OLD)


def test_generation_does_not_change_the_decision_for_if_not_present() -> None:
    wishes = [
        decide(object_of(TAG, generation=generation), live=None, previous=Status())
        for generation in (1, 2)
    ]
    assert wishes[0] == wishes[1]
