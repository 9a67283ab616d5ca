"""TaskOwner: no failure is lost, and none is left at the end."""

import asyncio

import structlog

from autowasm.server.ondemand import TaskOwner


async def test_a_task_that_fails_is_logged_with_its_name() -> None:
    owner = TaskOwner()

    async def fail() -> None:
        raise ZeroDivisionError("a fault")

    with structlog.testing.capture_logs() as events:
        owner.start(fail(), name="fill")
        await asyncio.sleep(0)
        await owner.close()
        await asyncio.sleep(0)
    (event,) = events
    assert (event["event"], event["task"]) == ("task failed", "fill")
    assert isinstance(event["exc_info"], ZeroDivisionError)


async def test_close_cancels_running_tasks_without_a_log_event() -> None:
    owner, ended = TaskOwner(), []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with structlog.testing.capture_logs() as events:
        owner.start(wait(), name="wait")
        await asyncio.sleep(0)
        await owner.close()
    assert ended == [True]
    assert events == []
