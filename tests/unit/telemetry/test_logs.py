"""The form of a log line, and content that is never in one."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from autowasm.telemetry import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging is set up once for a process; a test restores it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs._PINNED}
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


def lines(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_event_is_one_line_of_json(output: io.StringIO) -> None:
    logs.configure(stream=output)
    with structlog.contextvars.bound_contextvars(key="default/test"):
        structlog.get_logger("autowasm.x").info("module stored", digest="ab\ncd", size=3)
    (line,) = lines(output)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "module stored", "level": "info", "logger": "autowasm.x", "key": "default/test",
        "digest": "ab\ncd", "size": 3,
    }  # fmt: skip


def test_libraries_come_out_in_the_same_form(output: io.StringIO) -> None:
    logs.configure(stream=output)
    logging.getLogger("aiohttp.server").warning("odd request %s", "x", extra={"peer": "1.2.3.4"})
    (line,) = lines(output)
    assert (line["event"], line["logger"], line["level"]) == (
        "odd request x", "aiohttp.server", "warning",
    )  # fmt: skip
    assert line["peer"] == "1.2.3.4"


@pytest.mark.parametrize("form", ["json", "console"])
def test_traceback_shows_no_local_variables(output: io.StringIO, form: str) -> None:
    logs.configure(form=form, stream=output)
    token = "hunter" + "2"

    def fails(secret: str) -> None:
        raise ValueError("a bug")

    try:
        fails(token)
    except ValueError:
        structlog.get_logger("autowasm.x").exception("fetch failed unexpectedly")
        logging.getLogger("asyncio").exception("task failed")
    text = output.getvalue()
    assert text.count("a bug") >= 2
    assert token not in text


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)]
)
def test_level_holds_for_all(output: io.StringIO, level: str, shown: int) -> None:
    logs.configure(level=level, stream=output)
    log = structlog.get_logger("autowasm.x")
    log.debug("one")
    log.info("two")
    logging.getLogger("library").warning("three")
    assert len(lines(output)) == shown


def test_libraries_that_print_secrets_stay_quiet_at_debug(output: io.StringIO) -> None:
    logs.configure(level="debug", stream=output)
    logging.getLogger("urllib3.connectionpool").debug("GET /v2/?token=x")
    logging.getLogger("kubernetes_asyncio.client.rest").debug("response body: x")
    assert not output.getvalue()


def test_console_has_no_colours_away_from_a_terminal(output: io.StringIO) -> None:
    logs.configure(form="console", stream=output)
    structlog.get_logger("autowasm.x").info("module stored", size=3)
    assert "\x1b" not in output.getvalue()
    assert "module stored" in output.getvalue()


def test_plain_is_one_sentence_for_a_person(output: io.StringIO) -> None:
    logs.configure(form="plain", level="warning", stream=output)
    structlog.get_logger("autowasm.x").warning("store not used", error="no\nsuch program")
    structlog.get_logger("autowasm.x").info("not of interest")
    assert output.getvalue() == "wasmc: warning: store not used: no such program\n"


def test_configured_twice_writes_once(output: io.StringIO) -> None:
    logs.configure(stream=io.StringIO())
    logs.configure(stream=output)
    logging.getLogger("x").warning("once")
    assert len(lines(output)) == 1
