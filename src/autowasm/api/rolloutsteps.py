"""`spec.rollout.steps`: the values that are refused, and the number of Pods that get the new filter in each step. Pure.

A step is a number of Pods, or a percentage of the Pods that the selector matches. A final step with all Pods follows the list.
Invariants: for some number of Pods, each step of an accepted list adds Pods; `size` is never zero, rounds percentages up, and
never exceeds the number of Pods unless that number is zero.
"""

import re
from collections.abc import Iterator
from typing import Final

from autowasm.errors import SpecError

PATH: Final = "spec.rollout.steps"
MAX_STEPS: Final = 20
MAX_COUNT: Final = 1_000_000
_PERCENTAGE: Final = re.compile(r"([1-9][0-9]?|100)%\Z")
_COUNT: Final = re.compile(r"[1-9][0-9]?\Z")

Step = int | str


def check(steps: tuple[Step, ...]) -> None:
    """Raises SpecError for the first of `wrong`."""
    for error in wrong(steps):
        raise error


def wrong(steps: tuple[Step, ...]) -> Iterator[SpecError]:
    """The steps that are neither a count nor a percentage, or that never add a Pod, whatever the number of Pods."""
    if not steps:
        yield SpecError(PATH, "list at least one step, or omit the field to use 1, 10%, 50%")
    if len(steps) > MAX_STEPS:
        yield SpecError(PATH, f"more than {MAX_STEPS} steps: {len(steps)}; remove some")
        return
    count = percentage = 0
    for index, step in enumerate(steps):
        at = f"{PATH}[{index}]"
        if percentage == 100:
            yield SpecError(at, "follows 100%, so it adds no Pod; remove it")
            return
        problem = _problem(step, count, percentage)
        if problem:
            yield SpecError(at, problem)
        elif isinstance(step, int):
            count = step
        else:
            percentage = int(step[:-1])


def _problem(step: Step, count: int, percentage: int) -> str:
    """The reason why a step cannot follow those with `count` and `percentage`; empty if it can."""
    if isinstance(step, int):
        if not 1 <= step <= MAX_COUNT:
            return f"a count must be from 1 to {MAX_COUNT}, not {str(step)[:40]}"
        if step <= count:
            return _not_more(step, "count")
        # There are at least `step` Pods where the step is not all of them.
        is_less = percentage and size(f"{percentage}%", step) >= step
        return _not_more(step, "percentage") if is_less else ""
    found = _PERCENTAGE.match(step)
    if found is None:
        meant = step.replace(" ", "")
        if _COUNT.match(meant):
            return (
                f"{step[:20]!r} is a string; write {meant} for Pods, or {meant}% for a percentage"
            )
        written = f"; write {meant}" if _PERCENTAGE.match(meant) else ""
        return f"must be a count, or a whole percentage from 1% to 100%, not {step[:20]!r}{written}"
    return _not_more(step, "percentage") if int(found[1]) <= percentage else ""


def _not_more(step: Step, kind: str) -> str:
    return f"{step} adds no Pod to an earlier {kind}: steps must increase"


def size(step: Step, pods: int) -> int:
    """The number of Pods, out of `pods`, that may have the new filter in this step. A percentage is rounded up."""
    if isinstance(step, int):
        return min(step, max(pods, 1))
    return max(1, -(-pods * int(step[:-1]) // 100))
