"""States and observations of a staged rollout for tests: six Pods, of which a step has the first ones; everything is good unless a
test makes it otherwise."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from autowasm.api.status import RolloutPhase, RolloutStatus, RolloutVariant
from autowasm.api.v1alpha1 import Rollout
from autowasm.controller.pods.runstate import RunState
from autowasm.controller.rollout.effects import stamp
from autowasm.controller.rollout.observation import (
    Figures,
    Observation,
    PodObservation,
)
from autowasm.controller.rollout.selection import Candidate

OLD, NEW, OTHER = "old0" * 4, "new0" * 4, "other" + "0" * 11
NOW = 1_700_000_000.0
SPEC = Rollout(steps=(1, "50%"), pause="10s", deadline="1m")
PODS = tuple(Candidate("default", f"p{n}", f"uid-{n}", f"n{n}", "details") for n in range(6))


def variant(digest: str = NEW, generation: int = 7) -> RolloutVariant:
    return RolloutVariant(digest, generation)


def state(phase: RolloutPhase = RolloutPhase.PROGRESSING, **fields: Any) -> RolloutStatus:
    """The first step, with p0, which has been watched for five seconds."""
    known = RolloutStatus(
        phase=phase,
        target=variant(),
        stable=variant(OLD, 6),
        step=1,
        steps=3,
        size=1,
        pods=(PODS[0].pod,),
        started=stamp(NOW - 5),
        placed_seconds=5.0,
        time=stamp(NOW - 2),
    )
    return msgspec.structs.replace(known, **fields)


def observed(number: int = 0, **fields: Any) -> PodObservation:
    """A Pod that runs the target and has served requests."""
    good = PodObservation(
        candidate=PODS[number], downloaded=True, run=RunState.RUNNING, age=0.0, figures=Figures(200)
    )
    return replace(good, **fields)


def observation(*pods: PodObservation, **fields: Any) -> Observation:
    """`pods` in place of those of the same name."""
    known: Mapping[str, PodObservation] = {one.candidate.name: one for one in pods}
    every = tuple(known.get(one.name, observed(n)) for n, one in enumerate(PODS))
    good = Observation(
        target=variant(),
        base=variant(OLD, 0),
        found=frozenset({OLD, NEW}),
        is_published=True,
        pods=every,
        elapsed=2.0,
        watched=5.0,
    )
    return replace(good, **fields)
