"""Placement: the variant of each proxy in a state of a staged rollout, and the EnvoyFilter for it. Pure.

The controller writes the EnvoyFilter, and `wasmc explain` compares it with the one in place. Invariant: both get the same bytes from
the same variants.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET

from autowasm.api import staged
from autowasm.api.envoyfilter import Variant
from autowasm.api.patches import Metadata
from autowasm.api.status import RolloutPhase, RolloutStatus
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.controller.rollout.guards import choice_of
from autowasm.controller.rollout.judgement import RolloutReason
from autowasm.settings import EnvoyFetch


@dataclass(frozen=True, slots=True)
class Placement:
    """The variants in the EnvoyFilter of a state, by digest; empty: none. `render` makes the EnvoyFilter."""

    stable: str
    target: str = ""
    proxies: tuple[Metadata, ...] | None = ()
    """The proxies that have the target; None: all."""


def placement(state: RolloutStatus) -> Placement | None:
    """None: leave the EnvoyFilter unchanged, because the stable variant is not known."""
    stable = state.stable.digest if state.stable is not UNSET else ""
    if state.reason == RolloutReason.STABLE_LOST.value:
        return None
    match state.phase:
        case RolloutPhase.SUCCEEDED:
            return Placement(state.target.digest)
        case RolloutPhase.ABORTED:
            return Placement(stable)
        case _ if state.step == state.steps:
            return Placement(stable, state.target.digest, None)
        case _:
            return Placement(stable, state.target.digest, choice_of(state).proxies())


def render(
    autowasm: AutoWasm,
    envoy: EnvoyFetch,
    wanted: Placement,
    *,
    find: Callable[[str], Variant | None],
    resend: Callable[[str], int],
) -> dict[str, Any] | None:
    """`find`: the variant of a digest; `resend`: the count of a module. None: a variant is not known."""
    stable, target = find(wanted.stable), find(wanted.target)
    if (wanted.stable and stable is None) or (wanted.target and target is None):
        return None
    stable, target = (
        msgspec.structs.replace(one, resend=resend(one.sha256)) if one is not None else None
        for one in (stable, target)
    )
    return staged.render(autowasm, envoy, stable=stable, target=target, proxies=wanted.proxies)
