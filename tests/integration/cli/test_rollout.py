"""`wasmc rollout` on a real API server, on a terminal and on a pipe. The test writes the status, as wasmer would."""

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from autowasm.api.status import RolloutStatus
from tests.fakes import rollouts
from tests.fakes.rollouts import FAILED, HEALTHY, PAUSED, SUCCEEDED, WAITING
from tests.fakes.terminal import Terminal
from tests.parts import wasmer
from tests.parts.clients import Client, Completed
from tests.parts.controlplane import READER, ControlPlane
from tests.parts.explained import SHA256

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

Document = dict[str, Any]
_SECONDS = 60


@dataclass
class HelloRollout:
    """An AutoWasm `hello` in a namespace of its own, and the `wasmc` of its user."""

    plane: ControlPlane
    namespace: str
    client: Client

    @property
    def path(self) -> str:
        """Of the AutoWasm."""
        return f"/apis/wasm.tcm.io/v1alpha1/namespaces/{self.namespace}/autowasms/hello"

    def arguments(self, *more: str, user: str = "admin") -> list[str]:
        """Of a command."""
        config = str(self.plane.cluster.kubeconfig_of(user))
        return ["rollout", *more, "hello", "-n", self.namespace, "--kubeconfig", config]

    async def wasmc(self, *more: str, user: str = "admin") -> Completed:
        """Run a command to its end."""
        return await self.client.run(*self.arguments(*more, user=user), check=False)

    async def apply(self, *, tag: str = "v2", rollout: Document | None) -> Document:
        """The AutoWasm of this tag."""
        spec: Document = {
            "filter": {"source": {"registry": {"image": f"registry.example/hello:{tag}"}}},
            "selector": {"matchLabels": {"app": "hello"}},
        }
        if rollout is not None:
            spec["rollout"] = rollout
        document = {
            "apiVersion": "wasm.tcm.io/v1alpha1",
            "kind": "AutoWasm",
            "metadata": {"name": "hello", "namespace": self.namespace},
            "spec": spec,
        }
        return (await self.plane.cluster.apply(document))[0]

    async def get(self) -> Document:
        """The AutoWasm."""
        return await self.plane.cluster.request("GET", self.path)

    async def report(self, rollout: RolloutStatus, *, command: str = "") -> None:
        """Write the status of wasmer, for the generation that the spec has now."""
        generation = (await self.get())["metadata"]["generation"]
        target = msgspec.structs.replace(rollout.target, generation=generation)
        rollout = msgspec.structs.replace(rollout, target=target, command=command)
        status = rollouts.status(rollout, observed_generation=generation).to_dict()
        body = {
            "status": {**status, "rollout": {"verdict": None, "stable": None, **status["rollout"]}}
        }
        await self.plane.cluster.request("PATCH", f"{self.path}/status", body=body)

    async def annotation(self, wanted: Callable[[str], bool] = bool) -> str:
        """The rollout annotation, as soon as it is so."""

        def read(document: Document | None) -> str:
            annotations = ((document or {}).get("metadata") or {}).get("annotations") or {}
            return str(annotations.get("wasm.tcm.io/rollout", ""))

        client = self.plane.cluster.client
        return read(await client.wait_object(self.path, lambda found: wanted(read(found))))


@pytest_asyncio.fixture(loop_scope="session")
async def hello(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[HelloRollout]:
    async with control_plane.without_wasmer():
        name = await control_plane.add_namespace()
        yield HelloRollout(control_plane, name, wasmer.wasmc(tmp_path))


@dataclass
class Running:
    """A command that runs, and what it has written."""

    process: asyncio.subprocess.Process
    written: str = ""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def until(self, wanted: str) -> str:
        """All that was written, as soon as this was. Raises TimeoutError with it."""
        try:
            async with asyncio.timeout(_SECONDS), self.changed:
                await self.changed.wait_for(lambda: wanted in self.written)
        except TimeoutError as error:
            raise TimeoutError(f"{wanted!r} is not in {self.written!r}") from error
        return self.written

    async def end(self) -> int:
        """The exit status."""
        async with asyncio.timeout(_SECONDS):
            return await self.process.wait()

    async def take(self, text: str) -> None:
        """More output."""
        async with self.changed:
            self.written += text
            self.changed.notify_all()


@asynccontextmanager
async def started(hello: HelloRollout, *more: str) -> AsyncIterator[Running]:
    """The command with its output on a pipe."""
    process = await asyncio.create_subprocess_exec(
        hello.client.program,
        *hello.arguments(*more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(hello.client.environment),
    )
    running = Running(process)
    assert process.stdout is not None
    stream = process.stdout

    async def read() -> None:
        while line := await stream.readline():
            await running.take(line.decode())

    reader = asyncio.create_task(read(), name="output")
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reader


@asynccontextmanager
async def on_terminal(hello: HelloRollout, *more: str) -> AsyncIterator[tuple[Running, Terminal]]:
    """The command on a terminal of 80 columns and 24 rows."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    terminal = Terminal(columns=80, rows=24)
    process = await asyncio.create_subprocess_exec(
        hello.client.program,
        *hello.arguments(*more),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**hello.client.environment, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(slave)
    running = Running(process)

    async def read() -> None:
        while True:
            try:
                written = await asyncio.to_thread(os.read, master, 65536)
            except OSError:  # EIO: the program has closed its side
                return
            terminal.feed(written.decode())
            await running.take(written.decode())

    reader = asyncio.create_task(read(), name="terminal")
    try:
        yield running, terminal
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reader
        os.close(master)


async def test_a_status_is_reported_once_and_only_an_abort_is_a_failure(
    hello: HelloRollout,
) -> None:
    await hello.apply(rollout={})
    done = await hello.wasmc("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "the rollout of generation 1 has not begun" in done.stdout
    for rollout, status in ((WAITING, 0), (PAUSED, 0), (SUCCEEDED, 0), (FAILED, 1)):
        await hello.report(rollout)
        done = await hello.wasmc("status")
        assert (done.returncode, done.stderr) == (status, "")
        assert f"hello: {rollout.phase.value}, " in done.stdout
        assert "\x1b" not in done.stdout
    assert f"\nFailureRatio: {FAILED.message}\n" in done.stdout, "a pipe gets each item on one line"


async def test_a_pipe_gets_one_line_for_each_change_until_the_end(hello: HelloRollout) -> None:
    await hello.apply(rollout={})
    async with started(hello, "status", "-w") as running:
        await running.until("the rollout of generation 1 has not begun")
        await hello.report(WAITING)
        await running.until("(1 of 2 Pods proven)")
        more = msgspec.structs.replace(WAITING, waited_seconds=30.0)
        await hello.report(more)
        await hello.report(HEALTHY)
        await running.until("is healthy")
        await hello.report(SUCCEEDED)
        assert await running.end() == 0
    lines = running.written.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "the rollout of generation 1 has not begun (Pending)",
        "Progressing",
        "Progressing",
        "Succeeded",
    ]


async def test_json_has_the_rollout_of_the_status_and_with_w_a_line_for_each_change(
    hello: HelloRollout,
) -> None:
    await hello.apply(rollout={})
    await hello.report(WAITING)
    done = await hello.wasmc("status", "--json")
    found = json.loads(done.stdout)
    assert (found["name"], found["generation"], found["isCurrent"]) == ("hello", 1, True)
    assert found["rollout"] == (await hello.get())["status"]["rollout"]
    async with started(hello, "status", "-w", "--json") as running:
        await running.until("NotAccepted")
        await hello.report(FAILED)
        assert await running.end() == 1
    lines = [json.loads(line)["rollout"] for line in running.written.splitlines()]
    assert [one["phase"] for one in lines] == ["Progressing", "Aborted"]
    history = json.loads((await hello.wasmc("history", "--json")).stdout)
    states = {one["digest"]: one["state"] for one in history["filters"]}
    assert states[rollouts.NEW] == "new: aborted"
    assert history["modules"] == []


async def test_an_edit_is_followed_and_the_rollout_before_it_does_not_count(
    hello: HelloRollout,
) -> None:
    await hello.apply(rollout={})
    await hello.report(SUCCEEDED)
    await hello.apply(tag="v3", rollout={})
    async with started(hello, "status", "-w") as running:
        await running.until("the rollout of generation 2 has not begun")
        await hello.report(FAILED)
        assert await running.end() == 1
        assert "Aborted: FailureRatio: step 2 of 4: Pod team/hello" in running.written


async def test_a_rollout_that_takes_too_long_is_a_failure(hello: HelloRollout) -> None:
    await hello.apply(rollout={})
    await hello.report(WAITING)
    done = await hello.wasmc("status", "-w", "--timeout", "1500ms")
    assert done.returncode == 1
    assert "the rollout is not done after 1s500ms (--timeout)" in done.stderr


async def test_an_object_that_is_deleted_ends_the_watch(hello: HelloRollout) -> None:
    await hello.apply(rollout={})
    async with started(hello, "status", "-w") as running:
        await running.until("has not begun")
        await hello.plane.cluster.client.delete(hello.path)
        assert await running.end() == 1
        assert "hello was deleted" in running.written


async def test_a_watch_continues_after_an_outage_of_the_api_server(hello: HelloRollout) -> None:
    await hello.apply(rollout={})
    await hello.report(WAITING)
    cluster = hello.plane.cluster
    async with started(hello, "status", "-w") as running:
        await running.until("(1 of 2 Pods proven)")
        await cluster.stop_api()
        await running.until("trying again")
        await cluster.start_api()
        await hello.report(SUCCEEDED)
        assert await running.end() == 0
    assert running.written.count("trying again") == 1


async def test_a_terminal_shows_one_block_that_changes_in_place(hello: HelloRollout) -> None:
    await hello.apply(rollout={})
    await hello.report(WAITING)
    async with on_terminal(hello, "status", "-w") as (running, terminal):
        await running.until("unhealthy")
        await hello.report(HEALTHY)
        await running.until("healthy     for 7s, must stay so for 30s")  # two ticks after 5 s
        assert terminal.text.count("AutoWasm") == 1
        await hello.report(SUCCEEDED)
        assert await running.end() == 0
        await running.until("all Pods have the new filter")
    lines = terminal.text.splitlines()
    assert lines[0] == f"AutoWasm {hello.namespace}/hello: Succeeded, all Pods, generation 1"
    assert terminal.scrolled == []
    assert "step" not in terminal.text


async def test_ctrl_c_leaves_the_block_and_ends_with_130(hello: HelloRollout) -> None:
    await hello.apply(rollout={})
    await hello.report(WAITING)
    async with on_terminal(hello, "status", "-w") as (running, terminal):
        await running.until("unhealthy")
        running.process.send_signal(2)
        assert await running.end() == 130
    assert "Progressing, step 2 of 4" in terminal.text
    assert "Traceback" not in running.written


async def test_a_command_is_written_for_the_generation_and_waited_for(hello: HelloRollout) -> None:
    await hello.apply(rollout={})
    await hello.report(WAITING)
    async with started(hello, "pause") as running:
        given = await hello.annotation()
        await hello.report(PAUSED, command=given)
        assert await running.end() == 0
    assert re.fullmatch(r"pause@1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", given)
    assert "paused in step 2 of 4: the Pods keep the filters that they have" in running.written
    assert f"wasmc rollout resume hello -n {hello.namespace}" in running.written
    fields = (await hello.get())["metadata"]["managedFields"]
    assert "wasmc" in {one["manager"] for one in fields}


async def test_the_same_command_again_is_another_value(hello: HelloRollout) -> None:
    await hello.apply(rollout={})
    await hello.report(WAITING)
    given = []
    for _ in range(2):
        done = await hello.wasmc("abort", "--wait", "0")
        assert done.returncode == 0, done.stderr
        assert "abort requested" in done.stdout
        given.append(await hello.annotation())
    assert given[0] != given[1]


async def test_a_command_that_wasmer_does_not_read_is_a_failure_and_stays(
    hello: HelloRollout,
) -> None:
    await hello.apply(rollout={})
    await hello.report(PAUSED)
    done = await hello.wasmc("resume", "--wait", "1s")
    assert done.returncode == 1
    assert "wasmer has not carried out resume within 1s" in done.stderr
    assert (await hello.annotation()).startswith("resume@1 ")


async def test_a_command_after_the_end_of_the_rollout_fails_with_its_reason(
    hello: HelloRollout,
) -> None:
    await hello.apply(rollout={})
    await hello.report(WAITING)
    async with started(hello, "pause") as running:
        await hello.report(SUCCEEDED, command=await hello.annotation())
        assert await running.end() == 1
    assert "pause was not carried out" in running.written


async def test_a_command_that_changes_nothing_writes_nothing(hello: HelloRollout) -> None:
    await hello.apply(rollout={})
    await hello.report(SUCCEEDED)
    done = await hello.wasmc("abort")
    assert done.returncode == 1
    assert "abort changes nothing" in done.stderr
    assert "annotations" not in (await hello.get())["metadata"]


async def test_commands_without_a_staged_rollout_fail_and_name_spec_rollout(
    hello: HelloRollout,
) -> None:
    await hello.apply(rollout=None)
    for command in ("status", "pause", "history"):
        done = await hello.wasmc(command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "has no spec.rollout: a changed filter reaches all Pods at once" in done.stderr


async def test_an_object_that_is_missing_or_not_readable_is_distinguished(
    hello: HelloRollout,
) -> None:
    done = await hello.wasmc("status", "-w")
    assert done.returncode == 1
    assert f"AutoWasm {hello.namespace}/hello does not exist" in done.stderr
    await hello.apply(rollout={})
    done = await hello.wasmc("status", "-w", user=READER)
    assert done.returncode == 2
    assert "403 Forbidden" in done.stderr
    assert "Traceback" not in done.stderr


async def test_history_reads_status_and_envoyfilter(hello: HelloRollout) -> None:
    await hello.apply(rollout={})
    await hello.report(FAILED)
    done = await hello.wasmc("history")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [rollouts.NEW, "1", SHA256, "new:", "aborted"] in rows
    assert [rollouts.OLD, "6", SHA256, "previous:", "all", "Pods", "have", "it"] in rows
