"""The request to a child and its answer, as JSON.

Invariant: an answer comes from a process that ran a tenant's code, so its reader accepts any bytes and trusts none: the result is
a ValueError, or an `Answer` of bounded size whose texts are lines of printable characters.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from autowasm.envoyversion import EnvoyVersion
from autowasm.limits import PreflightLimits
from autowasm.preflight.isolation import Enforced
from autowasm.preflight.verdicts import NoVerdictReason
from autowasm.sandbox.plugin import Plugin, SandboxLimits
from autowasm.sandbox.verdict import Verdict
from autowasm.text import shown

COMPILE: Final = "compile"
"""Kind of job. Descriptors: the module for reading, a new file for the code. No request."""
RUN: Final = "run"
"""Kind of job. Descriptor: the code for reading. The request is a `Request`."""

_MESSAGE: Final = 2000
_LINES: Final = 200


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of `sandbox.verdict.judge`, except the code."""

    plugin: Plugin
    limits: SandboxLimits
    envoy: EnvoyVersion
    extra_imports: frozenset[str] = frozenset()

    def to_json(self) -> bytes:
        """JSON; equal requests give equal bytes."""
        plain = replace(self.plugin, environment=dict(self.plugin.environment))
        return msgspec.json.encode(replace(self, plugin=plain), order="deterministic")

    @staticmethod
    def from_json(data: bytes) -> "Request":
        """Reads what `to_json` wrote."""
        return _REQUEST.decode(data)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a child has no result. It is not a verdict on the module."""

    reason: NoVerdictReason
    message: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One of: a verdict, the size in bytes of the compiled module, a problem. `enforced`: None if isolation failed."""

    enforced: Enforced | None
    verdict: Verdict | None = None
    compiled: int | None = None
    problem: Problem | None = None

    def to_json(self) -> bytes:
        """For `from_json`."""
        return msgspec.json.encode(self)

    @staticmethod
    def from_json(data: bytes) -> "Answer":
        """Raises ValueError for everything but an answer."""
        try:
            answer = _ANSWER.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(f"not an answer: {shown(str(error))}") from error
        if answer.verdict is not None:
            if not 0 <= answer.verdict.fuel < 2**63:
                raise ValueError("not an answer: fuel")
            answer = replace(answer, verdict=_printable(answer.verdict))
        if answer.problem is not None:
            message = shown(answer.problem.message, most=_MESSAGE)
            answer = replace(answer, problem=replace(answer.problem, message=message))
        return answer


_REQUEST: Final = msgspec.json.Decoder(Request)
_ANSWER: Final = msgspec.json.Decoder(Answer)


def _printable(verdict: Verdict) -> Verdict:
    """The sandbox also does this, but an answer may come from another program."""
    return replace(
        verdict,
        message=shown(verdict.message, most=_MESSAGE),
        phase=shown(verdict.phase),
        frames=_lines(verdict.frames),
        log=_lines(verdict.log, most=PreflightLimits().log_line_bytes),
        asked=_lines(verdict.asked),
    )


def _lines(texts: Iterable[str], *, most: int = 500) -> tuple[str, ...]:
    """The last lines."""
    return tuple(shown(text, most=most) for text in tuple(texts)[-_LINES:])
