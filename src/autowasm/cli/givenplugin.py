"""The plugin given on the command line: configuration, environment and root id, from flags or from an AutoWasm's file.

Invariant: with -f the bytes are those of the EnvoyFilter that wasmer would write.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from autowasm.api import envoyfilter, pluginconfig
from autowasm.api.record import Record
from autowasm.api.v1alpha1 import KIND, AutoWasm
from autowasm.api.validation import parse
from autowasm.cli import registries
from autowasm.cli.modules import Module
from autowasm.cli.stdio import STDIN, standard_input
from autowasm.digest import sha256_hex
from autowasm.errors import SpecError, UsageError
from autowasm.limits import Limits
from autowasm.manifests import reader
from autowasm.manifests.nodes import Unreadable
from autowasm.preflight.verdicts import plugin_of
from autowasm.sandbox.plugin import Plugin
from autowasm.settings import EnvoyFetch
from autowasm.trial.inputs import MAX_FILE_BYTES, read_file

_FILE_PREFIXES: Final = ("./", "../", "/", "~")
_FILE_SUFFIXES: Final = (".json", ".yaml", ".yml", ".toml", ".txt")


def content(text: str, *, flag: str) -> bytes:
    """The content of a body, TEXT or @FILE. Raises UsageError."""
    return _file(text[1:], flag=flag) if text.startswith("@") else _text(text, flag=flag)


def configuration(text: str) -> bytes:
    """The value of --config. Raises UsageError, also for a text that looks like the name of a missing file."""
    flag = "--config"
    if text.startswith("@"):
        return _file(text[1:], flag=flag)
    is_name = not any(character in text for character in "{}[]\"'\n")
    try:
        exists = is_name and Path(text).is_file()
    except (OSError, ValueError):  # name too long, or a zero byte
        exists = False
    if exists:
        return read_file(Path(text), flag=flag)
    is_one_word = is_name and " " not in text
    if is_one_word and (text.startswith(_FILE_PREFIXES) or text.endswith(_FILE_SUFFIXES)):
        raise UsageError(f"{flag} {text[:200]}: no such file")
    return _text(text, flag=flag)


def _text(text: str, *, flag: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{flag}: is not valid text; use @FILE for bytes") from error


def _file(name: str, *, flag: str) -> bytes:
    if name != str(STDIN):
        return read_file(Path(name), flag=flag)
    found = standard_input(f"{flag} @-").read(MAX_FILE_BYTES + 1)
    if len(found) > MAX_FILE_BYTES:
        raise UsageError(f"{flag} @-: larger than {MAX_FILE_BYTES} bytes")
    return found


def of_flags(arguments: argparse.Namespace, base: Plugin | None = None) -> Plugin:
    """The plugin of --config, --env and --root-id; fields that they do not set come from `base`. Raises UsageError."""
    plugin = base or Plugin(name="wasmc", vm_id="wasmc")
    if arguments.config is not None:
        plugin = replace(plugin, configuration=configuration(arguments.config))
    if arguments.root_id is not None:
        plugin = replace(plugin, root_id=arguments.root_id)
    return replace(plugin, environment={**plugin.environment, **_environment(arguments.env)})


def _environment(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--env: must be NAME=VALUE, not {text[:100]!r}")
        found[name] = value
    return found


def read_autowasm(path: Path, name: str | None) -> AutoWasm:
    """The AutoWasm in a file, or the one with this `[NAMESPACE/]NAME`. Raises UsageError."""
    flag = f"-f {path}"
    most = Limits().spec_bytes * 8
    if path == STDIN:
        data = standard_input(flag).read(most + 1)
    else:
        registries.check_readable("-f", path)
        with path.open("rb") as file:
            data = file.read(most + 1)
    try:
        found = reader.read(data, object_bytes=Limits().spec_bytes, file_bytes=most)
    except Unreadable as error:
        raise UsageError(f"{flag}: {error}") from None
    documents = [each.value for each in found.objects if each.value.get("kind") == KIND]
    chosen = [each for each in documents if name is None or name in _names(each)]
    if not documents:
        raise UsageError(f"{flag}: the file contains no {KIND}")
    if len(chosen) != 1:
        names = ", ".join(_names(each)[-1] for each in documents[:10])
        problem = "has several" if name is None else f"has {len(chosen)} of this name"
        raise UsageError(f"{flag}: the file {problem}; choose one with --name: {names}")
    try:
        return parse(pluginconfig.document_as_stored(chosen[0]))
    except SpecError as error:
        raise UsageError(f"{flag}: {error}") from error


def _names(document: dict[str, Any]) -> tuple[str, str]:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return "", ""
    name, namespace = str(metadata.get("name")), metadata.get("namespace") or "default"
    return name, f"{namespace}/{name}"


def of_autowasm(autowasm: AutoWasm, record: Record) -> Plugin:
    """The plugin that Envoy gets from the EnvoyFilter of an AutoWasm with this module."""
    return plugin_of(envoyfilter.render(autowasm, record, EnvoyFetch()))


def record_of(autowasm: AutoWasm, module: Module) -> Record:
    """The record as if the source had resolved to `module`. Only its digest reaches the plugin, in the `vm_id`."""
    return Record(
        source=str(autowasm.spec.filter.source),
        sha256=sha256_hex(module.sha256),
        size=len(module.data),
        abi="",
    )
