"""RunReport: whether a plug-in runs in a sidecar, judged from two readings of its statistics. Pure.

`envoystats.py` has the readings. The rules are a table (`RULES`): the first rule that applies decides. Invariants: a state that the figures do not
prove is Unknown; `Running` needs VMs that can only be the plug-in's; a counter of the whole process counts against
the plug-in only if no other plug-in was added since `before`.

The figures of the process are attributed as follows. A running plug-in has one VM for each worker and two more, over all filter chains
together. So all plug-ins run if that number of VMs exists; no plug-in runs without a VM; and the difference from `before` belongs
to the plug-ins that were added, provided that none was removed. Draining filter chains keep their VMs and their plug-in's name,
so a plug-in's name should differ from its predecessor's: then it contains the digest and a hash of the configuration. Otherwise
the caller states whether the change was seen to arrive (`Acceptance`), and VMs count once nothing drains any more. Envoy removes the name
of a plug-in after its VMs: while the predecessor's name remains and nothing drains, VMs may be those of either, and the plug-in is not
known to have none.

Verified with Envoy 1.36 and 1.40 (docs/reference/sidecar-statistics.md).
"""

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from autowasm.controller.pods.envoystats import (
    ReadFailure,
    Reading,
    ReloadCounts,
    Requests,
    SidecarStats,
    UnreadStats,
    series_of,
)
from autowasm.reasons import Reason

_OWN_VMS: Final = 2
"""VMs of a plug-in besides those of the workers: the base VM, and one on the main thread."""
_TRIAL_VMS: Final = 1
"""VMs that Envoy starts first, to test whether the module accepts its configuration, and then ends."""
_DIGEST: Final = re.compile(r"[-_][0-9a-f]{16}(?![0-9a-f])")
"""In a series: the part of the plug-in's name by which two configurations of one AutoWasm differ (`envoyfilter.plugin_name_of`)."""
_LATE: Final = 15.0
"""Seconds by which an uptime may be late: three times the interval at which Envoy updates it."""


class RunState(enum.Enum):
    """The known state of one plug-in in one sidecar; the values appear in the status and in metric labels."""

    RUNNING = Reason.RUNNING.value
    STARTING = Reason.STARTING.value
    CONFIGURATION_REFUSED = Reason.CONFIGURATION_REFUSED.value
    CRASHING = Reason.CRASHING.value
    FETCH_FAILED = Reason.FETCH_FAILED.value
    NOT_ACCEPTED = Reason.NOT_ACCEPTED.value
    STATS_UNREACHABLE = Reason.STATS_UNREACHABLE.value
    UNKNOWN = Reason.UNKNOWN.value

    @property
    def is_failure(self) -> bool:
        """Whether the plug-in does not run, and waiting does not help."""
        return self in _FAILURES

    @property
    def is_pending(self) -> bool:
        """Whether the plug-in does not run yet, but may: wait, up to a deadline."""
        return self in _PENDING


class Acceptance(enum.Enum):
    """How certain it is that a sidecar has the current configuration of a plug-in, and not the previous one."""

    BY_NAME = enum.auto()
    """The sidecar never had another configuration of a plug-in of this name, so the name alone proves it."""
    SEEN = enum.auto()
    """The sidecar had another configuration. Since the change, it has changed listeners or downloaded the module."""
    NOT_SEEN = enum.auto()
    """The sidecar had another configuration, and has changed no listener since before the change."""
    UNKNOWN = enum.auto()
    """It is not known which configuration the sidecar had, or whether it has changed since."""


_FAILURES: Final = frozenset(
    {RunState.CONFIGURATION_REFUSED, RunState.CRASHING, RunState.FETCH_FAILED}
)
_PENDING: Final = frozenset({RunState.STARTING, RunState.NOT_ACCEPTED})
_UNSURE: Final = frozenset({RunState.CONFIGURATION_REFUSED, RunState.FETCH_FAILED})
"""Failures that a single reading may show by chance, between two states of Envoy."""


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The figures behind a report: increases since `before`, or since the start of the process without it."""

    active_vms: int = 0
    """Of the whole process, now."""
    active_vms_before: int | None = None
    fetch_failures: int = 0
    """Of the whole process."""
    reloads: ReloadCounts = field(default_factory=ReloadCounts)
    """Of the plug-in."""
    requests: Requests | None = None
    """Of the Pod. None: not known."""
    requests_before: Requests | None = None
    """Of the Pod, from the start of the process until `before`. None: not known."""
    other_plugins: int = 0
    """In the same process, including those of draining filter chains."""
    is_restarted: bool = False
    """Whether Envoy was restarted since `before`."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """The state of one plug-in in one sidecar. `message`: a clause without a subject."""

    state: RunState
    message: str
    figures: RunFigures = field(default_factory=RunFigures)


class Evidence:
    """Conclusions from two readings about one plug-in. `before`: the last reading before the change; keep it for the whole step."""

    def __init__(
        self,
        before: SidecarStats | None,
        after: SidecarStats,
        plugin: str,
        acceptance: Acceptance = Acceptance.BY_NAME,
    ) -> None:
        self.is_restarted = before is not None and _is_restarted(before, after)
        if self.is_restarted:
            before = SidecarStats()  # the new process counted everything after the change
        self.before, self.after, self.plugin = before, after, plugin
        self.acceptance = acceptance
        self.is_envoy = after.is_envoy
        self.reloads = after.reloads_of(plugin)
        self.others = after.others(plugin)
        self.vms = after.active_vms or 0
        self._each = (after.concurrency or 0) + _OWN_VMS

    @property
    def is_known(self) -> bool:
        """Whether Envoy has the plug-in's configuration."""
        return self.reloads is not None

    @property
    def is_warming(self) -> bool:
        """Whether a listener is warming, possibly because it waits for the module."""
        return bool(self.after.warming)

    @property
    def is_draining(self) -> bool:
        """Whether the VMs may belong to the previous configuration, on draining filter chains."""
        return self.acceptance is Acceptance.SEEN and bool(self.after.draining)

    @cached_property
    def is_replacing(self) -> bool:
        """Whether nothing drains, but Envoy still has the name of a previous configuration: VMs may be those of either."""
        if self.before is None or self.after.draining or self.is_warming:
            return False
        stems = {_stem(one) for one in series_of(self.plugin)}
        return any(_stem(one) in stems for one in self.others & self.before.plugins.keys())

    @property
    def has_replaced_vms(self) -> bool:
        """Whether the number of VMs grew by as many as one plug-in needs, with the same set of plug-ins."""
        return (
            self.before is not None
            and self.before.plugins.keys() == self.after.plugins.keys()
            and self._gained() >= self._each
        )

    @property
    def is_attributable(self) -> bool:
        """Whether no other plug-in was added since `before`, so that changes of the process's figures belong to this plug-in."""
        return self.before is not None and self.others <= self.before.plugins.keys()

    @property
    def crashes(self) -> ReloadCounts:
        """Reloads of this plug-in since `before`."""
        now = self.reloads or ReloadCounts()
        then = self.before.reloads_of(self.plugin) if self.before is not None else None
        if then is None or then.total > now.total:
            return now
        return ReloadCounts(
            max(0, now.success - then.success),
            max(0, now.failure - then.failure),
            max(0, now.backoff - then.backoff),
        )

    @property
    def rejected(self) -> int:
        """Listener updates that Envoy rejected since `before`; 0 if not known."""
        if self.before is None:
            return 0
        return _increase(self.before.rejected or 0, self.after.rejected or 0)

    @property
    def failures(self) -> int:
        """Failed fetches since `before`."""
        then = self.before.fetch_failures if self.before is not None else 0
        return _increase(then, self.after.fetch_failures)

    @property
    def has_arrived(self) -> bool:
        """Whether a module has arrived since `before`. It is counted before its first VM starts."""
        then = self.before.fetched if self.before is not None else 0
        return _increase(then, self.after.fetched) > 0

    @property
    def has_all_vms(self) -> bool:
        """Whether there are enough VMs for every plug-in."""
        return self.vms >= self._each * (1 + len(self.others))

    @property
    def has_new_vms(self) -> bool:
        """Whether the number of VMs grew by as many as the added plug-ins need, with none removed."""
        added = self._added()
        return added > 0 and self._gained() >= self._each * added

    @property
    def has_some_vms(self) -> bool:
        """Whether VMs of the plug-in exist, but not yet for all workers."""
        if not self.others:
            return 0 < self.vms < self._each
        return self._added() == 1 and self.is_attributable and 0 < self._gained() < self._each

    @property
    def has_created_all_vms(self) -> bool:
        """Whether some VMs are the plug-in's, and the number that it needs was started.

        Threads that start VMs at the same time may leave the gauge below the number of VMs (`SidecarStats.active_vms`), until a VM
        starts or ends. With other plug-ins, the VMs that were started since `before` are the plug-in's.
        """
        created = self.after.created_vms
        if self.others and self.before is not None:
            created = _increase(self.before.created_vms, created)
        return self.has_some_vms and created >= self._each + _TRIAL_VMS

    @property
    def has_no_vms(self) -> bool:
        """Whether it is certain that the plug-in has no VM."""
        if self.vms == 0:
            return True
        if self.is_replacing:
            return False
        if self._added() == 1 and self.is_attributable:
            # Without enough VMs for all plug-ins: in `before`, some may have belonged to a plug-in that had just been removed.
            return self._gained() <= 0 and not self.has_all_vms
        if self.before is None or not self.is_attributable:
            return False
        if self.acceptance is Acceptance.SEEN and self.before.reloads_of(self.plugin) is not None:
            # All plug-ins ran before, and the VMs of one are gone: the one that was changed.
            return (
                not self.is_draining
                and self.others == self.before.others(self.plugin)
                and (self.before.active_vms or 0) == self._each * len(self.before.plugins)
                and self.vms == self._each * len(self.others)
            )
        # All plug-ins that ran before have their VMs, and there are no others.
        return (
            self.before.reloads_of(self.plugin) is None
            and (self.before.active_vms or 0) == self._each * len(self.before.plugins)
            and self.vms <= self._each * len(self.others)
        )

    def _added(self) -> int:
        """The number of plug-ins added since `before`, including this one; 0 if it existed before, or if others were removed."""
        if self.before is None or self.before.reloads_of(self.plugin) is not None:
            return 0
        then = self.before.plugins.keys()
        return len(self.after.plugins.keys() - then) if then <= self.after.plugins.keys() else 0

    def _gained(self) -> int:
        return self.vms - (self.before.active_vms or 0 if self.before is not None else 0)

    def figures(self) -> RunFigures:
        """The figures for the report."""
        now, then = self.after.requests, self.before.requests if self.before is not None else None
        return RunFigures(
            active_vms=self.vms,
            active_vms_before=(self.before.active_vms or 0) if self.before is not None else None,
            fetch_failures=self.failures,
            reloads=self.crashes,
            requests=now.since(then or Requests()) if now is not None else None,
            requests_before=then,
            other_plugins=len(self.others),
            is_restarted=self.is_restarted,
        )


def _stem(series: str) -> str:
    return _DIGEST.sub("", series)


def _increase(before: int, after: int) -> int:
    """Growth of a counter. A counter that is lower than before was reset."""
    return after - before if after >= before else after


def _is_restarted(before: SidecarStats, after: SidecarStats) -> bool:
    then, now = before.uptime or 0, after.uptime or 0
    if now < then or (after.listeners_created or 0) < (before.listeners_created or 0):
        return True
    return now + _LATE < then + (after.read_at - before.read_at)


def not_envoy(e: Evidence) -> bool:
    """The page lacks the statistics that every Istio sidecar has."""
    return not e.is_envoy


def configuration_rejected(e: Evidence) -> bool:
    """Envoy does not know the plug-in, and rejected an update."""
    return not e.is_known and e.rejected > 0


def configuration_absent(e: Evidence) -> bool:
    """Envoy does not know the plug-in."""
    return not e.is_known


def change_rejected(e: Evidence) -> bool:
    """Envoy has changed no listener, and rejected an update."""
    return e.acceptance is Acceptance.NOT_SEEN and e.rejected > 0


def change_absent(e: Evidence) -> bool:
    """Envoy has changed no listener."""
    return e.acceptance is Acceptance.NOT_SEEN


def vm_reloaded(e: Evidence) -> bool:
    """Envoy replaced a crashed VM of the plug-in, or will replace it."""
    return e.crashes.total > 0


def fetch_gave_up(e: Evidence) -> bool:
    """A fetch failed, and it can only be the fetch of this plug-in."""
    return e.failures > 0 and (e.is_attributable or (e.has_no_vms and not e.others))


def fetch_gave_up_at_some_time(e: Evidence) -> bool:
    """A fetch failed, but its plug-in or its time is not known; this plug-in may run."""
    return e.failures > 0 and not e.has_no_vms


def module_awaited(e: Evidence) -> bool:
    """The plug-in has no VM, and a listener is warming: modules that arrived meanwhile may be others."""
    return e.has_no_vms and e.is_warming


def module_never_arrived(e: Evidence) -> bool:
    """No VM was ever started in the process, and no listener is warming."""
    return e.after.active_vms is None and not e.is_warming


def module_not_arrived(e: Evidence) -> bool:
    """The plug-in has no VM, no module has arrived, and its predecessor is still draining: this happens to an Envoy on a busy node.

    When nothing drains any more, the counter of modules has been reset, and the time for a start is over.
    """
    return e.has_no_vms and not e.has_arrived and bool(e.after.draining)


def module_did_not_start(e: Evidence) -> bool:
    """The plug-in has no VM, no listener waits for its module, and no fetch failed."""
    return e.has_no_vms


def change_not_known(e: Evidence) -> bool:
    """A plug-in of this name exists, with the current configuration or the previous one."""
    return e.acceptance is Acceptance.UNKNOWN


def predecessor_drains(e: Evidence) -> bool:
    """VMs may belong to the previous configuration."""
    return e.is_draining and not e.has_replaced_vms


def vms_active(e: Evidence) -> bool:
    """Some VMs can only be the plug-in's."""
    return e.has_all_vms or e.has_new_vms or e.has_created_all_vms


def vms_starting(e: Evidence) -> bool:
    """Some of the plug-in's VMs exist."""
    return e.has_some_vms


def predecessor_ends(e: Evidence) -> bool:
    """VMs may be the plug-in's, or those of its predecessor, which is about to end."""
    return e.is_replacing


def listener_warming(e: Evidence) -> bool:
    """A listener is warming."""
    return e.is_warming


def undecided(_: Evidence) -> bool:
    """The figures of the process may belong to other plug-ins."""
    return True


Rule = tuple[Callable[[Evidence], bool], RunState, str]
RULES: Final[tuple[Rule, ...]] = (
    (not_envoy, RunState.UNKNOWN, "serves statistics that are not those of an Istio sidecar"),
    (
        configuration_rejected,
        RunState.NOT_ACCEPTED,
        "rejected a listener update and does not have the configuration: an Envoy that already has the module does this if the "
        "module refuses its configuration",
    ),
    (configuration_absent, RunState.NOT_ACCEPTED, "does not have the configuration yet"),
    (
        change_rejected,
        RunState.NOT_ACCEPTED,
        "rejected a listener update and keeps the previous configuration: an Envoy that already has the module does this if the "
        "module refuses its configuration",
    ),
    (
        change_absent,
        RunState.NOT_ACCEPTED,
        "still has the previous configuration: it has updated no listener yet",
    ),
    (
        vm_reloaded,
        RunState.CRASHING,
        "has a crashing module ({e.crashes.success} reloads, {e.crashes.failure} failed, {e.crashes.backoff} delayed)",
    ),
    (
        fetch_gave_up,
        RunState.FETCH_FAILED,
        "gave up fetching the module on {e.failures} filter chains",
    ),
    (
        fetch_gave_up_at_some_time,
        RunState.UNKNOWN,
        "gave up fetching a module, but it is not known for which filter, or when",
    ),
    (module_awaited, RunState.STARTING, "has the configuration and waits for the module"),
    (module_never_arrived, RunState.FETCH_FAILED, "has the configuration but never got the module"),
    (
        module_not_arrived,
        RunState.STARTING,
        "has the configuration, and its module has not arrived",
    ),
    (
        module_did_not_start,
        RunState.CONFIGURATION_REFUSED,
        "has the configuration but runs no VM of the module: the module refused its configuration, or could not be started",
    ),
    (
        change_not_known,
        RunState.UNKNOWN,
        "has a filter of this name, but it is not known whether with the current or the previous configuration",
    ),
    (
        predecessor_drains,
        RunState.STARTING,
        "has the configuration, but its VMs may be those of the previous one, which is still draining",
    ),
    (vms_active, RunState.RUNNING, "runs the module"),
    (vms_starting, RunState.STARTING, "has the module and is starting it"),
    (
        predecessor_ends,
        RunState.STARTING,
        "has the configuration, but its VMs may be those of the previous one, which is about to end",
    ),
    (listener_warming, RunState.STARTING, "has the configuration, and a listener is not ready yet"),
    (
        undecided,
        RunState.UNKNOWN,
        "has the configuration, but {e.vms} active VMs may belong to its {others} other filters",
    ),
)
"""In this order: a condition, the state, and the clause for people."""


def judge(
    before: Reading | None,
    after: Reading,
    plugin: str,
    *,
    acceptance: Acceptance = Acceptance.BY_NAME,
) -> RunReport:
    """The report on the plug-in with this name.

    `before`: the last reading before its configuration was changed, if there is one; no listener was warming then. A plug-in that
    already ran in `before` is judged by the changes since. `acceptance`: for a name without a digest.
    """
    if isinstance(after, UnreadStats):
        shared = after.why is ReadFailure.SHARED_ADDRESS
        state = RunState.UNKNOWN if shared else RunState.STATS_UNREACHABLE
        return RunReport(state, after.message)
    earlier = before if isinstance(before, SidecarStats) and before.is_envoy else None
    evidence = Evidence(earlier, after, plugin, acceptance)
    for applies, state, message in RULES:
        if applies(evidence):
            text = message.format(e=evidence, others=len(evidence.others))
            return RunReport(state, text, evidence.figures())
    raise AssertionError("the last rule always applies")


def confirmed(report: RunReport, previous: RunState | None) -> RunReport:
    """The report. `Starting` instead of a failure that counts only when the reading before, with the state `previous`, shows it, too."""
    if report.state not in _UNSURE or previous is report.state:
        return report
    message = "may have failed to start the module; its statistics are read again"
    return replace(report, state=RunState.STARTING, message=message)
