"""HTTP filters whose behaviour in the sandbox must equal that in Envoy: header maps, bodies, control, callouts, properties.

Each case is a script of the filter `probe`. Its answers, logs, forwarded messages and results are compared.
"""

from collections.abc import Iterator
from typing import Any

from autowasm.sandbox.clusteranswers import HttpAnswer
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.plugin import FailurePolicy
from tests.e2e.sandboxcases.probing import (
    CHUNKED,
    CHUNKED_POST,
    POST,
    POST_WITH_TRAILERS,
    WITH_TRAILERS,
    each,
    lines,
    probe,
)
from tests.parts.comparison import Case

_TWO = (Request(), Request())
_ANSWER = HttpAnswer(207, (("content-length", "2"), ("x-w", "1")), b"hi", delay=0)
_DENIED = (("grpc-status", "7"), ("grpc-message", "denied"))
_TO_GRPC: tuple[tuple[int, tuple[tuple[str, str], ...], bytes], ...] = (
    *((200, (), b""), (401, (), b""), (503, (), b"hi"), (503, (("grpc-status", "7"),), b"hi")),
    *((200, (), b"hi"), (200, (), bytes(5)), (200, (), bytes((0, 0, 0, 0, 3)) + b"abc")),
    *((200, _DENIED, b""), (404, _DENIED, b"")),
)
"""Status, headers and body of responses to gRPC calls that are not gRPC responses."""
_LARGE = Response(200, (("content-length", "3000"),), (b"a" * 1500, b"b" * 1500))


def _case(name: str, script: str = "", **fields: Any) -> Case:
    return Case(name, probe(), lines(script), **fields)


def _calling(name: str, script: str, **fields: Any) -> Case:
    """A case whose script calls a cluster, which the script names CLUSTER, or SERVICE for gRPC."""
    cluster = f"cluster-{name}"
    clusters = {cluster: fields.pop("answer", _ANSWER)}
    script = script.replace("CLUSTER", cluster).replace("SERVICE", _service(cluster))
    return _case(name, script, clusters=clusters, **fields)


def _service(cluster: str) -> str:
    """A `GrpcService` that names a cluster, encoded as a word of a script."""
    name = bytes([0x0A, len(cluster)]) + cluster.encode()
    return "".join(f"%{byte:02x}" for byte in bytes([0x0A, len(name)]) + name)


def header_maps() -> Iterator[Case]:
    """The effects of the host functions for header maps, and the maps that are available in each phase."""
    yield _case("plain")
    yield _case(
        "pairs",
        """request_headers pairs 0
        response_headers pairs 2
        response_headers pairs 0
        log pairs 0
        log pairs 2""",
        requests=[
            Request(
                "GET",
                "/a?b=c",
                "host.example",
                headers=(("X-One", "1"), ("x-two", "2"), ("x-one", "3"), ("accept", "*/*")),
            )
        ],
    )
    yield _case(
        "order",
        """request_headers add 0 x-a 1
        request_headers add 0 x-b 2
        request_headers add 0 x-a 3
        request_headers replace 0 x-a 4
        request_headers replace 0 X-New 5
        request_headers replace 0 :path /new
        request_headers replace 0 :authority other
        request_headers pairs 0
        request_headers get 0 X-A
        request_headers get 0 none
        request_headers remove 0 x-b
        request_headers remove 0 none
        request_headers size 0
        request_headers size 1
        request_headers size 2
        request_headers size 6
        request_headers size 8
        response_headers remove 2 x-envoy-upstream-service-time
        response_headers add 2 x-a 1
        response_headers add 2 x-a 2
        response_headers add 2 set-cookie 1
        response_headers add 2 set-cookie 2
        response_headers replace 2 x-a 3
        response_headers replace 2 :status 201
        response_headers add 0 x 1
        response_headers size 2
        response_headers pairs 2""",
    )
    yield _case(
        "replaced-maps",
        """request_headers setpairs 0 :method=GET,:path=/p,:authority=au,:scheme=http,x-forwarded-proto=http,b=1,A=2,b=3
        request_headers pairs 0
        response_headers setpairs 2 :status=201,content-length=2,q=1""",
    )
    yield _case("malformed-pairs", "response_headers setraw 2 garbage")
    yield _case(
        "no-pairs",
        """response_headers setraw 2 %00%00%00%00
        response_headers add 2 :status 200""",
    )
    yield _case(
        "host-is-authority",
        """request_headers get 0 host
        request_headers add 0 host x
        request_headers replace 0 HOST y
        request_headers pairs 0""",
    )
    yield _case(
        "trailers",
        """request_trailers pairs 1
        response_trailers pairs 3
        response_trailers add 3 x-more 1""",
        requests=POST_WITH_TRAILERS,
        response=WITH_TRAILERS,
    )
    yield _case(
        "added-trailers",
        """request_body@3 add 1 x-added 1
        request_body@3 pairs 1
        response_body@2 add 3 x-added 2""",
        requests=CHUNKED_POST,
        response=Response(200, CHUNKED, (b"one",)),
    )
    for name in (":path", ":method", ":authority", ":scheme", "x-forwarded-proto"):
        yield _case(f"without-{name.strip(':')}", f"request_headers remove 0 {name}")
    yield _case("empty-path", "request_headers replace 0 :path ~")
    yield _case("relative-path", "request_headers replace 0 :path x/y")
    yield _case("without-status", "response_headers remove 2 :status")
    yield _case("bad-status", "response_headers replace 2 :status abc")
    yield from _inline("request_headers", 0, _REQUEST_NAMES)
    yield from _inline("response_headers", 2, _RESPONSE_NAMES)
    yield _case(
        "inline-trailers",
        _twice("response_trailers", 3, "grpc-status grpc-message x content-type"),
        response=WITH_TRAILERS,
    )
    yield _case(
        "headers-of-the-connection",
        "request_headers pairs 0",
        requests=[
            Request(
                "GET",
                headers=(
                    *(("connection", "keep-alive"), ("keep-alive", "1"), ("te", "trailers")),
                    *(("x-envoy-internal", "1"), ("x-envoy-foo", "1"), ("x-request-id", "mine")),
                    *(("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")),
                    *(("x-envoy-expected-rq-timeout-ms", "5"), ("x-envoy-retry-on", "5xx")),
                ),
            )
        ],
        response=Response(
            200,
            (
                *(("connection", "keep-alive"), ("content-length", "2"), ("server", "up")),
                *(("date", "Mon"), ("x-envoy-upstream-service-time", "5"), ("te", "x")),
                *(("x-envoy-foo", "1"), ("upgrade", "a")),
            ),
            (b"ok",),
        ),
    )


_REQUEST_NAMES = """authorization accept accept-encoding cache-control cookie content-encoding etag origin referer vary
expires if-match if-none-match if-modified-since if-unmodified-since if-range pragma user-agent te expect content-type
x-request-id x-forwarded-for x-forwarded-host x-forwarded-port via upgrade connection keep-alive proxy-connection
grpc-timeout x-envoy-retry-on x-envoy-max-retries x-envoy-original-path x-envoy-attempt-count x-envoy-decorator-operation
x-b3-traceid x-client-trace-id client-trace-id x-envoy-external-address access-control-request-method
access-control-request-headers grpc-accept-encoding accept-language x-envoy-internal x-ot-span-context traceparent
grpc-status grpc-message x-forwarded-client-cert x-envoy-peer-metadata set-cookie range date location transfer-encoding"""
_RESPONSE_NAMES = """date location server proxy-status x-envoy-attempt-count content-length content-type set-cookie vary etag
cache-control expires last-modified www-authenticate via grpc-status grpc-message connection keep-alive upgrade x-request-id
x-envoy-upstream-canary x-envoy-degraded x-envoy-ratelimited access-control-allow-origin access-control-allow-headers
access-control-allow-methods access-control-allow-credentials access-control-expose-headers access-control-max-age
access-control-allow-private-network content-encoding age strict-transport-security x-envoy-immediate-health-check-fail
x-envoy-overloaded x-envoy-upstream-service-time x-envoy-decorator-operation transfer-encoding cookie authorization
grpc-encoding"""


def _twice(event: str, kind: int, names: str) -> str:
    """Add each header twice, to see whether Envoy joins the values, and remove it again."""
    return "\n".join(
        lines(f"""{event} remove {kind} {name}
        {event} add {kind} {name} a
        {event} add {kind} {name} b
        {event} get {kind} {name}
        {event} remove {kind} {name}""")
        for name in names.split()
    )


def _inline(event: str, kind: int, names: str) -> Iterator[Case]:
    listed = names.split()
    for at in range(0, len(listed), 20):
        part = " ".join(listed[at : at + 20])
        yield _case(f"inline-{event.partition('_')[0]}-{at}", _twice(event, kind, part))


def bodies() -> Iterator[Case]:
    """The parts of bodies that a filter reads, writes and holds back."""
    yield _case(
        "read-bodies",
        """request_body bytes 0 0 100
        response_body bytes 1 0 100""",
        requests=POST,
        response=Response(200, CHUNKED, (b"one", b"two")),
    )
    yield _case(
        "bodies-as-call-data",
        """request_body status 8
        request_body bytes 8 0 9
        response_body@1 bytes 8 1 9""",
        requests=CHUNKED_POST,
    )
    yield _case("head", "response_headers pairs 2", requests=[Request("HEAD")])
    yield _case("no-content", "response_headers pairs 2", response=Response(204))
    yield _case(
        "written-pieces",
        """request_body@1 write 0 0 0 X
        request_body@2 write 0 100 5 Y
        request_body@1 write 0 1 1 Z
        request_body@2 write 0 0 2 W
        request_body@3 bytes 0 0 9
        request_body@3 write 0 0 0 END""",
        requests=CHUNKED_POST,
    )
    yield _case(
        "buffered-body",
        """request_body@1 return 1
        request_body@2 bytes 0 0 100
        request_body@2 write 0 0 1000 HELLO!""",
        requests=POST,
    )
    yield _case(
        "watermark",
        """request_body@1 return 2
        request_body@2 bytes 0 0 10""",
        requests=POST,
    )
    yield _case(
        "dropped-piece",
        """request_body@1 return 3
        request_body@2 bytes 0 0 10""",
        requests=CHUNKED_POST,
    )
    yield _case(
        "request-too-large",
        "request_body return 1",
        requests=[
            Request("POST", headers=(("content-length", "3000"),), body=(b"a" * 1500, b"b" * 1500))
        ],
        body_limit=1024,
    )
    yield _case("response-too-large", "response_body return 1", response=_LARGE, body_limit=1024)
    yield _case(
        "held-response-too-large",
        """response_headers return 1
        response_body return 1""",
        response=_LARGE,
        body_limit=1024,
        allow_on_headers_stop_iteration=True,
    )


def control() -> Iterator[Case]:
    """Local replies, pauses, resets, traps, and results that no callback should return."""
    yield _case(
        "reply",
        """request_headers reply 403 denied x-a=b,content-type=application/json
        response_headers pairs 2
        response_headers add 2 x-z z""",
    )
    yield _case("reply-empty", "request_headers reply 429 ~")
    yield _case("reply-in-body", "request_body reply 403 no", requests=POST)
    yield _case(
        "reply-in-response",
        """response_headers reply 403 no x-a=b
        response_body bytes 1 0 10""",
    )
    yield _case("reply-in-response-body", "response_body reply 403 no")
    yield _case("reply-details", "request_headers reply 403 no ~ -1 some%20detail")
    yield _case(
        "reply-twice",
        """request_headers reply 403 no
        request_headers reply 404 again""",
    )
    yield _case(
        "reply-head", "request_headers reply 403 no content-length=7", requests=[Request("HEAD")]
    )
    yield _case("reply-with-a-status", "request_headers reply 200 no :status=404,a=b")
    yield _case(
        "reply-and-the-rest-of-the-request",
        """request_body@1 reply 503 no
        response_headers return 3""",
        requests=CHUNKED_POST,
    )
    yield _case(
        "reply-to-what-was-head",
        """request_headers replace 0 :method GET
        request_headers reply 403 no""",
        requests=[Request("HEAD")],
    )
    grpc = [Request("POST", headers=(("content-type", "application/grpc"),))]
    yield _case(
        "reply-to-what-was-grpc",
        """request_headers remove 0 content-type
        request_headers reply 403 no""",
        requests=grpc,
    )
    yield _case("reply-grpc", "request_headers reply 403 no%0A x-a=b 5", requests=grpc)
    yield _case("reply-grpc-escaped", "request_headers reply 503 a%25%00b%C3 x-a=b", requests=grpc)
    yield _case(
        "reply-then-continue",
        """request_headers reply 200 x
        request_headers continue 0""",
    )
    yield _case(
        "reply-without-details",
        """response_headers reply 503 ~
        done property response.code_details
        done property response.flags""",
    )
    yield _case(
        "resume-at-the-end-of-the-request",
        """request_body@1 return 1
        request_body@2 return 1
        request_body@3 continue 0""",
        requests=CHUNKED_POST,
    )
    yield _case(
        "resume-and-pause-at-the-end-of-the-response",
        """response_body return 1
        response_body@3 continue 1""",
        response=Response(200, CHUNKED, (b"one", b"two")),
    )
    for name in ("request_headers", "response_headers", "response_body"):
        yield _case(f"close-in-{name}".replace("_", "-"), f"{name} close {int(name > 'request_i')}")
    for name, requests in (
        *(("request_headers", (Request(),)), ("request_body", POST)),
        *(("response_headers", (Request(),)), ("response_body", (Request(),))),
        ("request_trailers", POST_WITH_TRAILERS),
    ):
        yield _case(f"hold-{name}".replace("_", "-"), f"{name} return 1", requests=requests)
    yield _case(
        "hold-both-headers",
        """request_headers return 1
        response_headers return 1""",
    )
    for result in (2, 3, 9):
        yield _case(f"headers-return-{result}", f"request_headers return {result}", requests=POST)
    yield _case("body-returns-9", "request_body return 9", requests=POST)
    yield _case("trailers-return-9", "request_trailers return 9", requests=POST_WITH_TRAILERS)
    for policy in FailurePolicy:
        name = f"trap-{policy.name}".lower().replace("_", "-")
        script = "request_headers trap"
        yield _case(name, script, requests=_TWO, failure_policy=policy)
    yield _case("trap-in-response", "response_headers trap")
    yield _case("trap-in-response-body", "response_body trap")
    yield _case(
        "stop-iteration-allowed",
        """request_headers return 1
        request_body@1 bytes 0 0 10
        request_body@1 return 1""",
        requests=POST,
        allow_on_headers_stop_iteration=True,
    )
    yield _case(
        "headers-until-the-end",
        """request_headers return 1
        request_headers pairs 0
        request_body@1 return 1
        request_body@2 add 0 x-late 1
        request_body@2 return 1
        request_body@3 add 0 x-later 1""",
        requests=POST,
        allow_on_headers_stop_iteration=True,
    )
    yield _case(
        "response-until-the-end",
        """response_headers return 1
        response_body@1 return 1
        response_body@2 add 2 x-late 1
        response_body@2 write 1 0 100 changed
        response_body@2 remove 2 content-length
        response_body@2 bytes 1 0 100""",
        allow_on_headers_stop_iteration=True,
    )
    yield _case(
        "continue-what-is-paused-now",
        """request_headers continue 0
        request_headers continue 0
        request_headers return 1
        response_headers continue 1
        response_headers return 1""",
    )
    yield _case("continue-in-body", "request_body continue 0", requests=POST)
    yield _case("continue-the-other", "response_headers continue 0")
    yield _case("close-what-has-passed", "response_body close 0")
    yield _case(
        "log-phase",
        """log get 0 :path
        log get 2 :status
        log get 1 a
        log get 3 a
        log pairs 1
        log pairs 3
        log add 2 a b
        log size 0
        log bytes 0 0 10
        log bytes 1 0 10
        done get 0 :path
        done pairs 2
        delete pairs 2
        delete get 0 :path""",
    )
    yield _case(
        "bad-arguments",
        """request_headers get 9 a
        request_headers add 4 a b
        request_headers add 6 a b
        request_headers pairs 9
        request_headers pairs 7
        request_headers get 6 a
        request_headers get 2 a
        request_headers get 1 a
        request_headers add 1 a b
        request_headers bytes 9 0 1
        request_headers bytes 8 0 1
        request_headers bytes 7 0 1
        request_headers bytes 6 0 100
        request_headers bytes 8 0 100
        request_headers bytes 4 0 1
        request_headers bytes 5 0 1
        request_headers bytes 0 0 1
        request_headers bytes 1 0 1
        request_headers bytes 2 0 1
        request_headers status 0
        request_headers status 4
        request_headers status 7
        request_headers write 0 0 0 x
        request_headers write 6 0 0 x
        request_headers write 4 0 0 x
        request_headers write 9 0 0 x
        request_headers outside
        request_headers continue 9
        request_headers continue 3
        request_headers close 9
        request_headers effective 99
        request_headers log 6 hm
        request_headers log 5 hm
        request_headers log 0 hm
        request_headers level
        request_headers done
        configure bytes 7 0 3
        configure bytes 7 3 3
        configure bytes 7 9000 3
        configure bytes 6 0 9
        configure status 7
        configure status 6
        configure get 0 a
        configure add 0 a b
        configure pairs 0
        configure size 0
        configure continue 0
        configure close 0
        configure reply 200 x
        configure setproperty a b
        configure callstatus
        configure effective 0
        configure effective 1""",
        vm_configuration="vmconf",
        root_id="rooted",
    )


def callouts() -> Iterator[Case]:
    """Calls to clusters, and the effects of the answers. A call has half a minute, unless the case is about its end."""
    yield _case("call-unknown", "request_headers call nowhere /x 1000")
    yield _calling(
        "call",
        """request_headers call CLUSTER /x 30000
        request_headers return 1
        http_call_response pairs 6
        http_call_response bytes 4 0 100
        http_call_response effective
        http_call_response add 0 x-called yes
        http_call_response continue 0""",
    )
    yield _calling(
        "call-with-body",
        """request_headers call CLUSTER /x 30000 somebody
        request_headers return 1
        http_call_response pairs 7
        http_call_response get 6 :status
        http_call_response add 6 a b
        http_call_response size 6
        http_call_response bytes 4 1 1
        http_call_response bytes 4 5 5
        http_call_response write 4 0 0 x
        http_call_response effective
        http_call_response get 6 :status
        http_call_response bytes 4 0 9
        http_call_response callstatus
        http_call_response continue 0""",
    )
    yield _calling(
        "call-arguments",
        """request_headers rawcall CLUSTER :method=GET,:path=/ 30000
        request_headers rawcall CLUSTER :method=GET,:path=/,host=x 30000
        request_headers rawcall CLUSTER :method=GET,:path=/,:authority=x -1
        request_headers rawcall CLUSTER :method=GET,:path=/,:authority=x 0
        request_headers return 1
        http_call_response@2 effective
        http_call_response@2 continue 0
        http_call_response callstatus""",
    )
    yield _calling(
        "call-timeout",
        """request_headers call CLUSTER /x 100
        request_headers return 1
        http_call_response pairs 6
        http_call_response bytes 4 0 100
        http_call_response callstatus
        http_call_response effective
        http_call_response continue 0""",
        answer=HttpAnswer(200, (("content-length", "2"),), b"hi", delay=0.5),
    )
    yield _calling(
        "two-calls",
        """request_headers call CLUSTER /x 30000
        request_headers call CLUSTER /y 30000
        request_headers return 1
        http_call_response@2 effective
        http_call_response@2 reply 418 tea""",
    )
    yield _calling(
        "reply-after-call",
        """request_headers call CLUSTER /x 30000
        request_headers return 1
        http_call_response effective
        http_call_response reply 401 denied
        response_headers pairs 2
        response_headers pairs 0""",
    )
    yield _calling(
        "answer-is-gone-before-the-reply",
        """request_headers call CLUSTER /x 30000
        request_headers return 1
        http_call_response effective
        http_call_response reply 401 denied
        response_headers bytes 4 0 9
        response_headers pairs 6
        response_headers callstatus""",
    )
    yield _calling(
        "answer-is-gone-before-the-body",
        """request_headers call CLUSTER /x 30000
        request_headers return 1
        http_call_response effective
        http_call_response continue 0
        request_body bytes 4 0 9
        request_body get 6 :status""",
        requests=POST,
    )
    yield _calling(
        "reply-of-the-root",
        """request_headers call CLUSTER /x 30000
        request_headers return 1
        http_call_response reply 401 denied""",
    )
    yield _calling(
        "trap-after-call",
        """request_headers call CLUSTER /x 30000
        request_headers return 1
        http_call_response trap""",
    )
    yield _calling(
        "body-after-call",
        """request_headers call CLUSTER /x 30000
        request_headers return 1
        http_call_response effective
        http_call_response get 0 :path
        http_call_response continue 0
        http_call_response get 0 :path
        request_body bytes 0 0 100""",
        requests=POST,
    )
    yield _calling(
        "answer-during-a-body",
        """request_body call CLUSTER /x 30000
        request_body return 1
        http_call_response@1 effective
        http_call_response@1 bytes 0 0 99
        http_call_response@3 effective
        http_call_response@3 bytes 0 0 99
        http_call_response@3 write 0 0 99 NEW
        http_call_response@3 continue 0""",
        requests=CHUNKED_POST,
    )
    yield _calling(
        "trailers-added-after-a-call",
        """request_body return 1
        request_body@3 call CLUSTER /x 30000
        http_call_response effective
        http_call_response add 1 x-late 1
        http_call_response bytes 0 0 99
        http_call_response continue 0""",
        requests=CHUNKED_POST,
    )
    yield _calling(
        "response-trailers-added-after-a-call",
        """response_body return 1
        response_body@2 call CLUSTER /x 30000
        http_call_response effective
        http_call_response add 3 x-late 1
        http_call_response bytes 1 0 99
        http_call_response continue 1""",
        response=Response(200, CHUNKED, (b"one",)),
    )
    yield _calling(
        "call-from-an-answer",
        """request_headers call CLUSTER /x 30000
        request_headers return 1
        http_call_response@1 call CLUSTER /y 30000 body
        http_call_response@2 bytes 4 0 9
        http_call_response@2 effective
        http_call_response@2 continue 0""",
    )
    yield _calling("call-in-the-log", "log call CLUSTER /x 30000\nhttp_call_response bytes 4 0 9")
    yield _calling(
        "grpc-timeout",
        """request_headers grpc SERVICE Method body
        grpc_close callstatus""",
        answer=HttpAnswer(200, (("content-length", "2"),), b"hi", delay=3),
    )
    for number, (status, headers, body) in enumerate(_TO_GRPC):
        yield _calling(
            f"grpc-answered-in-http-{number}",
            """request_headers grpc SERVICE Method body
            request_headers return 1
            grpc_close callstatus
            grpc_close effective
            grpc_close continue 0""",
            answer=HttpAnswer(
                status, (("content-length", str(len(body))), *headers), body, delay=0
            ),
        )
    yield _calling(
        "grpc-stream-answered-in-http",
        """request_headers grpcstream SERVICE Method
        request_headers grpcsend hello 1
        request_headers return 1
        grpc_receive_initial_metadata pairs 4
        grpc_receive_trailing_metadata pairs 5
        grpc_close callstatus
        grpc_close effective
        grpc_close continue 0""",
    )
    yield _calling(
        "grpc-cancelled",
        """request_headers grpc SERVICE Method body
        request_headers grpcclose
        request_headers grpccancel
        request_headers grpcstream SERVICE Method
        request_headers grpccancel
        request_headers grpcsend hello 1
        request_headers grpcclose""",
    )
    yield _case(
        "grpc-arguments",
        """request_headers grpc nowhere Method body
        request_headers grpc %0a%02%0a%00 Method body
        request_headers grpc %0a%03%0a%01x Method body
        request_headers grpcstream nowhere Method
        request_headers grpcstream %0a%03%0a%01x Method
        request_headers grpcsend x 1
        request_headers grpcclose 1
        request_headers grpcclose 2
        request_headers grpcclose 0
        request_headers grpccancel 1
        request_headers grpccancel 2
        request_headers grpccancel 3
        grpc_close callstatus""",
    )


def state() -> Iterator[Case]:
    """Metrics, shared data, output, environment, foreign functions, effective contexts."""
    yield _case(
        "metrics",
        """request_headers metric 0 c1
        request_headers metric 1 g1
        request_headers metric 2 h1
        request_headers metric 3 x
        request_headers metric 0 c1
        request_headers increment 4 5
        request_headers increment 8 2
        request_headers metricvalue 4
        request_headers metricvalue 8
        request_headers increment 4 0
        request_headers increment 4 -1
        request_headers increment 5 -1
        request_headers record 5 9
        request_headers increment 5 -2
        request_headers metricvalue 5
        request_headers record 4 3
        request_headers metricvalue 4
        request_headers record 6 3
        request_headers increment 6 3
        request_headers metricvalue 6
        request_headers increment 7 1
        request_headers metricvalue 7
        request_headers record 7 1
        request_headers increment 400 1
        request_headers record 400 1
        request_headers metricvalue 400
        request_headers record 402 1""",
    )
    yield _case(
        "queue",
        """request_headers queue q
        request_headers resolve ~ q
        request_headers resolve other q
        request_headers enqueue 1 a
        request_headers enqueue 1 ~
        request_headers dequeue 9
        request_headers return 1
        queue_ready@1 dequeue 1
        queue_ready@2 dequeue 1
        queue_ready@2 dequeue 1
        queue_ready@2 effective
        queue_ready@2 continue 0""",
    )
    yield _case(
        "ticks",
        """request_headers tick 100
        request_headers return 1
        tick@2 effective
        tick@2 continue 0
        tick@2 tick 0""",
    )
    yield _case(
        "shared-data",
        """request_headers@1 getshared k
        request_headers@1 setshared k v1
        request_headers@1 getshared k
        request_headers@1 setshared k v2 99
        request_headers@1 setshared k v3 0
        request_headers@1 getshared k
        request_headers@1 setshared new v 7
        request_headers@1 getshared new
        request_headers@1 setshared e ~
        request_headers@1 getshared e""",
        requests=_TWO,
    )
    yield _case(
        "output",
        """request_headers stdout hello%20there
        request_headers stderr error%0Atwo
        request_headers environment KEY
        request_headers environment NOPE
        response_headers stdout x""",
        environment={"KEY": "value", "OTHER": "a=b"},
    )
    yield _case(
        "foreign-functions",
        """request_headers foreign nope x
        request_headers foreign compress aaaaaaaaaaaaaaaaaaaaaaaaaaaaa
        request_headers foreign compress ~
        request_headers foreign uncompress aaaa
        request_headers foreign uncompress x%9cKL%04%02%00%12%1d%02%41
        request_headers foreign clear_route_cache x
        request_headers foreign set_envoy_filter_state %ff
        request_headers foreign declare_property %ff
        request_headers foreign expr_evaluate %ff
        request_headers foreign expr_delete %ff
        request_headers foreign verify_signature %ff""",
    )
    yield _case(
        "effective-context",
        """request_headers effective 1
        request_headers property plugin_name
        request_headers setproperty a b
        request_headers get 0 :path
        request_headers reply 200 x""",
    )


_PROPERTIES = """request.path request.url_path request.host request.scheme request.method request.headers.x-one
request.referer request.useragent request.id request.protocol request.query request.size request.total_size request.nope
request. request response.code response.code_details response.flags response.grpc_status response.headers.x-up
response.trailers response.size response.total_size response.backend_latency response.nope connection.mtls
connection.requested_server_name connection.tls_version connection.id connection.subject_local_certificate
connection.subject_peer_certificate connection.dns_san_local_certificate connection.uri_san_local_certificate
connection.sha256_peer_certificate_digest connection.termination_details connection.transport_failure_reason
connection.nope connection_id upstream.address upstream.port upstream.local_address upstream.tls_version
upstream.transport_failure_reason upstream.request_attempt_count upstream.cx_pool_ready_duration upstream.locality upstream
source.address source.port source.nope destination.address destination.port node.id node.metadata.NAME node.nope
listener_direction listener_metadata cluster_name cluster_metadata route_name route_metadata upstream_host_metadata
metadata metadata.filter_metadata metadata.filter_metadata.x filter_state filter_state.x upstream_filter_state
plugin_name plugin_root_id plugin_vm_id nope nope.x xds.cluster_name xds.route_name xds.listener_direction xds.node.id
xds.node.metadata.NAME xds.virtual_host_name xds.filter_chain_name xds.nope wasm.a a filter_state.wasm.a ~ .a a."""


def properties() -> Iterator[Case]:
    """The properties of a stream in each phase."""
    request = Request(
        "GET",
        "/p/q?a=b&c",
        "host.example",
        headers=(("x-one", "1"), ("x-one", "2"), ("referer", "r"), ("user-agent", "ua")),
    )
    response = Response(200, (("content-length", "2"), ("x-up", "v")), (b"ok",))
    for event in (
        "request_headers",
        "response_headers",
        "response_body@2",
        "log",
        "done",
        "delete",
    ):
        script = "request_headers setproperty a 1\n" + each(event, "property", _PROPERTIES)
        name = f"properties-in-{event.partition('@')[0].replace('_', '-')}"
        yield _case(name, script, requests=[request], response=response)
    script = each("request_body@1", "property", _PROPERTIES)
    yield _case("properties-in-request-body", script, requests=POST, response=response)
    yield _case("properties-in-configure", each("configure", "property", _PROPERTIES), root_id="r")
    yield _case(
        "properties-of-a-reply",
        "request_headers reply 403 x a=b 1 dd\n"
        + each("response_headers", "property", _PROPERTIES)
        + "\n"
        + each("log", "property", _PROPERTIES),
        requests=[request],
    )
    yield _case(
        "set-properties",
        """request_headers setproperty a.b 1
        request_headers setproperty a 2
        request_headers property a
        request_headers property a.b
        request_headers setproperty request.path 3
        request_headers property request.path
        request_headers setproperty plugin_name 3
        request_headers property plugin_name
        response_headers property a
        log property a
        log setproperty a 4
        done property a
        delete setproperty a 4
        delete property a""",
    )


GROUPS = {
    group.__name__: group for group in (header_maps, bodies, control, callouts, state, properties)
}
