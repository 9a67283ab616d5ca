"""TCP filters whose behaviour in the sandbox must equal that in Envoy. Each case is a script of the filter `probe`."""

from collections.abc import Iterator
from typing import Any

from autowasm.sandbox.plugin import FailurePolicy
from autowasm.sandbox.tcp import Sent, Side
from tests.e2e.sandboxcases.probing import each, lines, probe
from tests.parts.tcpcomparison import TcpCase

_CLIENT, _SERVICE = Side.CLIENT, Side.SERVICE
_TWO_PIECES = (Sent(_CLIENT, b"one"), Sent(_CLIENT, b"two"))
_AND_BACK = (*_TWO_PIECES, Sent(_SERVICE, b"back"))
_PROPERTIES = """connection.id connection_id connection.mtls connection.requested_server_name source.address request.path
request response.code upstream.address upstream.port upstream.request_attempt_count upstream metadata
metadata.filter_metadata plugin_name xds.listener_direction xds.filter_chain_name xds.route_name xds.node.id filter_state
upstream_filter_state upstream.transport_failure_reason upstream.locality connection.termination_details"""


def _case(name: str, script: str = "", **fields: Any) -> TcpCase:
    return TcpCase(f"tcp-{name}", probe(), lines(script), **fields)


def cases() -> Iterator[TcpCase]:
    """All of them."""
    yield _case("plain")
    yield _case(
        "ended-by-the-service",
        sent=(
            *(Sent(_CLIENT, b"hello"), Sent(_SERVICE, b"world"), Sent(_CLIENT, b"bye")),
            *(Sent(_CLIENT, end=True), Sent(_SERVICE, b"end"), Sent(_SERVICE, end=True)),
        ),
    )
    yield _case(
        "ended-by-the-client",
        sent=(
            *(Sent(_CLIENT, b"hello"), Sent(_SERVICE, b"world"), Sent(_SERVICE, end=True)),
            Sent(_CLIENT, b"more"),
        ),
    )
    yield _case(
        "read",
        """downstream_data bytes 2 0 100
        upstream_data bytes 3 0 100
        downstream_data bytes 3 0 9
        new_connection bytes 2 0 9
        log bytes 2 0 9""",
    )
    yield _case(
        "write",
        """downstream_data write 2 0 100 HELLO
        upstream_data write 3 0 0 A""",
    )
    yield _case(
        "hold-from-the-client",
        """downstream_data@1 return 1
        downstream_data@2 bytes 2 0 100""",
        sent=_AND_BACK,
    )
    yield _case(
        "hold-from-the-service",
        """upstream_data@1 return 1
        upstream_data@2 bytes 3 0 100""",
        sent=(Sent(_CLIENT, b"one"), Sent(_SERVICE, b"b1"), Sent(_SERVICE, b"b2")),
    )
    yield _case("hold-the-connection", "new_connection return 1", sent=_AND_BACK)
    for stream in (0, 2, 3):
        yield _case(f"close-{stream}", f"downstream_data close {stream}", sent=_TWO_PIECES)
    yield _case("close-at-once", "new_connection close 2", sent=_TWO_PIECES)
    yield _case("trap", "downstream_data trap", sent=_TWO_PIECES)
    yield _case("trap-from-the-service", "upstream_data trap")
    yield _case("trap-at-once", "new_connection trap", sent=_TWO_PIECES)
    for policy in (FailurePolicy.OPEN, FailurePolicy.DEPRECATED_OPEN):
        name = f"trap-{policy.name}".lower().replace("_", "-")
        yield _case(name, "downstream_data trap", failure_policy=policy)
    yield _case(
        "continue",
        """downstream_data@1 return 1
        downstream_data@1 continue 2""",
        sent=_AND_BACK,
    )
    yield _case(
        "continue-others",
        """downstream_data@1 continue 3
        downstream_data continue 0""",
    )
    yield _case(
        "http-functions",
        """downstream_data reply 200 x
        downstream_data get 0 a
        downstream_data setproperty a b
        downstream_data property a
        log property a""",
    )
    for event in ("new_connection", "downstream_data", "log"):
        script = each(event, "property", _PROPERTIES)
        yield _case(f"properties-in-{event.replace('_', '-')}", script)
