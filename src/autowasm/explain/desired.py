"""The EnvoyFilter that an AutoWasm is to have: at once, or in the step of a staged rollout. Pure.

Invariant: with the settings of wasmer it is what wasmer writes; None where that is not known from here.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import staged
from autowasm.api.record import Record
from autowasm.api.status import Status
from autowasm.api.v1alpha1 import AutoWasm, Rollout
from autowasm.api.variant import variant_of
from autowasm.controller.rollout.placement import placement
from autowasm.controller.rollout.placement import render as render_placement
from autowasm.settings import EnvoyFetch


def at_the_end(
    autowasm: AutoWasm, record: Record, envoy: EnvoyFetch, *, resend: int
) -> dict[str, Any]:
    """When all Pods have the module of `record`."""
    if autowasm.spec.rollout is None:
        return envoyfilters.render(autowasm, record, envoy, resend=resend)
    variant = variant_of(autowasm, record, resend=resend)
    return staged.render(autowasm, envoy, stable=variant, target=None)


def with_any_rollout(autowasm: AutoWasm) -> AutoWasm:
    """The AutoWasm with some rollout: the EnvoyFilter of its end is the same for all of them, and another one than without."""
    spec = msgspec.structs.replace(autowasm.spec, rollout=Rollout())
    return msgspec.structs.replace(autowasm, spec=spec)


def now(
    autowasm: AutoWasm, live: Mapping[str, Any], status: Status, envoy: EnvoyFetch
) -> dict[str, Any] | None:
    """With what `live` and `status` tell."""
    if status.rollout is UNSET:
        record = envoyfilters.record_of(live)
        if record is None or autowasm.spec.rollout is not None:
            return None
        resend = envoyfilters.resend_count_of(live, record.sha256)
        return envoyfilters.render(autowasm, record, envoy, resend=resend)
    wanted = placement(status.rollout)
    if wanted is None:
        return None
    found = staged.variants_of(live)

    def counted(sha256: str) -> int:
        return envoyfilters.resend_count_of(live, sha256)

    return render_placement(autowasm, envoy, wanted, find=found.find, resend=counted)
