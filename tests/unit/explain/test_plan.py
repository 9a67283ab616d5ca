"""The EnvoyFilter that an AutoWasm with a staged rollout is to have."""

from typing import Any

import msgspec

from autowasm.api import staged
from autowasm.api.envoyfilter import Variant, variant_of
from autowasm.api.status import RolloutPhase, RolloutStatus, RolloutVariant, StagedPod, Status
from autowasm.explain import plan
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import autowasm, record

STAGED = autowasm(spec={"rollout": {}})
OLD, NEW = record(), record(sha256="b" * 64)
ENVOY = EnvoyFetch()


def variant(of: Any) -> Variant:
    return variant_of(STAGED, of)


STATE = RolloutStatus(
    phase=RolloutPhase.PROGRESSING,
    target=RolloutVariant(variant(NEW).digest, 2),
    stable=RolloutVariant(variant(OLD).digest, 1),
    step=1,
    steps=4,
    pods=(StagedPod("default", "p", "u"),),
    reason="NotAccepted",
    message="Envoy of Pod default/p has not accepted the new filter yet",
)


def live(*, target: bool = True) -> dict[str, Any]:
    return staged.render(
        STAGED,
        ENVOY,
        stable=variant(OLD),
        target=variant(NEW) if target else None,
        proxies=({"NAME": "p", "NAMESPACE": "default"},),
    )


def test_envoyfilter_of_a_step_is_the_one_in_place() -> None:
    assert plan.desired_now(STAGED, live(), Status(rollout=STATE), ENVOY) == live()


def test_pods_that_keep_a_filter_after_an_abort_differ() -> None:
    aborted = Status(rollout=msgspec.structs.replace(STATE, phase=RolloutPhase.ABORTED))
    assert plan.desired_now(STAGED, live(), aborted, ENVOY) == live(target=False)


def test_nothing_is_known_without_the_variants_of_the_status() -> None:
    lost = msgspec.structs.replace(STATE, target=RolloutVariant("0" * 16, 2))
    assert plan.desired_now(STAGED, live(), Status(rollout=lost), ENVOY) is None
    assert plan.desired_now(STAGED, live(), Status(), ENVOY) is None


def test_end_of_a_rollout_has_the_target_alone() -> None:
    end = plan.desired_at_the_end(STAGED, NEW, ENVOY, resend=0)
    assert staged.variants_of(end).base == variant(NEW)
    assert staged.variants_of(end).override is None
