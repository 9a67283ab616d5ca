"""The real kubectl reads files as `manifests.reader` does, and our output as it was meant. It needs no server for that."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autowasm.manifests import reader, writer
from tests.integration.standalone.test_plan_agrees import BAD, GOOD
from tests.integration.standalone.test_written_yaml import ODD
from tests.parts import provision
from tests.property.test_kubectl_yaml import WORDS


def kubectl(file: Path) -> list[Any] | None:
    """The objects of a file, without the annotation that `annotate` adds; None if kubectl refuses it."""
    done = subprocess.run(
        [provision.kubectl(), "annotate", "--local", "-f", file, "-o", "json", "--overwrite", "added=x"],
        capture_output=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        return None
    text, found = done.stdout.decode(), []
    while text := text.lstrip():
        value, end = json.JSONDecoder().raw_decode(text)
        text = text[end:]
        annotations = value["metadata"]["annotations"]
        del annotations["added"]
        if not annotations:
            del value["metadata"]["annotations"]
        if not value["metadata"]:
            del value["metadata"]
        found.append(value)
    return found


def ours(file: Path) -> list[Any]:
    found = reader.read(file.read_bytes(), object_bytes=10**6, file_bytes=10**7)
    return [each.value for each in found.objects]


def as_text(values: list[Any]) -> list[str]:
    return [json.dumps(each, sort_keys=True) for each in values]


@pytest.mark.parametrize("name", GOOD)
def test_kubectl_reads_every_valid_file_as_wasmer_does(tmp_path: Path, name: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(GOOD[name].encode())
    read = kubectl(file)
    assert read is not None
    assert as_text(read) == as_text(ours(file))


@pytest.mark.parametrize("name", ["half", "indented", "text", "not-kind", "tight"])
def test_refuses_invalid_yaml_and_non_objects_like_kubectl(tmp_path: Path, name: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(BAD[name].encode())
    assert kubectl(file) is None
    with pytest.raises(reader.Unreadable):
        ours(file)


def test_kubectl_reads_every_ambiguous_word_as_wasmer_does(tmp_path: Path) -> None:
    """All that it takes at once; the others are compared one by one with its code (`tests/property/test_kubectl_yaml.py`)."""
    lines = []
    for number, word in enumerate(WORDS):
        text = f"kind: A\nx: {word}\n".encode()
        try:
            reader.read(text, object_bytes=1_000, file_bytes=1_000)
        except reader.Unreadable:
            continue
        lines.append(f"  k{number}: {word}\n")
    file = tmp_path / "a.yaml"
    file.write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n" + "".join(lines)
    )
    assert len(lines) > 90
    read = kubectl(file)
    assert read is not None
    assert as_text(read) == as_text(ours(file))


@pytest.mark.parametrize("sort_keys", [False, True])
def test_kubectl_reads_the_intended_values_from_written_yaml(
    tmp_path: Path, sort_keys: bool
) -> None:
    document = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "y", "labels": {text[:20]: text for text in ODD}},
        "data": {"list": ODD, **{text: text for text in ODD}},
    }
    file = tmp_path / "a.yaml"
    file.write_bytes(writer.dump(document, sort_keys=sort_keys).encode())
    read = kubectl(file)
    assert read is not None
    assert as_text(read) == as_text([document])
