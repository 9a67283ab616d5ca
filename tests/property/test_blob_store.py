"""BlobStore as a state machine: after any change of the files, a returned blob has its digest."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.limits import StoreLimits
from autowasm.net.pools import Pools
from autowasm.telemetry.metrics import Metrics

CONTENTS = {Sha256Hex(hashlib.sha256(data).hexdigest()): data for data in (b"a", b"bb", b"c" * 99)}
digests = st.sampled_from(sorted(CONTENTS))


class StoreMachine(RuleBasedStateMachine):
    """`good`: digests with the committed file. Other stored files were changed."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.good: set[Sha256Hex] = set()
        self.start(cold_after=60.0)

    def start(self, cold_after: float) -> None:
        self.stack = contextlib.AsyncExitStack()
        self.runner.run(self._start(cold_after))

    async def _start(self, cold_after: float) -> None:
        pools = self.stack.enter_context(Pools())
        limits = StoreLimits(open_files=2, cold_after=cold_after, verify_pause=0)
        store = BlobStore(self.directory, pools=pools, metrics=Metrics(), limits=limits)
        self.store = await self.stack.enter_async_context(store)

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.directory)

    def file(self, digest: Sha256Hex) -> Path:
        return self.directory / "blobs" / digest

    @rule(cold_after=st.sampled_from([0.0, 60.0]), leftover=st.booleans())
    def restart(self, cold_after: float, leftover: bool) -> None:
        self.runner.run(self.stack.aclose())
        if leftover:
            (self.directory / "staging" / "half").write_bytes(b"half")
        self.start(cold_after)
        assert list((self.directory / "staging").iterdir()) == []
        assert self.store.digests() >= self.good

    @rule(digest=digests)
    def commit(self, digest: Sha256Hex) -> None:
        async def commit() -> None:
            async with self.store.stage() as stage:
                stage.path.write_bytes(CONTENTS[digest])
                await self.store.commit(stage, digest)

        self.runner.run(commit())
        self.good.add(digest)
        assert digest in self.store

    @rule(digest=digests)
    def discard(self, digest: Sha256Hex) -> None:
        self.runner.run(self.store.discard(digest))
        if digest in self.good:
            assert not self.file(digest).exists()
        self.good.discard(digest)
        assert digest not in self.store

    @rule(digest=digests, how=st.sampled_from(["flip", "shorten", "lengthen", "replace", "remove"]))
    def tamper(self, digest: Sha256Hex, how: str) -> None:
        path = self.file(digest)
        if not path.exists():
            return
        self.good.discard(digest)
        match how:
            case "flip":
                with path.open("r+b") as file:
                    file.write(b"!")
            case "shorten":
                os.truncate(path, 0)
            case "lengthen":
                with path.open("ab") as file:
                    file.write(b"!")
            case "replace":
                other = self.directory / "other"
                other.write_bytes(b"!" * len(CONTENTS[digest]))
                other.rename(path)
            case _:
                path.unlink()

    @rule(digest=digests)
    def touch(self, digest: Sha256Hex) -> None:
        if self.file(digest).exists():
            os.utime(self.file(digest), (1, 1))

    @rule(digest=digests)
    def open(self, digest: Sha256Hex) -> None:
        blob = self.runner.run(self.store.open(digest))
        assert (blob is not None) == (digest in self.good)
        if blob is not None:
            assert os.pread(blob.fd, blob.size + 1, 0) == CONTENTS[digest]
        else:
            assert digest not in self.store

    @rule()
    def verify_all(self) -> None:
        self.runner.run(self.store.verify_all())
        assert self.store.digests() >= self.good

    @invariant()
    def good_blobs_stay(self) -> None:
        assert self.store.digests() >= self.good


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=settings().max_examples * 3 // 10, stateful_step_count=25, deadline=None
)
