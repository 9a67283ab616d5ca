"""`wasmc inspect`: describes an image or a file, whether wasmer accepts it, and which other consumers can pull it.

Invariants: the verdict comes from wasmer's own code with wasmer's limits; a refusal is printed as a result; nothing is written
outside a temporary folder; text is no wider than the terminal, except for a digest or a list of functions; names from a registry
or a module are escaped before they are printed; the JSON's keys are stable. The rules of the other consumers are in `compat.py`
and `registry/consumers.py`.
"""

import argparse
import dataclasses
import json
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from autowasm.artifacts.image import pull_module
from autowasm.cli import compat, givenplugin, modules, registries
from autowasm.cli.judging import judged
from autowasm.cli.options import EnvoyOffer, offered
from autowasm.cli.registries import RegistryConnection
from autowasm.cli.stdio import Progress, as_file, fitted, width_of
from autowasm.errors import ContentRejected, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry.client import ResolvedImage
from autowasm.registry.consumers import ConsumerVerdict
from autowasm.registry.credentials import Credential
from autowasm.registry.layouts import CONSUMERS, WASMER, KnownLayout, variant_of
from autowasm.registry.manifest import Descriptor
from autowasm.sandbox.plugin import Plugin
from autowasm.text import shown
from autowasm.units import format_size
from autowasm.wasm.archive import DETECT, extract_module
from autowasm.wasm.binary import MAGIC
from autowasm.wasm.module import Description, describe_module, inspect_module

_LABEL: Final = 8
_MIN_WIDTH: Final = 40
_MAX_WIDTH: Final = 200
_SHOWN_NAMES: Final = 40
_SHOWN_LAYERS: Final = 12


@dataclass(frozen=True, slots=True)
class ModuleVerdict:
    """The verdict of wasmer. `abi`: the ABI that Envoy will use; `unchecked`: checks that were not possible, or empty."""

    accepted: bool
    reason: str = ""
    message: str = ""
    abi: str = ""
    unchecked: str = ""

    @classmethod
    def refused(cls, error: ContentRejected) -> "ModuleVerdict":
        """The verdict for a refusal."""
        return cls(accepted=False, reason=error.reason, message=str(error))

    @property
    def answer(self) -> ConsumerVerdict:
        """The verdict as a row of `--compat`."""
        return ConsumerVerdict(reads=self.accepted, why=self.reason)


@dataclass(frozen=True, slots=True)
class ImageReport:
    """`layer` and `variant` are None if no module was found."""

    resolved: ResolvedImage
    layer: Descriptor | None = None
    variant: KnownLayout | None = None


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """`size` in bytes; `member`: the module's name in the archive, empty without an archive."""

    sha256: str
    size: int
    member: str
    description: Description


@dataclass(frozen=True, slots=True)
class StartReport:
    """Whether the module starts, in the form of the condition `Starts`, and the command that shows more."""

    status: str
    reason: str
    message: str
    command: str


@dataclass(frozen=True, slots=True)
class InspectReport:
    """The report on `source`, a reference or a file."""

    source: str
    verdict: ModuleVerdict
    image: ImageReport | None = None
    module: ModuleReport | None = None
    file_layout: str = ""
    compat: Mapping[str, ConsumerVerdict] | None = field(default=None)
    start: StartReport | None = None
    unmet: tuple[str, ...] = ()
    """The consumers of --require that cannot pull it."""


def as_text(report: InspectReport, *, width: int) -> str:
    """Lines of at most `width` columns."""
    page = _Page(fitted(width, least=_MIN_WIDTH, most=_MAX_WIDTH))
    page.add("Image" if report.image else "File", shown(report.source, most=300))
    if report.image:
        _add_image(page, report.image)
    elif report.file_layout:
        page.add("Layout", report.file_layout)
    if report.module:
        _add_module(page, report.module, report.verdict)
    verdict = report.verdict
    if verdict.accepted:
        page.add("Verdict", "accepted: valid, and Envoy provides all of its imports")
        if verdict.unchecked:
            page.add("", f"Not checked: {verdict.unchecked}")
    else:
        page.add_unbroken("Verdict", f"refused: {verdict.message} [{verdict.reason}]")
    if report.start is not None:
        _add_start(page, report.start)
    if report.compat is not None:
        page.lines.append("Compat")
        for consumer in CONSUMERS:
            page.add_answer(consumer, report.compat[consumer])
        for consumer in report.unmet:  # at the end, where users look
            page.add(
                "Not met", f"--require: {consumer} cannot pull it: {report.compat[consumer].why}"
            )
    return "\n".join(page.lines)


def _add_image(page: "_Page", image: ImageReport) -> None:
    resolved = image.resolved
    page.add("Digest", str(resolved.digest))
    if resolved.child:
        entries = len(resolved.index.manifests or ()) if resolved.index else 0
        page.add("Index", f"{entries} entries; selected:")
        page.add("", str(resolved.child))
    if image.variant:
        page.add("Layout", image.variant.name)
    page.add("Config", shown(resolved.manifest.config.media_type))
    layers = resolved.manifest.layers or ()
    for number, layer in enumerate(layers[:_SHOWN_LAYERS]):
        mark = ", contains the module" if image.layer and layer.digest == image.layer.digest else ""
        label = "Layers" if number == 0 else ""
        page.add(label, f"{shown(layer.media_type)}, {format_size(layer.size)}{mark}")
    if (more := len(layers) - _SHOWN_LAYERS) > 0:
        page.add("", f"and {more} more")
    for number, (key, value) in enumerate((resolved.manifest.annotations or {}).items()):
        if number >= _SHOWN_LAYERS:
            break
        page.add("Annot." if number == 0 else "", f"{shown(key)}={shown(value)}")


def _add_module(page: "_Page", module: ModuleReport, verdict: ModuleVerdict) -> None:
    described = module.description
    page.add("Sha256", module.sha256)
    exact = f" ({module.size} bytes)" if module.size >= 1024 else ""
    page.add("Size", format_size(module.size) + exact)
    if module.member:
        page.add("Name", shown(module.member))
    page.add("ABI", verdict.abi or ", ".join(map(shown, described.abi)) or "none")
    page.add("Imports", _names([str(each) for each in described.imports]))
    page.add("Exports", _names([each.name for each in described.exports]))


def _add_start(page: "_Page", start: StartReport) -> None:
    if start.status == "True":
        page.add("Start", f"{start.message}, and does not fail on a plain request")
        return
    word = "refused" if start.status == "False" else "doubtful"
    page.add("Start", f"{word}: {start.message} [{start.reason}]")
    page.add_unbroken("", f"To reproduce: {start.command}")


def _names(names: Sequence[str]) -> str:
    if not names:
        return "none"
    line = ", ".join(shown(name) for name in names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return f"{len(names)}: {line}" + (f" and {more} more (--json lists all)" if more > 0 else "")


class _Page:
    """Wrapped lines, each item with a label before it."""

    def __init__(self, width: int) -> None:
        self.lines: list[str] = []
        self._width = width

    def add(self, label: str, text: str) -> None:
        """Add one item."""
        self._wrap(f"{label:<{_LABEL}}", text, indent=_LABEL)

    def add_unbroken(self, label: str, text: str) -> None:
        """Add one item without breaking words, so that users can copy a flag in it."""
        self._wrap(f"{label:<{_LABEL}}", text, indent=_LABEL, break_words=False)

    def add_answer(self, consumer: str, answer: ConsumerVerdict) -> None:
        """Add one row of the compat table."""
        head = f"  {consumer:<14}{'yes' if answer.reads else 'no':<4}"
        self._wrap(head, CONSUMERS[consumer] if answer.reads else answer.why, indent=len(head))

    def _wrap(self, head: str, text: str, *, indent: int, break_words: bool = True) -> None:
        wrapped = textwrap.wrap(
            head + text,
            self._width,
            subsequent_indent=" " * indent,
            break_long_words=break_words,
            break_on_hyphens=False,
        )
        self.lines += wrapped or [head]


def as_json(report: InspectReport) -> str:
    """The whole report; keys in a fixed order."""
    verdict = report.verdict
    document: dict[str, Any] = {
        "source": report.source,
        "accepted": verdict.accepted,
        "reason": verdict.reason or None,
        "message": verdict.message or None,
        "unchecked": verdict.unchecked or None,
        "layout": _layout_name(report),
        "image": _image_json(report.image) if report.image else None,
        "module": _module_json(report.module, verdict) if report.module else None,
    }
    if report.compat is not None:
        document["compat"] = {
            consumer: {"pulls": answer.reads, "why": answer.why or None}
            for consumer, answer in report.compat.items()
        }
        document["unmet"] = list(report.unmet)
    if report.start is not None:
        document["start"] = dataclasses.asdict(report.start)
    return json.dumps(document, indent=2)


def _layout_name(report: InspectReport) -> str | None:
    if report.image and report.image.variant:
        return report.image.variant.name
    return report.file_layout or None


def _image_json(image: ImageReport) -> dict[str, Any]:
    resolved = image.resolved
    return {
        "digest": str(resolved.digest),
        "index": resolved.index is not None,
        "manifest": str(resolved.child or resolved.digest),
        "mediaType": resolved.manifest.media_type,
        "artifactType": resolved.manifest.artifact_type,
        "config": _descriptor_json(resolved.manifest.config),
        "layers": [_descriptor_json(layer) for layer in resolved.manifest.layers or ()],
        "layer": image.layer.digest_text if image.layer else None,
        "annotations": resolved.manifest.annotations or {},
    }


def _descriptor_json(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest_text,
        "size": descriptor.size,
    }


def _module_json(module: ModuleReport, verdict: ModuleVerdict) -> dict[str, Any]:
    described = module.description
    return {
        "sha256": module.sha256,
        "size": module.size,
        "name": module.member or None,
        "abi": verdict.abi or None,
        "abiVersions": list(described.abi),
        "imports": [{"name": str(each), "kind": each.kind} for each in described.imports],
        "exports": [{"name": each.name, "kind": each.kind} for each in described.exports],
    }


def run(arguments: argparse.Namespace) -> int:
    """Print the report, return the exit status. Raises AutoWasmError, OSError, KeyboardInterrupt as `pushpull.run`."""
    registries.begin(arguments)
    registries.check_ca_file(arguments)
    required = [compat.consumer_of(name) for name in arguments.require]
    arguments.compat = arguments.compat or bool(required)
    plugin = _plugin(arguments)
    file = modules.file_of(arguments.reference, command="inspect")
    if file is not None:
        with as_file("inspect", file, most=Limits().image_bytes) as module:
            found = registries.run_to_end(_inspect_file(module, plugin, arguments))
        found = dataclasses.replace(found, source=str(file))
    else:
        reference = registries.parse_reference(arguments.reference)
        login = registries.given_login(arguments)
        found = registries.run_to_end(_inspect_image(reference, login, plugin, arguments))
    answers = found.compat or {}
    missing = [name for name in required if not answers[name].reads]
    found = dataclasses.replace(found, unmet=tuple(missing))
    if arguments.json:
        print(as_json(found), flush=True)
    else:
        width = width_of(sys.stdout)
        print(as_text(found, width=width), flush=True)
    is_refused = found.start is not None and found.start.status == "False"
    return 0 if found.verdict.accepted and not missing and not is_refused else 1


def _plugin(arguments: argparse.Namespace) -> Plugin | None:
    """The plugin with which --start runs the module; None without --start. Raises UsageError."""
    given = [
        flag
        for flag, value in (
            ("--config", arguments.config is not None),
            ("--env", arguments.env),
            ("--root-id", arguments.root_id is not None),
        )
        if value
    ]
    if given and not arguments.start:
        raise UsageError(f"{given[0]} is for --start")
    return givenplugin.of_flags(arguments) if arguments.start else None


async def _inspect_file(
    path: Path, plugin: Plugin | None, arguments: argparse.Namespace
) -> InspectReport:
    limits = Limits()
    with Pools(transfers=1) as pools:
        async with registries.workdir(None, pools=pools) as workdir:
            judge = _Judge(pools, limits, offered(arguments))
            target = workdir / "module"
            size = (await pools.disk.run(path.stat)).st_size
            try:
                modules.check_size(size, limits=limits)
                member = await pools.parsing.run(
                    extract_module, path, target, packing=DETECT, limits=limits
                )
            except ContentRejected as error:
                verdict = ModuleVerdict.refused(error)
                return InspectReport(str(path), verdict, compat=_same(verdict, arguments))
            module, verdict = await judge.judge(target, member)
            start = await _started(target, verdict, plugin, arguments, pools=pools)
            answers = None
            if arguments.compat:
                others = await pools.parsing.run(compat.of_file, path, member=member, limits=limits)
                answers = {WASMER: verdict.answer, **others}
            bare = await pools.disk.run(_is_bare, path)
            layout = "a bare module" if bare else "an archive"
            return InspectReport(
                str(path), verdict, module=module, file_layout=layout, compat=answers, start=start
            )


async def _inspect_image(
    reference: ImageReference,
    login: Credential | None,
    plugin: Plugin | None,
    arguments: argparse.Namespace,
) -> InspectReport:
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
            start = await _started(workdir / "module", verdict, plugin, arguments, pools=pools)
            answers = None
            if arguments.compat:
                images = compat.Images(connection, limits, pools, workdir)
                answers = {WASMER: verdict.answer, **await images.answers(resolved)}
            return InspectReport(
                str(reference), verdict, image=image, module=module, compat=answers, start=start
            )


async def _started(
    module: Path,
    verdict: ModuleVerdict,
    plugin: Plugin | None,
    arguments: argparse.Namespace,
    *,
    pools: Pools,
) -> StartReport | None:
    """The verdict on the start of a module that passed the checks, with the `plugin` of --start."""
    if plugin is None or not verdict.accepted:
        return None
    data = await pools.disk.run(module.read_bytes)
    status, reason, message = await pools.parsing.run(judged, data, plugin, offered(arguments))
    return StartReport(status, reason, message, _command(arguments))


def _command(arguments: argparse.Namespace) -> str:
    words = ["wasmc", "run", arguments.reference]
    for flag, value in (("--config", arguments.config), ("--root-id", arguments.root_id)):
        words += [flag, value] if value is not None else []
    for variable in arguments.env:
        words += ["--env", variable]
    return shlex.join(words)


@dataclass(frozen=True, slots=True)
class _Judge:
    """Checks modules as wasmer does."""

    pools: Pools
    limits: Limits
    offered: EnvoyOffer

    async def pulled(
        self, connection: RegistryConnection, resolved: ResolvedImage, target: Path, *, quiet: bool
    ) -> tuple[ImageReport, ModuleReport | None, ModuleVerdict]:
        """Pull the module to `target`, and check it as wasmer would."""
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
            return ImageReport(resolved), None, ModuleVerdict.refused(error)
        layer = found.layer
        variant = variant_of(resolved.manifest, layer) if layer else None
        module, verdict = await self.judge(target, found.member)
        return ImageReport(resolved, layer, variant), module, verdict

    async def judge(self, target: Path, member: str) -> tuple[ModuleReport, ModuleVerdict]:
        """Describe and check the module in the file `target`."""
        sha256, size = await self.pools.disk.run(modules.measure, target)
        described: Description = await self.pools.parsing.run(
            describe_module, target, limits=self.limits
        )
        module = ModuleReport(sha256, size, member, described)
        try:
            info = await self.pools.parsing.run(
                inspect_module, target, limits=self.limits, **self.offered
            )
        except ContentRejected as error:
            return module, ModuleVerdict.refused(error)
        return module, ModuleVerdict(accepted=True, abi=info.abi, unchecked=info.unchecked)


def _same(
    verdict: ModuleVerdict, arguments: argparse.Namespace
) -> dict[str, ConsumerVerdict] | None:
    """The verdicts on a file in which wasmer finds no module: the other consumers find none, either."""
    if not arguments.compat:
        return None
    no = ConsumerVerdict(reads=False, why="finds no module in it")
    return {WASMER: verdict.answer, **dict.fromkeys(compat.OTHERS, no)}


def _is_bare(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
