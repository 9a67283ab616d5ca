"""Requests arrive as they are sent; an answer is read as if an attacker wrote it."""

import json
from dataclasses import replace
from types import MappingProxyType

import pytest

from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion
from autowasm.preflight.isolation import Enforced
from autowasm.preflight.messages import Answer, NoVerdictReason, Problem, Request
from autowasm.sandbox.plugin import FailurePolicy, Plugin, SandboxLimits
from autowasm.sandbox.verdict import Outcome, Verdict

PLUGIN = Plugin(
    name="a",
    root_id="root",
    vm_id="vm",
    configuration=bytes(range(256)),
    vm_configuration=None,
    environment=MappingProxyType({"B": "2", "A": "é\n"}),
    failure_policy=FailurePolicy.RELOAD,
    allow_on_headers_stop_iteration=True,
)
REQUEST = Request(PLUGIN, SandboxLimits(start_fuel=7), EnvoyVersion(1, 40), frozenset({"x", "y"}))
ANSWER = Answer(Enforced(seccomp=True, landlock=7), verdict=Verdict(Outcome.REFUSED, "no"))


def test_a_request_arrives_as_it_was_sent() -> None:
    assert Request.from_json(REQUEST.to_json()) == REQUEST


def test_equal_requests_are_equal_bytes() -> None:
    other = replace(PLUGIN, environment={"A": "é\n", "B": "2"})
    again = Request(other, SandboxLimits(start_fuel=7), EnvoyVersion(1, 40), frozenset({"y", "x"}))
    assert again.to_json() == REQUEST.to_json()


@pytest.mark.parametrize(
    "changed",
    [
        {"configuration": b"x"},
        {"configuration": None},
        {"vm_configuration": b""},
        {"environment": {"A": "1"}},
        {"root_id": "other"},
        {"name": "b"},
        {"failure_policy": FailurePolicy.CLOSED},
    ],
)
def test_every_difference_that_a_module_can_notice_changes_the_request(
    changed: dict[str, object],
) -> None:
    other = Request(
        replace(PLUGIN, **changed),  # type: ignore[arg-type]
        REQUEST.limits,
        REQUEST.envoy,
        REQUEST.extra_imports,
    )
    assert other.to_json() != REQUEST.to_json()
    assert replace(REQUEST, envoy=OLDEST_ENVOY).to_json() != REQUEST.to_json()


def test_an_answer_arrives_as_it_was_sent() -> None:
    assert Answer.from_json(ANSWER.to_json()) == ANSWER
    problem = Answer(None, problem=Problem(NoVerdictReason.CANNOT_LOAD, "old"))
    assert Answer.from_json(problem.to_json()) == problem


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"enforced":' * 50_000,
        json.dumps({"enforced": 1}).encode(),
        json.dumps({"enforced": None, "verdict": {"outcome": "Great"}}).encode(),
        json.dumps({"enforced": None, "verdict": {"outcome": "Starts", "fuel": 1e400}}).encode(),
        json.dumps({"enforced": None, "compiled": "1"}).encode(),
        json.dumps({"enforced": None, "verdict": {"outcome": "Starts", "fuel": 2**70}}).encode(),
        json.dumps({"enforced": None, "verdict": {"outcome": "Starts", "fuel": -1}}).encode(),
        json.dumps({"enforced": None, "problem": {"reason": "mine", "message": ""}}).encode(),
        ANSWER.to_json() + b"x",
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an answer"):
        Answer.from_json(data)


def test_texts_of_an_answer_are_printable_and_short() -> None:
    hostile = Verdict(
        Outcome.REFUSED,
        message="\x1b[31m\n" + "m" * 10_000,
        phase="p\n" * 1000,
        frames=("\r",) * 1000,
        log=("\u202e\n" + "l" * 100_000,) * 1000,
        asked=("\0",),
    )
    verdict = Answer.from_json(Answer(None, verdict=hostile).to_json()).verdict
    assert verdict is not None
    texts = (verdict.message, verdict.phase, *verdict.frames, *verdict.log, *verdict.asked)
    assert all(text.isprintable() for text in texts)
    assert max(map(len, texts)) <= 4096
    assert len(verdict.log) == len(verdict.frames) == 200
    message = Answer(None, problem=Problem(NoVerdictReason.CRASHED, "a\nb")).to_json()
    assert Answer.from_json(message).problem == Problem(NoVerdictReason.CRASHED, "a\\nb")
