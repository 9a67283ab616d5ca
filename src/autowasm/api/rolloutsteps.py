"""`spec.rollout.steps`: what is refused, and how many Pods each step may give the new filter. Pure.

A step is a count of Pods, or a percentage of the Pods that the selector matches. A last step, all Pods, follows the list.
Invariants: every accepted list adds Pods at each step for some number of Pods; `size` is never zero, rounds percentages up, and
never exceeds the number of Pods unless there is none.
"""

import re
from typing import Final

from autowasm.errors import SpecError

PATH: Final = "spec.rollout.steps"
MAX_STEPS: Final = 20
MAX_COUNT: Final = 1_000_000
_PERCENTAGE: Final = re.compile(r"([1-9][0-9]?|100)%\Z")

Step = int | str


def check(steps: tuple[Step, ...]) -> None:
    """Raises SpecError for the first step that is not a count or a percentage, or adds no Pod for any number of Pods."""
    if not steps:
        raise SpecError(PATH, "list at least one step, or omit the field to use 1, 10%, 50%")
    if len(steps) > MAX_STEPS:
        raise SpecError(PATH, f"more than {MAX_STEPS} steps")
    count = percentage = 0
    for index, step in enumerate(steps):
        at = f"{PATH}[{index}]"
        if isinstance(step, int):
            if not 1 <= step <= MAX_COUNT:
                raise SpecError(at, f"a count must be from 1 to {MAX_COUNT}, not {step}")
            if step <= count:
                raise SpecError(at, _not_more(step, "count"))
            # There are at least `step` Pods where the step is not all of them.
            if percentage and size(f"{percentage}%", step) >= step:
                raise SpecError(at, _not_more(step, "percentage"))
            count = step
        else:
            found = _PERCENTAGE.match(step)
            if found is None:
                raise SpecError(
                    at, f"must be a count, or a percentage from 1% to 100%, not {step[:20]!r}"
                )
            if int(found[1]) <= percentage:
                raise SpecError(at, _not_more(step, "percentage"))
            percentage = int(found[1])
        if percentage == 100 and index + 1 < len(steps):
            raise SpecError(f"{PATH}[{index + 1}]", "follows 100%, so it adds no Pod")


def _not_more(step: Step, kind: str) -> str:
    return f"{step} adds no Pod to an earlier {kind}: steps must increase"


def size(step: Step, pods: int) -> int:
    """The number of Pods that may have the new filter in this step, of `pods`. A percentage is rounded up."""
    if isinstance(step, int):
        return min(step, max(pods, 1))
    return max(1, -(-pods * int(step[:-1]) // 100))
