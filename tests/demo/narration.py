"""The output of the demos: paragraphs, numbered steps, commands with their output.

Invariant: the text shown after a command is what the command printed.
"""

import asyncio
import itertools
import shlex
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from tests.parts import provision, wat
from tests.parts.clients import Client, inherited

_BOLD, _DIM, _PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
_NUMBERS = itertools.count(1)
_FOLLOW_SECONDS = 300


def say(text: str) -> None:
    """A paragraph for the reader."""
    print(textwrap.fill(" ".join(text.split()), 100), flush=True)


def step(title: str) -> None:
    """The numbered heading of a step."""
    print(f"\n{_BOLD}{next(_NUMBERS)}. {title}{_PLAIN}", flush=True)


def show(text: str) -> None:
    """The output of a command, or the content of a file."""
    for line in text.rstrip().splitlines():
        print(f"   {_DIM}|{_PLAIN} {line}", flush=True)


def shown_command(program: str, arguments: Sequence[str]) -> None:
    """A command as the reader would type it."""
    print(f"   $ {program} {shlex.join(arguments)}", flush=True)


async def run(
    client: Client, *arguments: str, stdin: str = "", statuses: Sequence[int] = (0,)
) -> str:
    """Run a command as a person would, and show it. Raises SystemExit for an exit status not in `statuses`."""
    shown_command(client.program.name, arguments)
    done = await client.run(*arguments, stdin=stdin.encode(), check=False)
    show(done.stdout + done.stderr)
    if done.returncode not in statuses:
        raise SystemExit(f"{client.program.name} ended with status {done.returncode}")
    return done.stdout


async def follow(client: Client, *arguments: str) -> int:
    """Run a command with live output: on a terminal it updates in place, else line by line. Returns its exit status."""
    shown_command(client.program.name, arguments)
    is_live = sys.stdout.isatty()
    process = await asyncio.create_subprocess_exec(
        client.program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=None if is_live else asyncio.subprocess.PIPE,
        env={**inherited(), **client.environment},
        cwd=client.home,
    )
    try:
        async with asyncio.timeout(_FOLLOW_SECONDS):
            if process.stdout is not None:
                async for line in process.stdout:
                    show(line.decode())
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def compiled(target: Path, text: str) -> None:
    """Compile WebAssembly text."""
    module = await asyncio.to_thread(wat.compile_text, text)
    await asyncio.to_thread(target.write_bytes, module)


async def get_parts(group: str) -> None:
    """Get the parts of a group; missing ones are built, with progress in the log. Raises PartError."""
    begun = time.monotonic()
    names = provision.GROUPS[group]
    if missing := provision.absent(names):
        print(f"   to install, one after another: {', '.join(missing)}", flush=True)
    for name in names:
        await asyncio.to_thread(provision.PARTS[name])
    print(f"   all parts are installed ({time.monotonic() - begun:.1f} s)", flush=True)
