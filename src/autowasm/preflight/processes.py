"""ForkServer: wasmer's side of the fork server and of its children.

`forkserver.py` is the other side. Invariants: `run` owns the process and restarts it when it ends; a job whose caller is
cancelled is killed, and its caller returns only when the child has ended; at most `PreflightLimits.answer_bytes` of a child's
output are kept; nothing waits longer than the deadlines of `PreflightLimits`.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from autowasm.flowcontrol import Backoff
from autowasm.limits import PreflightLimits
from autowasm.preflight import messages
from autowasm.preflight.messages import Ended, Job, Kill, Message, NoVerdictReason, Ready, Started
from autowasm.preflight.verdicts import NoVerdict
from autowasm.telemetry.metrics import Metrics

_STDERR_BYTES: Final = 4096
_REAP_TRIES: Final = 100
_REAP_PAUSE: Final = 0.02
"""Seconds. A killed process frees its memory first, which takes milliseconds."""
_INHERITED: Final = ("LD_LIBRARY_PATH", "PYTHONHOME")
"""The memory that the interpreter itself may need to start."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """How a child ended, and its answer: None if it wrote no complete frame, or a frame that is too long."""

    ended: Ended
    answer: bytes | None


class _Life:
    """One process of the fork server, from its start to its end. `control` does not block."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self.is_ready = False
        self.changed = asyncio.Event()
        """The process is ready, has ended, or is unusable."""
        self.over = asyncio.Event()
        self.jobs: dict[int, asyncio.Future[Ended]] = {}
        self.pids: dict[int, int] = {}
        """The pids of children that have not ended, by job."""

    def send(self, message: Job | Kill, descriptors: Sequence[int] = ()) -> None:
        """Send a packet. Raises OSError. Packets are few and small: a fork server that leaves them unread hangs."""
        socket.send_fds(self._control, [messages.pack(message)], descriptors)

    def end(self) -> None:
        """The process has ended, or does not work."""
        self.over.set()
        self.changed.set()

    def receive(self) -> None:
        """Handle all packets that have arrived."""
        try:
            while packet := self._control.recv(messages.MAX_PACKET):
                self._handle(messages.unpack(packet))
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            _log.error("the fork server sent something unexpected", error=str(error))
        self.end()

    def _handle(self, message: Message) -> None:
        match message:
            case Ready():
                self.is_ready = True
                self.changed.set()
            case Started(number, pid):
                self.pids[number] = pid
            case Ended(number) as ended:
                self.pids.pop(number, None)
                job = self.jobs.pop(number, None)
                if job is not None and not job.done():
                    job.set_result(ended)
            case other:
                raise ValueError(f"not a message of the fork server: {other!r:.200}")

    def abandon(self) -> None:
        """Fail the jobs."""
        for job in self.jobs.values():
            if not job.done():
                job.set_exception(ConnectionAbortedError())
                job.exception()  # mark as retrieved, because its caller may be gone

    async def reap(self) -> None:
        """Wait for the children of a fork server that has ended, if this process has inherited them.

        The kernel has killed them. Init, PID 1, inherits orphans, and in a container that is often wasmer.
        """
        left = set(self.pids.values())
        for _ in range(_REAP_TRIES):
            for pid in tuple(left):
                try:
                    if os.waitpid(pid, os.WNOHANG)[0]:  # noqa: ASYNC222 - does not wait
                        left.discard(pid)
                except ChildProcessError:  # another process has inherited it
                    left.discard(pid)
            if not left:
                return
            await asyncio.sleep(_REAP_PAUSE)


class ForkServer:
    """Start it with `run`, in a task. `module` is the entry point of the other side; tests have their own."""

    def __init__(
        self,
        limits: PreflightLimits,
        *,
        metrics: Metrics,
        module: str = "autowasm.preflight.child",
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._module = module
        self._numbers = itertools.count(1)
        self._life: _Life | None = None
        """None unless it is ready."""
        self._ready = asyncio.Event()
        self._cannot_start = False
        """The last start failed, so callers do not wait for the next one."""
        self.pid: int | None = None
        """Of the process, None while there is none."""

    async def run(self) -> None:
        """Keep the fork server running until cancelled."""
        backoff = Backoff(self._limits.restart_base, self._limits.restart_maximum)
        failures = 0
        while True:
            was_ready = False
            try:
                was_ready = await self._run_once()
            except OSError as error:
                _log.error("the fork server cannot be started", error=str(error))
            failures = 1 if was_ready else failures + 1
            self._cannot_start = not was_ready
            self._ready.set()  # wakes callers, which check again
            self._ready.clear()
            self._metrics.preflight_restarts.inc()
            await asyncio.sleep(backoff.delay(failures))

    async def execute(
        self,
        work: str,
        descriptors: Sequence[int],
        *,
        request: bytes | None = None,
        seconds: float,
        resident: int,
        file: int = 0,
    ) -> Result:
        """Run one child. `request` is sent to it in a frame. Raises NoVerdict if no child can be started."""
        life = await self._wait_ready()
        job = Job(
            next(self._numbers),
            work,
            seconds=seconds,
            resident=resident,
            memory=self._limits.address_memory,
            cpu=int(seconds) + 2,  # the deadline comes first, unless the fork server hangs
            file=file,
        )
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
            life.jobs[job.number] = ended
            try:
                life.send(job, [theirs.fileno(), *descriptors])
            except OSError as error:
                del life.jobs[job.number]
                life.end()
                raise NoVerdict(
                    NoVerdictReason.NOT_STARTED, f"the fork server: {error.strerror}"
                ) from error
            theirs.close()
            return await self._follow(life, job, ended, ours, request)

    async def _follow(
        self,
        life: _Life,
        job: Job,
        ended: "asyncio.Future[Ended]",
        channel: socket.socket,
        request: bytes | None,
    ) -> Result:
        try:
            async with asyncio.timeout(job.seconds + self._limits.grace_seconds):
                answer = await self._converse(channel, request)
                return Result(await asyncio.shield(ended), answer)
        except TimeoutError as error:
            life.end()
            raise NoVerdict(
                NoVerdictReason.NOT_STARTED, "the fork server does not answer"
            ) from error
        except ConnectionAbortedError as error:
            raise NoVerdict(
                NoVerdictReason.NOT_STARTED, "the fork server ended while the child ran"
            ) from error
        finally:
            if not ended.done():
                await self._kill(life, job, ended)
            life.jobs.pop(job.number, None)

    async def _kill(self, life: _Life, job: Job, ended: "asyncio.Future[Ended]") -> None:
        """Kill the child and wait until it is gone."""
        try:
            life.send(Kill(job.number))
            async with asyncio.timeout(self._limits.grace_seconds):
                await asyncio.shield(ended)
        except (OSError, TimeoutError):
            life.end()

    async def _converse(self, channel: socket.socket, request: bytes | None) -> bytes | None:
        """Send the request, and read the answer or the end of the channel.

        Not with streams: a child that cannot do its work answers without reading the request, and a stream drops received data
        when it cannot write.
        """
        if request is not None:
            with contextlib.suppress(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(channel, messages.frame(request))
        try:
            (length,) = messages.LENGTH.unpack(await _receive(channel, messages.LENGTH.size))
            if length > self._limits.answer_bytes:
                return None
            return await _receive(channel, length)
        except (EOFError, ConnectionError):
            return None
        finally:
            channel.close()

    async def _wait_ready(self) -> _Life:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.start_seconds):
                while self._life is None and not self._cannot_start:
                    await self._ready.wait()
        if self._life is None:
            raise NoVerdict(
                NoVerdictReason.NOT_STARTED,
                "the fork server does not start; the log of wasmer has the reason",
            )
        return self._life

    async def _run_once(self) -> bool:
        """Start the process and follow it until it ends. Returns whether it became ready. Raises OSError."""
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with control:
            control.setblocking(False)
            with theirs:
                process = await self._spawn(theirs)
            self.pid = process.pid
            try:
                return await self._serve(process, control)
            finally:
                self.pid = None

    async def _spawn(self, control: socket.socket) -> asyncio.subprocess.Process:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        paths = os.pathsep.join(path for path in sys.path if path)
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-s",
            "-P",
            "-m",
            self._module,
            stdin=control.fileno(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**environment, "PYTHONPATH": paths},
            cwd="/",
            start_new_session=True,  # terminal signals are for wasmer
        )

    async def _serve(self, process: asyncio.subprocess.Process, control: socket.socket) -> bool:
        loop = asyncio.get_running_loop()
        life = _Life(control)
        output = bytearray()
        reading = asyncio.create_task(_keep_last(process.stderr, output), name="fork server stderr")
        loop.add_reader(control, life.receive)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.start_seconds):
                    await life.changed.wait()
            if life.is_ready:
                self._cannot_start = False
                self._life = life
                self._ready.set()
                await life.over.wait()
            shown = output.decode(errors="replace")
            _log.error("the fork server ended", was_ready=life.is_ready, output=shown)
        finally:
            loop.remove_reader(control)
            self._life = None
            self._ready.clear()
            reading.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            life.abandon()
            await life.reap()
        return life.is_ready


async def _receive(channel: socket.socket, count: int) -> bytes:
    """Receive this many bytes. Raises EOFError if the channel ends earlier, and ConnectionError."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < count:
        part = await loop.sock_recv(channel, count - len(received))
        if not part:
            raise EOFError
        received += part
    return bytes(received)


async def _keep_last(stream: asyncio.StreamReader | None, output: bytearray) -> None:
    if stream is None:
        return
    while part := await stream.read(_STDERR_BYTES):
        output += part
        del output[:-_STDERR_BYTES]
