"""What is shown between a write and the watch that brings it."""

import asyncio
from typing import Any

import pytest

from autowasm.controller.publishing.overlay import KEPT, WriteOverlay
from autowasm.kube.resources import ObjectKey

pytestmark = pytest.mark.looptime

KEY = ObjectKey("default", "test")


def version(number: int) -> dict[str, Any]:
    return {"metadata": {"uid": "u", "resourceVersion": str(number)}}


async def test_shows_what_was_written_until_the_informer_does() -> None:
    stored: dict[ObjectKey, Any] = {}
    overlay = WriteOverlay(stored.get)
    overlay.wrote(KEY, version(2))
    assert overlay.get(KEY) == version(2)
    assert overlay.observed(KEY, version(1)), "older: nobody need look"
    assert overlay.get(KEY) == version(2)
    stored[KEY] = version(2)
    assert overlay.observed(KEY, version(2)), "our own write"
    stored[KEY] = version(3)
    assert not overlay.observed(KEY, version(3))
    assert overlay.get(KEY) == version(3)


async def test_forgets_what_the_informer_never_shows() -> None:
    overlay = WriteOverlay({}.get)
    overlay.wrote(KEY, version(2))
    await asyncio.sleep(KEPT)
    assert overlay.get(KEY) is None


async def test_does_not_show_what_went_while_the_api_server_was_asked() -> None:
    overlay = WriteOverlay({}.get)
    with overlay.asking(KEY):
        assert not overlay.observed(KEY, None)
        overlay.wrote(KEY, version(2))  # the answer is of before
    assert overlay.get(KEY) is None
    with overlay.asking(KEY):
        overlay.wrote(KEY, version(5))
    assert overlay.get(KEY) == version(5)
    assert not overlay.observed(KEY, None)
    assert overlay.get(KEY) is None


async def test_two_may_ask_about_one_object() -> None:
    overlay = WriteOverlay({}.get)
    with overlay.asking(KEY):
        with overlay.asking(KEY):
            overlay.observed(KEY, None)
        overlay.wrote(KEY, version(2))  # asked before it went
    assert overlay.get(KEY) is None
    with overlay.asking(KEY):
        overlay.wrote(KEY, version(5))
    assert overlay.get(KEY) == version(5)
