"""Store and retention as a state machine: published modules stay, the budget holds, and a restart loses nothing.

The model knows, for each blob, when it was last named on a clock that no jump can touch. Real time that passes while the
machine runs (seconds) is far below the steps that the rules take (hours).
"""

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from autowasm.digest import Sha256Hex
from autowasm.errors import StorageError
from tests.fakes.blobstorage import GRACE, blob_storage
from tests.fakes.clocks import FakeClocks
from tests.fakes.modulesource import sha256_of

_IN_MEMORY = Path("/dev/shm")
"""Each step would wait for several fsyncs; this test is not about power cuts."""

HOUR = 3600.0
YEARS = 20 * 365 * 24 * HOUR
BUDGET = 300
SHARE = 200
SLACK = 0.01 * GRACE
CONTENTS = {sha256_of(data): data for data in (b"%d" % n * (50 + 25 * n) for n in range(6))}
digests = st.sampled_from(sorted(CONTENTS))
owners = st.sampled_from(["x/1", "x/2", "y/1"])


class RetentionMachine(RuleBasedStateMachine):
    """`published` and `histories` by owner; `young`: the last time at which the blob was certainly named. `reported_at`: when all owners had reported."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
        self.runner = asyncio.Runner()
        self.clocks = FakeClocks()
        self.running = 0.0  # time that passed on no clock but this
        self.published: dict[str, set[Sha256Hex]] = {}
        self.histories: dict[str, set[Sha256Hex]] = {}
        self.young: dict[Sha256Hex, float] = {}
        self.reported_at = 0.0
        self.start()

    def start(self) -> None:
        self.stack = contextlib.AsyncExitStack()
        self.runner.run(self._start())

    async def _start(self) -> None:
        self.storage = await self.stack.enter_async_context(
            blob_storage(
                self.directory, budget=BUDGET, share=SHARE, clocks=self.clocks, synced=False
            )
        )

    def all_reported(self) -> None:
        self.storage.retention.synced(self.published)
        for owner in self.published:
            self.report(owner)

    def report(self, owner: str) -> None:
        self.storage.publish(
            owner, *self.published.get(owner, ()), kept=tuple(self.histories.get(owner, ()))
        )

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.directory)

    @property
    def all_published(self) -> set[Sha256Hex]:
        return set().union(*self.published.values())

    @property
    def all_named(self) -> set[Sha256Hex]:
        return self.all_published.union(*self.histories.values())

    def name_now(self, *others: Sha256Hex) -> None:
        for sha256 in (*self.all_named, *others):
            self.young[sha256] = self.running

    @precondition(lambda self: not self.storage.pins.complete)
    @rule()
    def report_all(self) -> None:
        self.all_reported()
        self.reported_at = self.running

    @precondition(lambda self: self.storage.pins.complete)  # else it would wait
    @rule(digest=digests, owner=owners)
    def fetch_and_publish(self, digest: Sha256Hex, owner: str) -> None:
        """As the fetcher and the reconciler do: reservation, room, commit, hold, publish."""
        before, needed = self.storage.store.digests(), self.all_published
        stored = self.published.get(owner, set()) & before
        try:
            self.runner.run(self._fetch(digest, owner))
        except StorageError:
            assert self.storage.store.digests() >= needed & before
            return
        self.histories.setdefault(owner, set()).update(stored - {digest})
        self.published[owner] = {digest}
        self.report(owner)
        self.name_now(digest)
        assert digest in self.storage.store

    async def _fetch(self, digest: Sha256Hex, owner: str) -> None:
        namespace, size = owner.partition("/")[0], len(CONTENTS[digest])
        admission = self.storage.store.admission
        async with admission.reserve(
            namespace, owner=owner, sha256=digest, size=size
        ) as reservation:
            if digest not in self.storage.store:
                await self.storage.put(CONTENTS[digest])
            reservation.hold(digest, size)

    @rule(owner=owners, history=st.booleans())
    def stop_naming(self, owner: str, history: bool) -> None:
        self.name_now()
        self.histories.pop(owner, None)
        if not history:
            self.published.pop(owner, None)
            self.storage.pins.remove(owner)
        else:
            self.report(owner)
        self.runner.run(self.storage.retention.sweep())

    @rule(hours=st.sampled_from([0.1, 5.0, 11.0, 23.0]))
    def time_passes(self, hours: float) -> None:
        self.runner.run(self.storage.retention.sweep())
        self.clocks.advance(hours * HOUR)
        self.running += hours * HOUR
        self.name_now()
        self.sweep()

    @rule()
    def sweep(self) -> None:
        before = self.storage.store.digests()
        over = self.storage.store.total > BUDGET
        self.runner.run(self.storage.retention.sweep())
        for sha256 in before - self.storage.store.digests():
            if not over:
                assert sha256 not in self.all_named
                assert self.running - self.young[sha256] >= GRACE - SLACK, "went too early"
        if self.storage.pins.complete:
            for sha256 in self.storage.store.digests() - self.all_named:
                # An owner that has not reported may have named it until all owners reported.
                since = max(self.young[sha256], self.reported_at)
                assert self.running - since <= GRACE + SLACK, "stays forever"

    @rule(jump=st.sampled_from([YEARS, -YEARS, 0.0]), hours=st.sampled_from([0.0, 7.0]))
    def restart_on_the_same_boot(self, jump: float, hours: float) -> None:
        self.name_now()
        self.runner.run(self.stack.aclose())
        self.clocks.advance(hours * HOUR)
        self.clocks.wall += jump
        self.running += hours * HOUR
        # Without observation, they may have been named until now.
        self.name_now()
        before = {
            sha256: self.storage.store.size(sha256) for sha256 in self.storage.store.digests()
        }
        self.start()
        assert self.storage.store.digests() == set(before)

    @rule(jump=st.sampled_from([YEARS, -YEARS]))
    def a_clock_jumps(self, jump: float) -> None:
        self.clocks.wall += jump

    @invariant()
    def published_blobs_stay(self) -> None:
        assert self.storage.store.digests() >= self.all_published

    @invariant()
    def budget_holds(self) -> None:
        assert self.storage.store.total <= BUDGET
        if not self.storage.pins.complete:
            return
        for namespace in ("x", "y"):
            pinned = {
                sha256
                for owner, shas in self.published.items()
                if owner.startswith(namespace)
                for sha256 in shas
            }
            assert sum(len(CONTENTS[sha256]) for sha256 in pinned) <= SHARE


TestRetentionMachine = RetentionMachine.TestCase
TestRetentionMachine.settings = settings(
    max_examples=settings().max_examples // 4, stateful_step_count=25, deadline=None
)
