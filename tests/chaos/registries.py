"""Faults of a registry: their beginning, the messages meanwhile, and their end.

The assertions are in the tests. Invariant: each fault counts its effects.
"""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.parts.faults.http import Answer, Drip, Fault, Forward, Lie, Misstate
from tests.parts.faults.proxy import Hang, Mode, Pass, Refuse
from tests.parts.fleet import Fleet
from tests.parts.installation import pull_secret

RETRY_AFTER = 8
"""Seconds of `Retry-After` from a registry that answers 429."""


@dataclass(frozen=True, slots=True)
class FaultCase:
    """`reasons`: the possible reasons of the condition `Fetched`; `words`: a regular expression for its message."""

    name: str
    reasons: tuple[str, ...]
    words: str
    mode: Mode = field(default_factory=Pass)
    """The fault of the connections."""
    fault: Fault = field(default_factory=Forward)
    """The fault of the answers."""
    other_login: bool = False
    """The valid login becomes invalid; at the end a user puts a new one into the Secret."""

    def __str__(self) -> str:
        return self.name

    def injected(self, fleet: Fleet) -> int:
        """The number of failures of this kind so far."""
        counters = fleet.registry_port.counters
        match self.mode:
            case Refuse():
                return counters.refused
            case Hang():
                return counters.hung
            case _:
                return fleet.registry.injected

    @asynccontextmanager
    async def lasting(self, fleet: Fleet) -> AsyncIterator[None]:
        """The fault lasts until the context ends."""
        if self.other_login:
            await _log_in(fleet, "somebody-else")
        fleet.registry.fault, fleet.registry_port.mode = self.fault, self.mode
        if isinstance(self.mode, Refuse):
            fleet.registry_port.cut_all()
        try:
            yield
        finally:
            fleet.registry.fault, fleet.registry_port.mode = Forward(), Pass()
            if self.other_login:
                await _log_in(fleet)


async def _log_in(fleet: Fleet, user: str | None = None) -> None:
    host = fleet.installation.registry.host
    secret = pull_secret(host)
    if user:
        config = {"auths": {host: {"username": user, "password": "none"}}}
        secret["data"][".dockerconfigjson"] = base64.b64encode(json.dumps(config).encode()).decode()
    await fleet.installation.apply(secret)


_CHALLENGE = {"WWW-Authenticate": 'Basic realm="registry"'}

DOWN = FaultCase("down", ("RegistryUnavailable",), "Connection (reset|refused)", mode=Refuse())
BROKEN = FaultCase("500", ("RegistryUnavailable",), "status 500", fault=Answer(500))
DENIED = FaultCase(
    "401",
    ("Unauthorized",),
    "(is refused: status 401.*sent with the login of user 'somebody-else'|has refused)",
    fault=Answer(401, headers=_CHALLENGE),
    other_login=True,
)
BUSY = FaultCase(
    "429",
    ("RegistryUnavailable",),
    "status 429|limits the rate of requests",
    fault=Answer(429, headers={"Retry-After": str(RETRY_AFTER)}),
)
HANGING = FaultCase("hanging", ("Timeout",), "no answer within 30 s", mode=Hang())
DRIPPING = FaultCase("dripping", ("TooSlow",), "slower than .* for 10 s", fault=Drip())
LYING = FaultCase(
    "lying",
    ("DigestMismatch",),
    "layer .* the bytes have sha256:.*, not sha256:",
    fault=Lie("/blobs/"),
)
LYING_MANIFEST = FaultCase(
    "lying-manifest",
    ("DigestMismatch",),
    "manifest .* the bytes have sha256:.*, not sha256:",
    fault=Lie("/manifests/"),
)
LONGER = FaultCase(
    "length-too-long",
    ("RegistryUnavailable",),
    "was cut off",
    fault=Misstate("/blobs/", 10),
)
SHORTER = FaultCase(
    "length-too-short",
    ("SizeMismatch",),
    "bytes arrived, but .* were announced",
    fault=Misstate("/blobs/", -10),
)
