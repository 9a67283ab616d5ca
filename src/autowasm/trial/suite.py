"""The format of a suite of `wasmc test`, and of an answer file of `wasmc run --call`.

`docs/reference/wasmc-test.schema.json` is generated from these Structs. Invariant: a field exists only where it has an effect;
`__post_init__` refuses values that the types of a Struct cannot exclude.
"""

import enum
import re
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from autowasm.api.v1alpha1 import FailStrategy
from autowasm.envoyversion import envoy_version
from autowasm.units import parse_duration


class Matcher(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A condition on a text. Exactly one of the fields."""

    equals: Annotated[str, Meta(description="the whole text")] | UnsetType = UNSET
    contains: Annotated[str, Meta(description="a part of the text")] | UnsetType = UNSET
    regex: (
        Annotated[
            str,
            Meta(description="a regular expression (Python's `re`) that matches part of the text"),
        ]
        | UnsetType
    ) = UNSET
    json: (
        Annotated[
            Any,
            Meta(
                description="the text is JSON and contains at least this: objects may have more keys, lists may not have more items"
            ),
        ]
        | UnsetType
    ) = UNSET
    absent: (
        Annotated[bool, Meta(description="`true`: must be absent; `false`: must be present")]
        | UnsetType
    ) = UNSET

    def __post_init__(self) -> None:
        """Raises ValueError."""
        given = [
            name
            for name in ("equals", "contains", "regex", "json", "absent")
            if getattr(self, name) is not UNSET
        ]
        if len(given) != 1:
            raise ValueError("set exactly one of equals, contains, regex, json and absent")
        _check_regex(self.regex)


def _check_regex(pattern: str | UnsetType) -> None:
    try:
        re.compile("" if pattern is UNSET else pattern)
    except re.error as error:
        raise ValueError(f"regex: {error}") from error


Text: TypeAlias = Annotated[str | Matcher, Meta(description="the exact text, or a condition on it")]
HeaderValue: TypeAlias = str | Annotated[list[str], Meta(description="several values, in order")]
Headers: TypeAlias = dict[str, HeaderValue]
Duration: TypeAlias = Annotated[str, Meta(description="such as 500ms or 2s")]


def _check_duration(name: str, text: str | UnsetType) -> None:
    if text is not UNSET:
        try:
            parse_duration(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


class Body(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A body that is not plain text. Set exactly one of the fields."""

    json: (
        Annotated[Any, Meta(description="the body as JSON, encoded without spaces")] | UnsetType
    ) = UNSET
    base64: Annotated[str, Meta(description="the bytes of the body in base64")] | UnsetType = UNSET
    file: (
        Annotated[str, Meta(description="a file with the body, relative to this file")] | UnsetType
    ) = UNSET
    pieces: (
        Annotated[
            list[str], Meta(description="the body in pieces; the filter gets them one by one")
        ]
        | UnsetType
    ) = UNSET

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if sum(each is not UNSET for each in (self.json, self.base64, self.file, self.pieces)) != 1:
            raise ValueError("set exactly one of json, base64, file and pieces")


AnyBody: TypeAlias = Annotated[str | Body, Meta(description="the body as text, or another form")]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request that the client sends. `content-length` is added."""

    method: str = "GET"
    path: str = "/"
    authority: str = "example.com"
    scheme: str = "http"
    headers: Headers = {}
    body: AnyBody = ""
    trailers: Headers = {}


class Response(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The response of the service behind Envoy. `content-length` is added."""

    status: Annotated[int, Meta(ge=200, le=599)] = 200
    headers: Headers = {}
    body: AnyBody = ""
    trailers: Headers = {}


class Grpc(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The answer to a gRPC call."""

    messages: Annotated[
        list[str], Meta(description="messages before the end of the call, each in base64")
    ] = []
    status: int = 0
    status_message: str = ""
    initial_metadata: Headers = {}
    trailing_metadata: Headers = {}


class Answer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cluster's answer to a callout: a response, `grpc` or `broken`."""

    status: Annotated[int, Meta(ge=200, le=599)] = 200
    headers: Headers = {}
    body: AnyBody = ""
    trailers: Headers = {}
    delay: Duration = "1ms"
    grpc: Grpc | UnsetType = UNSET
    broken: Annotated[
        bool,
        Meta(description="the connection breaks before the answer: the filter gets Envoy's 503"),
    ] = False

    def __post_init__(self) -> None:
        """Raises ValueError."""
        _check_duration("delay", self.delay)
        is_response = self.status != 200 or self.headers or self.body or self.trailers
        if sum(map(bool, (is_response, self.grpc is not UNSET, self.broken))) > 1:
            raise ValueError("grpc, broken and the fields of a response are mutually exclusive")


Answers: TypeAlias = (
    Answer
    | Annotated[
        list[Answer],
        Meta(min_length=1, description="one answer for each call; the last one is repeated"),
    ]
)


class StartOutcome(enum.Enum):
    """Whether the module starts with its configuration."""

    STARTS = "Starts"
    REFUSED = "Refused"


class Level(enum.Enum):
    """The level of a log line, as Envoy names it."""

    TRACE = "trace"
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class LogLine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A condition on a log line. Exactly one of `equals`, `contains` and `regex`, with or without the level."""

    level: Level | UnsetType = UNSET
    equals: str | UnsetType = UNSET
    contains: str | UnsetType = UNSET
    regex: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if sum(each is not UNSET for each in (self.equals, self.contains, self.regex)) != 1:
            raise ValueError("set exactly one of equals, contains and regex")
        _check_regex(self.regex)


ExpectedHeader: TypeAlias = Annotated[
    str | Matcher | list[str],
    Meta(
        description="the exact value; or a condition that one of the values meets; or all values in order"
    ),
]


class ExpectedStart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The expected start of the module with its configuration."""

    outcome: StartOutcome = StartOutcome.STARTS
    message: Text | UnsetType = UNSET
    logs: Annotated[
        list[LogLine], Meta(description="each must match at least one log line of the start")
    ] = []


class ExpectedRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request that the service gets. Omitted fields are not compared."""

    forwarded: Annotated[
        bool, Meta(description="`false`: the service gets no request, or an incomplete one")
    ] = True
    method: Text | UnsetType = UNSET
    path: Text | UnsetType = UNSET
    authority: Text | UnsetType = UNSET
    headers: dict[str, ExpectedHeader] = {}
    body: Text | UnsetType = UNSET
    trailers: dict[str, ExpectedHeader] = {}

    def __post_init__(self) -> None:
        """Raises ValueError."""
        others = (self.method, self.path, self.authority, self.body)
        is_more = any(each is not UNSET for each in others) or self.headers or self.trailers
        if not self.forwarded and is_more:
            raise ValueError("forwarded: false cannot be combined with other fields")


class ExpectedResponse(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The response that the client gets. Omitted fields are not compared."""

    status: int | UnsetType = UNSET
    headers: dict[str, ExpectedHeader] = {}
    body: Text | UnsetType = UNSET
    trailers: dict[str, ExpectedHeader] = {}


class ExpectedCallout(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call of the module to a cluster. Omitted fields are not compared."""

    cluster: str | UnsetType = UNSET
    method: Text | UnsetType = UNSET
    path: Text | UnsetType = UNSET
    headers: dict[str, ExpectedHeader] = {}
    body: Text | UnsetType = UNSET


class Expect(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The expected result of a request. Without `failure`, the module must not fail."""

    request: ExpectedRequest | UnsetType = UNSET
    response: ExpectedResponse | UnsetType = UNSET
    local_reply: (
        Annotated[
            bool,
            Meta(description="whether Envoy itself answers, as after proxy_send_local_response"),
        ]
        | UnsetType
    ) = UNSET
    logs: Annotated[
        list[str | LogLine],
        Meta(description="each must match at least one log line of the request"),
    ] = []
    no_logs: Annotated[
        list[str | LogLine], Meta(description="none may match a log line of the request")
    ] = []
    metrics: Annotated[
        dict[str, int | list[int] | None],
        Meta(
            description="values after the request: a number for a counter or gauge, a list of the recorded values for a histogram, "
            "null for a metric that is not defined"
        ),
    ] = {}
    callouts: (
        Annotated[list[ExpectedCallout], Meta(description="all calls of the request, in order")]
        | UnsetType
    ) = UNSET
    failure: (
        Annotated[
            str | Matcher,
            Meta(description="the module must fail in this request, with this message"),
        ]
        | UnsetType
    ) = UNSET


class Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several requests to the same instance of the filter."""

    request: Request = Request()
    upstream: Response = Response()
    expect: Expect = Expect()


class Setting(
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={
        "config_file": "configFile",
        "root_id": "rootID",
        "fail_strategy": "failStrategy",
        "log_level": "logLevel",
    },
):
    """The filter and its environment. A case overrides individual values of the defaults."""

    module: (
        Annotated[str, Meta(description="the module, a file relative to the suite")] | UnsetType
    ) = UNSET
    config: (
        Annotated[
            dict[str, Any] | str,
            Meta(description="the configuration, like spec.filter.pluginConfig of an AutoWasm"),
        ]
        | UnsetType
    ) = UNSET
    config_file: (
        Annotated[
            str,
            Meta(
                description="a file, relative to the suite, whose bytes are the configuration; replaces config"
            ),
        ]
        | UnsetType
    ) = UNSET
    env: Annotated[
        dict[str, str], Meta(description="environment variables; a case adds its own")
    ] = {}
    root_id: Annotated[str, Meta(description="like spec.filter.rootID")] | UnsetType = UNSET
    fail_strategy: (
        Annotated[FailStrategy, Meta(description="like spec.filter.failStrategy")] | UnsetType
    ) = UNSET
    properties: Annotated[
        dict[str, Any],
        Meta(description="properties as nested mappings; they replace those of the stream itself"),
    ] = {}
    callouts: Annotated[dict[str, Answers], Meta(description="answers by cluster name")] = {}
    log_level: (
        Annotated[
            Level,
            Meta(description="minimum level of the log lines that Envoy writes; info if omitted"),
        ]
        | UnsetType
    ) = UNSET


class Defaults(Setting, frozen=True, kw_only=True):
    """Settings that all cases share."""


class Case(Setting, frozen=True, kw_only=True):
    """One test: a new instance of the filter, and a request or several `steps`."""

    name: Annotated[str, Meta(min_length=1, description="unique in the suite")]
    start: Annotated[
        StartOutcome | ExpectedStart,
        Meta(description="whether the module starts with this configuration"),
    ] = StartOutcome.STARTS
    request: Request | UnsetType = UNSET
    upstream: Response | UnsetType = UNSET
    expect: Expect | UnsetType = UNSET
    steps: (
        Annotated[list[Step], Meta(min_length=1, description="several requests, in order")]
        | UnsetType
    ) = UNSET

    def __post_init__(self) -> None:
        """Raises ValueError."""
        single = [each is not UNSET for each in (self.request, self.upstream, self.expect)]
        if self.steps is not UNSET and any(single):
            raise ValueError("steps cannot be combined with request, upstream or expect")
        if self.expected_start.outcome is StartOutcome.REFUSED and (
            self.steps is not UNSET or any(single)
        ):
            raise ValueError(
                "a filter that is refused gets no request: remove the fields request, upstream, expect and steps"
            )

    @property
    def expected_start(self) -> ExpectedStart:
        """`start` as a Struct."""
        if isinstance(self.start, ExpectedStart):
            return self.start
        return ExpectedStart(outcome=self.start)

    @property
    def all_steps(self) -> list[Step]:
        """The requests of the case: `steps`, or the one of the case itself, even if it has no field of its own."""
        if self.steps is not UNSET:
            return self.steps
        return [
            Step(
                request=self.request or Request(),
                upstream=self.upstream or Response(),
                expect=self.expect or Expect(),
            )
        ]


class Suite(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A suite of `wasmc test`."""

    schema_: Annotated[str, Meta(description="the address of this schema, for editors")] = field(
        default="", name="$schema"
    )
    envoy_version: (
        Annotated[str, Meta(description="like --envoy-version, which overrides it")] | UnsetType
    ) = UNSET
    allow_imports: Annotated[
        list[str], Meta(description="additional host functions, like --allow-import")
    ] = []
    defaults: Defaults = Defaults()
    cases: Annotated[list[Case], Meta(min_length=1)]

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.envoy_version is not UNSET:
            envoy_version(self.envoy_version)
        names: set[str] = set()
        for case in self.cases:
            if case.name in names:
                raise ValueError(f"two cases have the name {case.name!r}")
            names.add(case.name)


SUITE: Final = msgspec.json.Decoder(Suite)
ANSWERS: Final = msgspec.json.Decoder(Answers)
