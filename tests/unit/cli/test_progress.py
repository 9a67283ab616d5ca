"""The line of progress."""

import io

import pytest

from autowasm.cli.stdio import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, *, total: int | None, quiet: bool = False) -> str:
    with Progress("Pulling", total=total, stream=stream, quiet=quiet) as progress:
        for _ in range(4):
            progress._drawn = 0.0  # as if time had passed
            progress.advance(512 * 1024)
    return stream.getvalue()


def test_progress_is_not_written_without_a_terminal_or_when_quiet() -> None:
    assert run(io.StringIO(), total=None) == ""
    assert run(Terminal(), total=None, quiet=True) == ""


def test_a_terminal_shows_bytes_share_and_rate_and_is_left_clean() -> None:
    text = run(Terminal(), total=4 * 1024 * 1024)
    last_line = text.split("\r\x1b[K")[-2]
    assert last_line.startswith("Pulling [############            ]  50% 2 MiB of 4 MiB ")
    assert last_line.endswith("/s")
    assert text.endswith("\r\x1b[K")
    assert "\n" not in text


def test_retried_download_never_shows_more_than_100_percent() -> None:
    assert "100% 2 MiB of 1 MiB" in run(Terminal(), total=1024 * 1024)


def test_an_unknown_total_shows_bytes_only() -> None:
    assert "Pulling 2 MiB " in run(Terminal(), total=None)


def test_it_is_not_drawn_for_every_chunk() -> None:
    terminal = Terminal()
    with Progress("Pulling", total=None, stream=terminal, quiet=False) as progress:
        for _ in range(1000):
            progress.advance(1)
    assert terminal.getvalue().count("Pulling") < 100


def test_the_line_is_cleared_when_the_work_fails() -> None:
    terminal = Terminal()
    with (
        pytest.raises(ValueError, match="no"),
        Progress("Pulling", total=None, stream=terminal, quiet=False),
    ):
        raise ValueError("no")
    assert terminal.getvalue().endswith("\r\x1b[K")
