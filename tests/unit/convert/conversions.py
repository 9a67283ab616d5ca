"""What becomes of each object in `manifests/`, as the text of `conversions.txt`.

After a change of the conversion, write the file again, and read what has changed:

    .venv/bin/python -m tests.unit.convert.conversions > tests/unit/convert/conversions.txt
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from autowasm.api.validation import parse
from autowasm.convert.conversion import Batch, Conversion
from autowasm.convert.dispatch import converter_of
from autowasm.errors import SpecError
from autowasm.manifests import writer

MANIFESTS = Path(__file__).with_name("manifests")


def objects() -> Iterator[dict[str, Any]]:
    """Those of all files."""
    for file in sorted(MANIFESTS.iterdir()):
        yield from yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)


def conversions() -> Iterator[tuple[Mapping[str, Any], Conversion]]:
    """Each object with its conversion; the objects of a file are converted together."""
    for file in sorted(MANIFESTS.iterdir()):
        together = list(yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader))
        for source in together:
            converter = converter_of(source)
            assert converter is not None
            yield source, converter(source, Batch(together))


def text() -> str:
    """The file."""
    return "\n".join(_shown(source, found) for source, found in conversions())


def _shown(source: Mapping[str, Any], found: Conversion) -> str:
    lines = [f"== {source['apiVersion']} {source['kind']} {source['metadata']['name']}"]
    lines += [f"lost: {one.path}: {one.problem}" for one in found.losses]
    lines += [f"note: {one.path}: {one.problem}" for one in found.notes]
    for document in found.autowasms:
        try:
            parse(document)
        except SpecError as error:
            lines.append(f"invalid: {document['metadata']['name']}: {error}")
            continue
        shown = {"metadata": document["metadata"], "spec": document["spec"]}
        lines += [f"    {line}" for line in writer.dump(shown).splitlines()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(text())
