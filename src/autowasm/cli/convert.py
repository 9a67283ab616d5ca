"""`wasmc convert`: converts other objects that put Wasm filters into Envoys to AutoWasms.

Invariants: every setting that an AutoWasm cannot express is named on standard error, with exit status 3; each AutoWasm on standard
output is valid and has a unique name; nothing else is written, and nothing is fetched.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from autowasm.api.validation import parse
from autowasm.cli import stdio
from autowasm.convert.conversion import Batch, Conversion, Loss
from autowasm.convert.dispatch import CONVERTERS, converter_of
from autowasm.errors import SpecError, UsageError
from autowasm.limits import Limits
from autowasm.manifests import reader, writer
from autowasm.manifests.nodes import Unreadable
from autowasm.text import shown

LOST: Final = 3
"""The exit status if a setting was lost."""
_FILE_BYTES: Final = 16 * 1024 * 1024
_MOST: Final = 3_000
"""Characters of a message; the errors of a spec are the longest."""

Document = Mapping[str, Any]


def run(arguments: argparse.Namespace) -> int:
    """Print the AutoWasms, return the exit status. Raises UsageError."""
    if arguments.path is not None:
        arguments.file = [*arguments.file, arguments.path]
    if not arguments.file:
        raise UsageError("no file is given: wasmc convert -f FILE|DIR")
    files = [file for path in arguments.file for file in stdio.manifest_files(path)]
    sources = [source for file in files for source in _sources(file)]
    if not sources:
        kinds = ", ".join(f"{kind} ({group})" for group, kind in CONVERTERS)
        names = ", ".join(f"-f {path}" for path in arguments.file)
        raise UsageError(f"{names}: nothing to convert; supported are {kinds}")
    converted, batch = _Converted(), Batch(sources, gateway=arguments.gateway)
    for source in sources:
        converter = converter_of(source)
        if converter is not None:
            converted.add(source, converter(source, batch))
    if arguments.json:
        print(json.dumps(converted.document(), indent=2, ensure_ascii=False), flush=True)
    else:
        texts = [writer.dump(each) for each in converted.autowasms]
        print("---\n".join(texts), end="", flush=True)
    return LOST if converted.losses else 0


class _Converted:
    """The results for all objects, which are reported as they are added."""

    def __init__(self) -> None:
        self.autowasms: list[Document] = []
        self.losses: list[dict[str, str]] = []
        self.notes: list[dict[str, str]] = []
        self._origins: dict[tuple[str, str], str] = {}

    def add(self, source: Document, conversion: Conversion) -> None:
        origin = _name(source)
        for document in conversion.autowasms:
            if (problem := self._problem(document, origin)) is None:
                self.autowasms.append(document)
            else:
                conversion.lose("", problem)
        if not conversion.autowasms and not conversion.losses + conversion.notes:
            conversion.lose("spec", "has no filter")
        self.notes += self._reported("note", origin, conversion.notes)
        self.losses += self._reported("lost", origin, conversion.losses)

    def _problem(self, document: Document, origin: str) -> str | None:
        """Why this AutoWasm must not be applied."""
        metadata = document["metadata"]
        key = (str(metadata.get("namespace", "")), str(metadata["name"]))
        name = shown(f"AutoWasm {key[1]}", most=300)
        if key in self._origins:
            return f"{name} is left out: {self._origins[key]} gives an AutoWasm of the same name; convert them separately, and rename one"
        try:
            parse(document)
        except SpecError as error:
            return f"{name} would be invalid, and is left out: {error}"
        self._origins[key] = origin
        return None

    @staticmethod
    def _reported(kind: str, origin: str, found: list[Loss]) -> list[dict[str, str]]:
        reported = []
        for one in found:  # names and values come from others
            path, problem = shown(one.path, most=_MOST), shown(one.problem, most=_MOST)
            where = f"{origin}: {path}" if path else origin
            print(f"wasmc: {kind}: {where}: {problem}", file=sys.stderr)
            reported.append({"object": origin, "field": path, "message": problem})
        return reported

    def document(self) -> dict[str, Any]:
        """The whole result, for --json."""
        return {"autowasms": self.autowasms, "lost": self.losses, "notes": self.notes}


def _sources(path: Path) -> Iterator[Document]:
    """The objects of a file that can be converted. Warnings name the others."""
    content = stdio.manifest_content(path, most=_FILE_BYTES)
    try:
        found = reader.read(content, object_bytes=Limits().spec_bytes, file_bytes=_FILE_BYTES)
    except Unreadable as error:
        raise UsageError(f"-f {path}: {error}") from None
    for remark in found.remarks:
        _warn(f"-f {path}: {remark}")
    for each in found.objects:
        if converter_of(each.value) is not None:
            yield each.value
        else:
            _warn(f"-f {path}: {_name(each.value)}: has nothing to convert")


def _name(document: Document) -> str:
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    namespace = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return shown(f"{document.get('kind')} {namespace}{metadata.get('name')}", most=300)


def _warn(text: str) -> None:
    print(f"wasmc: warning: {text}", file=sys.stderr)
