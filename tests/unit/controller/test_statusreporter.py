"""Log, Events and metrics about an AutoWasm."""

import pytest

from autowasm.api.status import MAX_MESSAGE, ConditionType, Phase, Status
from autowasm.controller import statusreporter
from autowasm.errors import AutoWasmError, SourceUnavailable, SpecError
from tests.fakes.autowasms import URL, autowasm, record

NOW = "2026-01-01T00:00:00Z"


def conditions(status: Status) -> dict[str, tuple[str, str]]:
    return {each.type: (each.status, each.reason) for each in status.conditions}


def test_synced_message_names_module_and_source() -> None:
    status = statusreporter.synced_status(
        autowasm(generation=4), record(), previous=Status(), now=NOW
    )
    assert status.message == (
        "module sha256:aaaaaaaaaaaa (1.2 KiB, ABI 0.2.1) from "
        f"registry.example/team/filter@sha256:{'1' * 64} is published"
    )
    assert status.observed_generation == 4
    assert {each.observed_generation for each in status.conditions} == {4}


def test_same_state_again_is_the_same_status() -> None:
    first = statusreporter.synced_status(autowasm(), record(), previous=Status(), now=NOW)
    assert statusreporter.synced_status(autowasm(), record(), previous=first, now="later") == first
    error = SourceUnavailable("down")
    failed = statusreporter.failed_status(
        error, generation=1, in_place=None, previous=first, now=NOW
    )
    assert (
        statusreporter.failed_status(
            error, generation=1, in_place=None, previous=failed, now="later"
        )
        == failed
    )


@pytest.mark.parametrize(
    ("error", "live", "phase", "fetched", "published"),
    [
        (SourceUnavailable("x"), False, Phase.FAILED, ("False", "SourceUnavailable"), ("False", "NotPublished")),
        (SourceUnavailable("x"), True, Phase.DEGRADED, ("False", "SourceUnavailable"), ("True", "Published")),
        (SpecError("spec", "x"), True, Phase.DEGRADED, ("Unknown", "InvalidSpec"), ("True", "Published")),
        (SpecError("metadata.name", "x", reason="EnvoyFilterConflict"), False, Phase.FAILED,
         ("True", "Fetched"), ("False", "EnvoyFilterConflict")),
        (AutoWasmError("x", reason="Mutated"), True, Phase.DEGRADED, ("True", "Fetched"), ("False", "Mutated")),
    ],
)  # fmt: skip
def test_failure_is_reported_where_it_happened(
    error: AutoWasmError,
    live: bool,
    phase: Phase,
    fetched: tuple[str, str],
    published: tuple[str, str],
) -> None:
    status = statusreporter.failed_status(
        error,
        generation=3,
        in_place=record().sha256 if live else None,
        previous=Status(),
        now=NOW,
    )
    assert (status.phase, status.observed_generation) == (phase, 3)
    progress = conditions(status).keys() & {"Reconciling", "Stalled"}
    assert conditions(status) == {
        "Fetched": fetched,
        "Published": published,
        "Ready": ("False", error.reason),
        progress.pop(): ("True", error.reason),
    }


def test_reconciling_and_stalled_follow_the_last_attempt() -> None:
    previous, found = Status(), []
    for error in (SourceUnavailable("x"), SpecError("spec", "x"), None, SourceUnavailable("x")):
        if error is None:
            previous = statusreporter.fetching_status(
                autowasm(), live=False, previous=previous, now=NOW
            )
        else:
            previous = statusreporter.failed_status(
                error, generation=1, in_place=None, previous=previous, now=NOW
            )
        found.append(conditions(previous).keys() & {"Reconciling", "Stalled"})
    assert found == [{"Reconciling"}, {"Stalled"}, {"Reconciling"}, {"Reconciling"}]
    synced = statusreporter.synced_status(autowasm(), record(), previous=previous, now=NOW)
    assert conditions(synced).keys() == {"Fetched", "Published", "Ready"}


def test_a_long_stall_keeps_its_first_time() -> None:
    error, previous = SpecError("spec", "x"), Status()
    for now in (NOW, "2026-01-01T00:05:00Z"):
        previous = statusreporter.failed_status(
            error, generation=1, in_place=None, previous=previous, now=now
        )
    stalled = previous.condition(ConditionType.STALLED)
    assert stalled is not None
    assert stalled.last_transition_time == NOW


def test_failure_keeps_module_history_and_pods() -> None:
    before = statusreporter.synced_status(autowasm(), record(), previous=Status(), now=NOW)
    after = statusreporter.failed_status(
        SourceUnavailable("x"), generation=2, in_place=record().sha256, previous=before, now="later"
    )
    assert (after.module, after.history) == (before.module, before.history)


def test_fetching_status_does_not_observe_the_new_generation() -> None:
    status = statusreporter.fetching_status(
        autowasm(generation=2), live=True, previous=Status(), now=NOW
    )
    assert status.observed_generation == 0
    assert "the previous module stays in place" in status.message
    assert conditions(status)["Published"] == ("True", "Published")


def test_query_of_a_url_is_not_shown() -> None:
    signed = autowasm(source={"object": {"url": URL + "?signature=s3cret"}})
    status = statusreporter.fetching_status(signed, live=False, previous=Status(), now=NOW)
    assert URL in status.message
    assert "s3cret" not in str(status)


def test_long_texts_are_cut() -> None:
    status = statusreporter.failed_status(
        SourceUnavailable("x" * 5000), generation=1, in_place=None, previous=Status(), now=NOW
    )
    assert len(status.message) == MAX_MESSAGE
    assert all(len(each.message) <= MAX_MESSAGE for each in status.conditions)
