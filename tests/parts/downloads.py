"""Downloads of published modules from replicas with Envoy's requests, and the result of each.

Invariant: an answer with other bytes than the requested ones is wrong, even if the test has damaged the sender.
"""

import hashlib
from dataclasses import dataclass, field

from tests.parts import wire
from tests.parts.wasmer import Wasmer

_ENVOY_PATIENCE = {"x-envoy-expected-rq-timeout-ms": "30000"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one download."""

    problem: str = ""


class Good(Outcome):
    """The module."""


class Unreachable(Outcome):
    """The connection was refused, or ended before a byte of an answer: the replica had stopped."""


class Cut(Outcome):
    """The connection ended within an answer, so the client knows that the answer is incomplete."""


class WrongBytes(Outcome):
    """A complete answer with status 200 that is not the module."""


@dataclass
class Watch:
    """The results so far: good downloads, and every wrong answer."""

    good: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: int = 0
    """Failures of processes that the test had stopped, or of disks that it had damaged."""

    def count(self, outcome: Outcome, *excused: type[Outcome]) -> None:
        """`excused`: failures that the test itself has caused. Wrong bytes are never excused."""
        if isinstance(outcome, Good):
            self.good += 1
        elif isinstance(outcome, excused) and not isinstance(outcome, WrongBytes):
            self.refused += 1
        else:
            self.wrong.append(outcome.problem)


async def fetch(replica: Wasmer, digest: str) -> Outcome:
    """One download."""
    url = f"http://{replica.host}/wasm/{digest}"
    try:
        answer = await wire.request("GET", url, headers=_ENVOY_PATIENCE, timeout=30)
    except (ConnectionRefusedError, wire.NoAnswer) as error:
        return Unreachable(f"{url}: {error!r}")
    except (ConnectionError, wire.Unfinished) as error:
        return Cut(f"{url}: {error!r}")
    except OSError as error:
        return Outcome(f"{url}: {error!r}")
    if answer.status != 200:
        return Outcome(f"{url}: {answer.status} {answer.body[:200]!r}")
    got = hashlib.sha256(answer.body).hexdigest()
    return Good() if got == digest else WrongBytes(f"{url}: bytes with digest {got}")
