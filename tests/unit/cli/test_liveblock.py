"""LiveBlock on a pseudo-terminal, and on a pipe."""

import fcntl
import io
import os
import pty
import struct
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

import pytest

from autowasm.cli import rollouttext
from autowasm.cli.stdio import LiveBlock
from tests.fakes.rollouts import STATES, view
from tests.fakes.terminal import Terminal

ROWS, COLUMNS = 24, 80


@dataclass
class Screen:
    """The far end of a pseudo-terminal."""

    stream: TextIO
    master: int
    terminal: Terminal

    def read(self) -> str:
        """What the screen shows, after all that was written."""
        self.stream.flush()
        while (written := self._written()) != "":
            self.terminal.feed(written)
        return self.terminal.text

    def _written(self) -> str:
        try:
            return os.read(self.master, 65536).decode()
        except BlockingIOError:
            return ""


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    os.set_blocking(master, False)
    with os.fdopen(slave, "w") as stream:
        yield Screen(stream, master, Terminal(columns=COLUMNS, rows=ROWS))
    os.close(master)


def block(stream: TextIO) -> LiveBlock:
    return LiveBlock(stream, width=40, height=10)


def test_a_block_of_any_length_is_replaced_in_place(screen: Screen) -> None:
    screen.stream.write("$ wasmc rollout status hello -w\n")
    live = block(screen.stream)
    for text in ("one\ntwo\nthree", "four", "five\nsix", "five\nsix"):
        live.show(text)
    assert screen.read() == "$ wasmc rollout status hello -w\nfive\nsix"


def test_all_states_one_after_the_other_leave_only_the_last(screen: Screen) -> None:
    screen.stream.write("before\n")
    live = block(screen.stream)
    columns, rows = live.size
    text = ""
    for rollout in [*STATES.values()] * 2:
        text = rollouttext.block(view(rollout), width=columns, height=rows)
        live.show(text)
    found = screen.read()
    assert found.removeprefix("before\n") == text
    assert screen.terminal.scrolled in ([], ["before"])


def test_a_message_stays_above_the_block(screen: Screen) -> None:
    live = block(screen.stream)
    live.show("one\ntwo")
    live.above("wasmc: warning: the API server is away")
    live.show("three")
    assert screen.read() == "wasmc: warning: the API server is away\nthree"


def test_the_same_text_is_not_written_again(screen: Screen) -> None:
    live = block(screen.stream)
    live.show("one")
    screen.read()
    live.show("one")
    assert screen._written() == ""


def test_a_pipe_gets_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    live = block(stream)
    for text in ("one", "one", "two"):
        live.show(text)
    live.above("warning")
    assert not live.is_live
    assert stream.getvalue() == "one\ntwo\n"
    assert capsys.readouterr().err == "warning\n"


def test_a_terminal_that_is_too_small_is_written_to_as_a_pipe(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert block(screen.stream).is_live
    assert not LiveBlock(screen.stream, width=40, height=10, is_plain=True).is_live
    monkeypatch.setenv("COLUMNS", "39")
    assert not block(screen.stream).is_live
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "10")
    assert not block(screen.stream).is_live
    monkeypatch.setenv("LINES", "11")
    assert block(screen.stream).is_live


def test_the_size_is_that_of_the_stream_and_not_of_standard_output(screen: Screen) -> None:
    fcntl.ioctl(screen.master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    assert block(screen.stream).size == (77, 32)
