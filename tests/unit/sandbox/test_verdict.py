"""Verdicts: what is refused, what is in doubt, and what starts; and their JSON."""

from collections.abc import Callable
from typing import Any

import pytest

from autowasm.sandbox.engine import Compiled
from autowasm.sandbox.errors import CannotCompile, FailureKind, SandboxError
from autowasm.sandbox.headers import pack
from autowasm.sandbox.plugin import Plugin, SandboxLimits
from autowasm.sandbox.verdict import REQUEST, Doubt, Outcome, Verdict, judge, of_uncompilable
from tests.parts import wat
from tests.unit.sandbox.calling import Call, Out, call, module

_HEADERS = pack([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"a")])
_HTTP_CALL = call("proxy_http_call", b"auth", _HEADERS, b"", b"", 1000, Out(0))
_TRAP = '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (unreachable))'


def _judged(
    compiled: Callable[[bytes], Compiled],
    calls: list[Call] | None = None,
    *,
    returns: int = 1,
    event: str = "proxy_on_configure",
    extra: str = "",
    **fields: Any,
) -> Verdict:
    text = module({event: calls or []}, returns={event: returns}, extra=extra)
    return judge(compiled(text), Plugin("name"), **fields)


def test_a_module_that_starts_and_passes_a_request_starts(
    compiled: Callable[[bytes], Compiled],
) -> None:
    verdict = _judged(compiled)
    assert (verdict.outcome, verdict.message, verdict.doubt) == (Outcome.STARTS, "", None)
    assert verdict.fuel > 0


def test_a_refused_configuration_is_refused_with_the_last_lines(
    compiled: Callable[[bytes], Compiled],
) -> None:
    verdict = _judged(compiled, [call("proxy_log", 4, b"no \x1b[31m key\n")], returns=0)
    assert verdict.outcome is Outcome.REFUSED
    assert (verdict.phase, verdict.kind) == ("configure", FailureKind.RETURNED_FALSE)
    assert verdict.message == "proxy_on_configure returned 0: the module refuses its configuration"
    assert verdict.log == (r"error: no \x1b[31m key\n",)


_VALID_FROM = 1_800_000_000_000_000_000
_EXPIRING = f"""(module
  (import "env" "proxy_get_current_time_nanoseconds" (func $now (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) i32.const 1024)
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (drop (call $now (i32.const 0)))
    (i64.ge_u (i64.load (i32.const 0)) (i64.const {_VALID_FROM}))))"""


@pytest.mark.parametrize(
    ("started_at", "outcome"),
    [(_VALID_FROM - 10**9, Outcome.REFUSED), (_VALID_FROM, Outcome.STARTS)],
)
def test_a_module_may_refuse_because_of_the_time(
    compiled: Callable[[bytes], Compiled], started_at: int, outcome: Outcome
) -> None:
    module = wat.compile_text(_EXPIRING)
    assert judge(compiled(module), Plugin(), started_at=started_at).outcome is outcome


@pytest.mark.parametrize(
    ("made", "doubt", "asked"),
    [
        (_HTTP_CALL, Doubt.CALLOUT, 'the cluster "auth"'),
        (
            call("proxy_grpc_call", b"auth", b"s", b"m", b"", b"", 1000, Out(0)),
            Doubt.CALLOUT,
            'the cluster "auth"',
        ),
        (
            call("proxy_get_property", b"xds\0node\0id", Out(0), Out(1)),
            Doubt.ENVIRONMENT,
            "the property xds.node.id",
        ),
        (
            call("proxy_get_shared_data", b"k", Out(0), Out(1), Out(2)),
            Doubt.ENVIRONMENT,
            'the shared data "k"',
        ),
        (
            call("proxy_call_foreign_function", b"mine", b"", Out(0), Out(1)),
            Doubt.ENVIRONMENT,
            'the foreign function "mine"',
        ),
    ],
)
def test_a_refusal_after_a_question_about_envoy_is_a_doubt(
    compiled: Callable[[bytes], Compiled], made: Call, doubt: Doubt, asked: str
) -> None:
    verdict = _judged(compiled, [made], returns=0)
    assert (verdict.outcome, verdict.doubt) == (Outcome.DOUBTFUL, doubt)
    assert verdict.asked == (asked,)
    assert asked in verdict.message


@pytest.mark.parametrize("path", [b"plugin_name", b"plugin_root_id", b"plugin_vm_id"])
def test_known_properties_of_the_plugin_cause_no_doubt(
    compiled: Callable[[bytes], Compiled], path: bytes
) -> None:
    verdict = _judged(compiled, [call("proxy_get_property", path, Out(0), Out(1))], returns=0)
    assert verdict.outcome is Outcome.REFUSED


def test_a_failing_request_is_a_doubt(compiled: Callable[[bytes], Compiled]) -> None:
    verdict = _judged(compiled, extra=_TRAP)
    assert (verdict.outcome, verdict.doubt) == (Outcome.DOUBTFUL, Doubt.REQUEST_FAILED)
    assert (verdict.phase, verdict.kind) == (REQUEST, FailureKind.TRAP)
    assert verdict.message.startswith("the first request: proxy_on_request_headers failed")


def test_without_a_request_only_the_start_counts(compiled: Callable[[bytes], Compiled]) -> None:
    assert _judged(compiled, extra=_TRAP, smoke_request=False).outcome is Outcome.STARTS


def test_a_request_that_needs_a_cluster_is_a_doubt(compiled: Callable[[bytes], Compiled]) -> None:
    verdict = _judged(compiled, [_HTTP_CALL], event="proxy_on_request_headers", returns=0)
    assert (verdict.outcome, verdict.doubt) == (Outcome.DOUBTFUL, Doubt.CALLOUT)


def test_a_request_that_is_held_is_a_doubt(compiled: Callable[[bytes], Compiled]) -> None:
    verdict = _judged(compiled, event="proxy_on_request_headers", returns=1)
    assert (verdict.outcome, verdict.doubt) == (Outcome.DOUBTFUL, Doubt.REQUEST_HELD)


def test_a_local_reply_is_no_doubt(compiled: Callable[[bytes], Compiled]) -> None:
    reply = call("proxy_send_local_response", 403, b"", b"no", b"", 0xFFFF_FFFF)
    verdict = _judged(compiled, [reply], event="proxy_on_request_headers", returns=1)
    assert verdict.outcome is Outcome.STARTS


def test_a_limit_of_the_sandbox_is_a_doubt(compiled: Callable[[bytes], Compiled]) -> None:
    loop = '(func (export "_start") (loop $l (br $l)))'
    verdict = _judged(compiled, extra=loop, limits=SandboxLimits(start_fuel=1_000_000))
    assert (verdict.outcome, verdict.doubt) == (Outcome.DOUBTFUL, Doubt.LIMIT)


_NEEDS_MEMORY = """(func (export "proxy_on_vm_start") (param i32 i32) (result i32)
  (i32.ne (memory.grow (i32.const {pages})) (i32.const -1)))"""


@pytest.mark.parametrize(
    ("pages", "outcome"), [(10_000, Outcome.DOUBTFUL), (16_384, Outcome.REFUSED)]
)
def test_less_memory_than_envoy_grants_is_no_reason_to_refuse(
    compiled: Callable[[bytes], Compiled], pages: int, outcome: Outcome
) -> None:
    limits = SandboxLimits(memory_bytes=64 * 1024 * 1024)
    verdict = _judged(compiled, extra=_NEEDS_MEMORY.format(pages=pages), limits=limits)
    assert verdict.outcome is outcome


def test_a_crash_of_envoy_at_the_start_is_refused(compiled: Callable[[bytes], Compiled]) -> None:
    made = call("proxy_grpc_call", b"", b"s", b"m", b"", b"", 1000, Out(0))
    verdict = _judged(compiled, [made])
    assert (verdict.outcome, verdict.kind) == (Outcome.REFUSED, FailureKind.CRASH)


def test_a_module_that_cannot_be_compiled_is_a_doubt() -> None:
    verdict = of_uncompilable(CannotCompile("no"))
    assert (verdict.outcome, verdict.doubt) == (Outcome.DOUBTFUL, Doubt.UNSUPPORTED)


def test_verdicts_cross_a_process_boundary(compiled: Callable[[bytes], Compiled]) -> None:
    for verdict in (
        _judged(compiled),
        _judged(compiled, extra=_TRAP),
        _judged(compiled, [_HTTP_CALL], returns=0),
    ):
        assert Verdict.from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"outcome": "Maybe"}', b"\xff"])
def test_other_bytes_are_no_verdict(data: bytes) -> None:
    with pytest.raises(SandboxError):
        Verdict.from_json(data)
