"""The EnvoyFilter of a placement: the controller writes it, and `wasmc explain` compares it with the one in place. Pure.

Invariant: with the same variants, both have the same bytes.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from autowasm.api import staged
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.api.variant import Variant
from autowasm.controller.rollout.statemachine import Placement
from autowasm.settings import EnvoyFetch


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
