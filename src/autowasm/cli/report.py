"""The report of `wasmc inspect`, as text for a terminal and as JSON.

Not a judge. Invariants: text is no wider than the terminal, but for a digest or a list of functions that is wider itself; what a registry or a
module calls something is escaped before it is printed; the JSON's keys stay as they are.
"""

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from autowasm.errors import ContentRejected
from autowasm.registry.client import ResolvedImage
from autowasm.registry.consumers import Answer
from autowasm.registry.layouts import CONSUMERS, Variant
from autowasm.registry.manifest import Descriptor
from autowasm.text import shown
from autowasm.units import format_size
from autowasm.wasm.module import Description

_LABEL: Final = 8
_LEAST_WIDTH: Final = 60
_SHOWN_NAMES: Final = 40
_SHOWN_LAYERS: Final = 12


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the server would say. `abi` is the one that Envoy will take; `unchecked` says what could not be checked."""

    accepted: bool
    reason: str = ""
    message: str = ""
    abi: str = ""
    unchecked: str = ""

    @classmethod
    def refused(cls, error: ContentRejected) -> "Verdict":
        """From the refusal."""
        return cls(accepted=False, reason=error.reason, message=str(error))

    @property
    def answer(self) -> Answer:
        """As one of the answers of `--compat`."""
        return Answer(reads=self.accepted, why=self.reason)


@dataclass(frozen=True, slots=True)
class Image:
    """`layer` and `variant` are None where no module was found."""

    resolved: ResolvedImage
    layer: Descriptor | None = None
    variant: Variant | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """`size` in bytes; `member` is its name in the archive, empty without one."""

    sha256: str
    size: int
    member: str
    description: Description


@dataclass(frozen=True, slots=True)
class Report:
    """All that is known of `source`, the reference or file."""

    source: str
    verdict: Verdict
    image: Image | None = None
    module: Module | None = None
    file_layout: str = ""
    compat: Mapping[str, Answer] | None = field(default=None)


def measure(path: Path) -> tuple[str, int]:
    """sha256 and size of a file. Blocks."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.seek(0, 2)


def as_text(report: Report, *, width: int) -> str:
    """Lines of at most `width` columns."""
    page = _Page(max(width, _LEAST_WIDTH))
    page.add("Image" if report.image else "File", shown(report.source, most=300))
    if report.image:
        _add_image(page, report.image)
    elif report.file_layout:
        page.add("Layout", report.file_layout)
    if report.module:
        _add_module(page, report.module, report.verdict)
    verdict = report.verdict
    if verdict.accepted:
        page.add("Verdict", "accepted: valid, and Envoy offers all that it imports")
        if verdict.unchecked:
            page.add("", f"Not checked: {verdict.unchecked}")
    else:
        page.add_unbroken("Verdict", f"refused: {verdict.message} [{verdict.reason}]")
    if report.compat is not None:
        page.lines.append("Compat")
        for consumer in CONSUMERS:
            page.add_answer(consumer, report.compat[consumer])
    return "\n".join(page.lines)


def _add_image(page: "_Page", image: Image) -> None:
    resolved = image.resolved
    page.add("Digest", str(resolved.digest))
    if resolved.child:
        entries = len(resolved.index.manifests or ()) if resolved.index else 0
        page.add("Index", f"of {entries} entries; taken:")
        page.add("", str(resolved.child))
    if image.variant:
        page.add("Layout", image.variant.name)
    page.add("Config", shown(resolved.manifest.config.media_type))
    layers = resolved.manifest.layers or ()
    for number, layer in enumerate(layers[:_SHOWN_LAYERS]):
        mark = ", has the module" if image.layer and layer.digest == image.layer.digest else ""
        label = "Layers" if number == 0 else ""
        page.add(label, f"{shown(layer.media_type)}, {format_size(layer.size)}{mark}")
    if (more := len(layers) - _SHOWN_LAYERS) > 0:
        page.add("", f"and {more} more")
    for number, (key, value) in enumerate((resolved.manifest.annotations or {}).items()):
        if number >= _SHOWN_LAYERS:
            break
        page.add("Annot." if number == 0 else "", f"{shown(key)}={shown(value)}")


def _add_module(page: "_Page", module: Module, verdict: Verdict) -> None:
    described = module.description
    page.add("Sha256", module.sha256)
    exact = f" ({module.size} bytes)" if module.size >= 1024 else ""
    page.add("Size", format_size(module.size) + exact)
    if module.member:
        page.add("Name", shown(module.member))
    page.add("ABI", verdict.abi or ", ".join(map(shown, described.abi)) or "none")
    page.add("Imports", _names([str(each) for each in described.imports]))
    page.add("Exports", _names([each.name for each in described.exports]))


def _names(names: Sequence[str]) -> str:
    if not names:
        return "none"
    line = ", ".join(shown(name) for name in names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return f"{len(names)}: {line}" + (f" and {more} more (--json has all)" if more > 0 else "")


class _Page:
    """Lines with a label in front, wrapped behind it."""

    def __init__(self, width: int) -> None:
        self.lines: list[str] = []
        self._width = width

    def add(self, label: str, text: str) -> None:
        """One item."""
        self._wrap(f"{label:<{_LABEL}}", text, indent=_LABEL)

    def add_unbroken(self, label: str, text: str) -> None:
        """One item in which no word is broken: it may hold a flag that is to be copied."""
        self._wrap(f"{label:<{_LABEL}}", text, indent=_LABEL, break_words=False)

    def add_answer(self, consumer: str, answer: Answer) -> None:
        """One row of the compat table."""
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


def as_json(report: Report) -> str:
    """Everything; keys in a fixed order."""
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
    return json.dumps(document, indent=2)


def _layout_name(report: Report) -> str | None:
    if report.image and report.image.variant:
        return report.image.variant.name
    return report.file_layout or None


def _image_json(image: Image) -> dict[str, Any]:
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


def _module_json(module: Module, verdict: Verdict) -> dict[str, Any]:
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
