"""`wasmc inspect`: what an image or a file is, whether wasmer would accept it, who else could pull it.

Not the text of the answer (`report.py`) and not the others' rules (`compat.py`, `registry/consumers.py`). Invariants: the
verdict is made by the server's own code on the server's own limits; a refusal is a result and is printed as one; nothing is
written outside of a temporary folder.
"""

import argparse
import dataclasses
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from autowasm.artifacts.image import pull_module
from autowasm.cli import compat, piped, registries, report
from autowasm.cli.moduleflags import Offered, offered
from autowasm.cli.progress import Progress
from autowasm.cli.registries import Connection
from autowasm.cli.report import Image, Module, Report, Verdict
from autowasm.errors import ContentRejected, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry.client import ResolvedImage
from autowasm.registry.consumers import Answer
from autowasm.registry.credentials import Credential
from autowasm.registry.layouts import WASMER, variant_of
from autowasm.units import format_size
from autowasm.wasm.archive import DETECT, extract_module
from autowasm.wasm.binary import MAGIC
from autowasm.wasm.module import Description, describe_module, inspect_module

_FILE_PREFIXES = ("./", "../", "/")
_FILE_SUFFIXES = (".wasm", ".tar", ".gz", ".tgz", ".zst")


def run(arguments: argparse.Namespace) -> int:
    """Print the report; the exit status. Raises AutoWasmError, OSError, and KeyboardInterrupt as `transfers.run`."""
    registries.begin(arguments)
    registries.check_ca_file(arguments)
    required = [compat.consumer_of(name) for name in arguments.require]
    arguments.compat = arguments.compat or bool(required)
    file = _as_file(arguments.reference)
    if file is not None:
        with piped.as_file("inspect", file, most=Limits().image_bytes) as module:
            found = registries.run_to_end(_inspect_file(module, arguments))
        found = dataclasses.replace(found, source=str(file))
    else:
        reference = registries.parse_reference(arguments.reference)
        login = registries.given_login(arguments)
        found = registries.run_to_end(_inspect_image(reference, login, arguments))
    if arguments.json:
        print(report.as_json(found), flush=True)
    else:
        width = shutil.get_terminal_size().columns
        print(report.as_text(found, width=width), flush=True)
    answers = found.compat or {}
    missing = [name for name in required if not answers[name].reads]
    return 0 if found.verdict.accepted and not missing else 1


def _as_file(text: str) -> Path | None:
    """The file that is meant, None if it is an image. Raises UsageError."""
    if not text:
        return None
    path = Path(text)
    if piped.is_piped(path):
        return path
    try:
        exists = path.exists()
    except (OSError, ValueError):  # too long a name, a zero byte
        exists = False
    if text.startswith(_FILE_PREFIXES) or (exists and not path.is_dir()):
        registries.check_readable("inspect", path)
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path}: not a plain file")
        return path
    if "/" not in text and text.endswith(_FILE_SUFFIXES):
        raise UsageError(f"{text}: there is no such file; an image is HOST/NAME:TAG")
    return None


async def _inspect_file(path: Path, arguments: argparse.Namespace) -> Report:
    limits = Limits()
    with Pools(transfers=1) as pools:
        async with registries.workdir(None, pools=pools) as workdir:
            judge = _Judge(pools, limits, offered(arguments))
            target = workdir / "module"
            size = (await pools.disk.run(path.stat)).st_size
            try:
                _check_size(size, limits=limits)
                member = await pools.parsing.run(
                    extract_module, path, target, packing=DETECT, limits=limits
                )
            except ContentRejected as error:
                verdict = Verdict.refused(error)
                return Report(str(path), verdict, compat=_same(verdict, arguments))
            module, verdict = await judge.judge(target, member)
            answers = None
            if arguments.compat:
                others = await pools.parsing.run(compat.of_file, path, member=member, limits=limits)
                answers = {WASMER: verdict.answer, **others}
            bare = await pools.disk.run(_is_bare, path)
            layout = "a module as it is" if bare else "an archive"
            return Report(str(path), verdict, module=module, file_layout=layout, compat=answers)


async def _inspect_image(
    reference: ImageReference, login: Credential | None, arguments: argparse.Namespace
) -> Report:
    limits = Limits()
    with Pools(transfers=1) as pools:
        async with (
            registries.connected(
                reference, login, arguments, limits=limits, pools=pools
            ) as connection,
            registries.workdir(None, pools=pools) as workdir,
        ):
            judge = _Judge(pools, limits, offered(arguments))
            resolved = await connection.client.resolve(reference, credential=connection.credential)
            image, module, verdict = await judge.pulled(
                connection, resolved, workdir / "module", quiet=arguments.quiet or arguments.json
            )
            answers = None
            if arguments.compat:
                asked = compat.Images(connection, limits, pools, workdir)
                answers = {WASMER: verdict.answer, **await asked.answers(resolved)}
            return Report(str(reference), verdict, image=image, module=module, compat=answers)


@dataclass(frozen=True, slots=True)
class _Judge:
    """What the server would say."""

    pools: Pools
    limits: Limits
    offered: Offered

    async def pulled(
        self, connection: Connection, resolved: ResolvedImage, target: Path, *, quiet: bool
    ) -> tuple[Image, Module | None, Verdict]:
        """Pull the module as the server would, to `target`, and judge it."""
        try:
            with Progress("Pulling", total=None, stream=sys.stderr, quiet=quiet) as progress:
                found = await pull_module(
                    connection.client,
                    connection.reference,
                    resolved,
                    target,
                    credential=connection.credential,
                    limits=self.limits,
                    pools=self.pools,
                    workdir=target.parent,
                    on_bytes=progress.advance,
                )
        except ContentRejected as error:
            return Image(resolved), None, Verdict.refused(error)
        layer = found.layer
        variant = variant_of(resolved.manifest, layer) if layer else None
        module, verdict = await self.judge(target, found.member)
        return Image(resolved, layer, variant), module, verdict

    async def judge(self, target: Path, member: str) -> tuple[Module, Verdict]:
        """The module in the file `target`."""
        sha256, size = await self.pools.disk.run(report.measure, target)
        described: Description = await self.pools.parsing.run(
            describe_module, target, limits=self.limits
        )
        module = Module(sha256, size, member, described)
        try:
            info = await self.pools.parsing.run(
                inspect_module, target, limits=self.limits, **self.offered
            )
        except ContentRejected as error:
            return module, Verdict.refused(error)
        return module, Verdict(accepted=True, abi=info.abi, unchecked=info.unchecked)


def _same(verdict: Verdict, arguments: argparse.Namespace) -> dict[str, Answer] | None:
    """What no reader can open has one answer for all."""
    if not arguments.compat:
        return None
    no = Answer(reads=False, why="finds no module in it")
    return {WASMER: verdict.answer, **dict.fromkeys(compat.OTHERS, no)}


def _check_size(size: int, *, limits: Limits) -> None:
    if size > limits.layer_bytes:
        raise ContentRejected(
            f"the file has {format_size(size)}; of an object at most "
            f"{format_size(limits.layer_bytes)} are fetched",
            reason="TooLarge",
        )


def _is_bare(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
