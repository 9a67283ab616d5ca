"""TCP connections: what the comparison with Envoy cannot show."""

from collections.abc import Callable

import pytest

from autowasm.sandbox.clusteranswers import HttpAnswer
from autowasm.sandbox.engine import Compiled
from autowasm.sandbox.headers import pack
from autowasm.sandbox.plugin import FailurePolicy, Plugin
from autowasm.sandbox.tcp import Sent, Side, converse
from autowasm.sandbox.vm import StartFailure, Vm
from tests.unit.sandbox.calling import Out, call, module

_SENT = (Sent(Side.CLIENT, b"hello"), Sent(Side.SERVICE, b"world"))


def test_bytes_pass_in_both_directions(compiled: Callable[[bytes], Compiled]) -> None:
    vm = Vm(compiled(module({})), Plugin())
    vm.start()
    found = converse(vm, _SENT)
    assert (found.to_service, found.to_client) == (b"hello", b"world")
    assert found.service_ended
    assert found.client_ended
    assert not found.is_closed


def test_a_connection_waits_for_a_callout(compiled: Callable[[bytes], Compiled]) -> None:
    headers = pack([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"a")])
    text = module(
        {
            "proxy_on_new_connection": [
                call("proxy_http_call", b"c", headers, b"", b"", 0, Out(0))
            ],
            "proxy_on_http_call_response": [
                call("proxy_set_effective_context", 2),
                call("proxy_continue_stream", 2),
            ],
        },
        returns={"proxy_on_new_connection": 1},
    )
    vm = Vm(compiled(text), Plugin(), clusters={"c": HttpAnswer(delay=1)})
    vm.start()
    found = converse(vm, _SENT[:1])
    assert found.to_service == b"hello"
    assert [each.cluster for each in found.callouts] == ["c"]


def test_a_connection_that_is_never_let_through_is_held(
    compiled: Callable[[bytes], Compiled],
) -> None:
    text = module({"proxy_on_new_connection": []}, returns={"proxy_on_new_connection": 1})
    vm = Vm(compiled(text), Plugin())
    vm.start()
    found = converse(vm, _SENT)
    assert found.is_held
    assert (found.to_service, found.to_client) == (b"", b"")


@pytest.mark.parametrize("policy", list(FailurePolicy))
def test_a_filter_that_did_not_start_is_treated_by_its_policy(
    compiled: Callable[[bytes], Compiled], policy: FailurePolicy
) -> None:
    text = compiled(module({"proxy_on_configure": []}, returns={"proxy_on_configure": 0}))
    vm = Vm(text, Plugin(failure_policy=policy))
    assert isinstance(vm.start(), StartFailure)
    found = converse(vm, _SENT)
    assert (found.to_service == b"hello") == vm.plugin.fail_open
    assert found.is_closed != vm.plugin.fail_open
