"""Does what a page says, as its reader would: runs commands in order, writes files, compares what is printed.

Not a shell of its own: bash runs it, with the programs of the parts on its PATH. Invariant: what a page starts in the
background has ended when the context ends.
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.blocks import Block

_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed and how it ended."""

    status: int
    text: str


@dataclass(slots=True)
class Shell:
    """A reader's terminal: a folder, an environment, and texts that stand for others (ports that are taken here)."""

    directory: Path
    environment: Mapping[str, str]
    replacements: Mapping[str, str] = field(default_factory=dict)
    _groups: list[int] = field(default_factory=list)

    def replaced(self, text: str) -> str:
        """The text with what is different here."""
        if not self.replacements:
            return text
        known = "|".join(map(re.escape, self.replacements))
        return re.sub(known, lambda found: self.replacements[found[0]], text)

    def write(self, block: Block) -> Path:
        """The file that a block with a title stands for."""
        target = self.directory / block.title
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.replaced(block.text))
        return target

    async def run(self, script: str, *, strict: bool = True) -> Said:
        """Run it to its end, or if `strict` to its first failure; what it leaves in the background goes on. Raises TimeoutError."""
        output = self.directory / ".said"
        with output.open("wb") as target:
            process = await asyncio.create_subprocess_exec(
                *("bash", *(("-euo", "pipefail") if strict else ()), "-c", self.replaced(script)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=target,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self.directory,
                env=dict(self.environment),
                start_new_session=True,
            )
            self._groups.append(process.pid)
            async with asyncio.timeout(_SECONDS):
                status = await process.wait()
        return Said(status, output.read_text(errors="replace"))

    async def close(self) -> None:
        """End what is still there, in the order against that of its start."""
        for group in reversed(self._groups):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
        async with asyncio.timeout(30):
            while any(_alive(group) for group in self._groups):
                await asyncio.sleep(0.05)


def _alive(group: int) -> bool:
    """Whether a process of the group runs. One that has ended and that init has not buried yet does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


@asynccontextmanager
async def shell(
    directory: Path, environment: Mapping[str, str], replacements: Mapping[str, str] | None = None
) -> AsyncIterator[Shell]:
    """A terminal that is closed at the end."""
    terminal = Shell(directory, environment, replacements or {})
    try:
        yield terminal
    finally:
        await terminal.close()


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Of a `console` block: each command (`$ `, continued by `> `) with what the page says it prints."""
    command, said = "", ""
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ "):
            if command:
                yield command, said
            command, said = line[2:], ""
        elif line.startswith("> ") and not said:
            command += line[2:]
        elif not command:
            raise ValueError(f"{block}: a console block begins with a command")
        else:
            said += line
    yield command, said


def matches(expected: str, text: str) -> bool:
    """Whether the text is as the page has it: `…` stands for anything within a line, alone in a line for any lines."""
    parts = []
    for line in expected.splitlines():
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            words = [re.escape(word) for word in " ".join(line.split()).split("…")]
            parts.append(r"[^\n]*".join(words) + r"\n")
    plain = "".join(" ".join(line.split()) + "\n" for line in text.splitlines())
    return re.fullmatch("".join(parts), plain) is not None
