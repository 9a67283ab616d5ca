"""Calls of a module to clusters: its requests, and the answers that the caller of the sandbox gives.

Invariant: nothing leaves this process.

Sources: envoy source/extensions/common/wasm/context.cc `httpCall`, `grpcCall`, `grpcStream`; source/common/http/async_client_impl.cc
(a request without a timely answer gets a 504).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from autowasm.sandbox.headers import Pairs

Headers: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The response of a cluster, `delay` seconds of virtual time after the call."""

    status: int = 200
    headers: Headers = ()
    body: bytes = b""
    trailers: Headers = ()
    delay: float = 0.001


@dataclass(frozen=True, slots=True)
class GrpcAnswer:
    """The end of a gRPC call or stream, and the messages before it."""

    messages: Sequence[bytes] = ()
    status: int = 0
    status_message: str = ""
    initial_metadata: Headers = ()
    trailing_metadata: Headers = ()
    delay: float = 0.001


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection breaks before there is a response."""

    delay: float = 0.001


Answer: TypeAlias = HttpAnswer | GrpcAnswer | Broken


class CalloutKind(StrEnum):
    """The host function that was called."""

    HTTP = "http call"
    GRPC_CALL = "gRPC call"
    GRPC_STREAM = "gRPC stream"


@dataclass(slots=True)
class Callout:
    """One call. `messages` are those that the module sent on a gRPC stream; `answer` is None if the cluster is unknown."""

    kind: CalloutKind
    cluster: str
    headers: Pairs
    body: bytes = b""
    trailers: Pairs = field(default_factory=list)
    timeout_milliseconds: int = 0
    service: str = ""
    method: str = ""
    messages: list[bytes] = field(default_factory=list)
    is_parsed: bool = True
    """Whether the target of a gRPC call was a `GrpcService`, not the name of a cluster."""
    answer: Answer | None = None


Answering: TypeAlias = Answer | Sequence[Answer] | Callable[[Callout], Answer]


class Clusters:
    """The clusters that the module can call, with their answers: a single answer, a sequence of answers, or a function.

    The last answer of a sequence is repeated.
    """

    def __init__(self, answers: Mapping[str, Answering] | None = None) -> None:
        self._answers = dict(answers or {})
        self._given: dict[str, int] = {}

    def __contains__(self, cluster: str) -> bool:
        return cluster in self._answers

    def answer(self, callout: Callout) -> Answer:
        """The answer to a call of a known cluster."""
        answers = self._answers[callout.cluster]
        if isinstance(answers, Sequence):
            at = self._given.get(callout.cluster, 0)
            self._given[callout.cluster] = at + 1
            return answers[min(at, len(answers) - 1)]
        return answers(callout) if callable(answers) else answers
