"""What to do once an origin says that it has no more what a record names (ADR 14).

Not for errors that say "later": those are tried again. Invariant: what is published is held on to until the user asks for
another; a record that is only remembered is given up, and its source resolved afresh.
"""

from autowasm.api.record import Record
from autowasm.controller.decision import PUBLISHED_MODULE_LOST, Resolve, Use
from autowasm.controller.subject import Subject
from autowasm.errors import AutoWasmError, ContentRejected, SourceNotFound
from autowasm.kube.resources import ObjectKey


class LostRecords:
    """Records that were given up, by object key, until something is published for it."""

    def __init__(self) -> None:
        self._lost: dict[ObjectKey, frozenset[Record]] = {}

    def of(self, key: ObjectKey) -> frozenset[Record]:
        """Those not to be used for this object."""
        return self._lost.get(key, frozenset())

    def give_up(self, subject: Subject, decision: Use | Resolve, error: AutoWasmError) -> bool:
        """True if the record that was decided on is not in place and can be had no more: decide again."""
        if not isinstance(decision, Use) or decision.record == subject.live:
            return False
        if not isinstance(error, SourceNotFound):
            return False
        self._lost[subject.key] = self.of(subject.key) | {decision.record}
        return True

    def forget(self, key: ObjectKey) -> None:
        """Published, gone, or another replica's matter."""
        self._lost.pop(key, None)


def explain_lost(decision: Use | Resolve, error: AutoWasmError) -> AutoWasmError:
    """`PublishedModuleLost` if the origin of what is published answered, and has other bytes or none; else the error."""
    if not isinstance(decision, Use) or not isinstance(error, SourceNotFound | ContentRejected):
        return error
    return AutoWasmError(
        f"the published module is stored nowhere and cannot be fetched again: {error}; proxies that "
        "have it keep running it; set the annotation wasm.tcm.io/refresh to a new value to "
        "resolve the source afresh",
        reason=PUBLISHED_MODULE_LOST,
    )
