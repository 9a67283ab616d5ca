"""`wasmc inspect` of files: verdict, text that fits a terminal, JSON, exit status."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard

from autowasm.cli import wasmc
from autowasm.cli.inspect import ImageReport, InspectReport, ModuleVerdict, as_text
from autowasm.registry.client import ResolvedImage
from autowasm.registry.manifest import Descriptor, ImageIndex, Manifest
from tests.parts import wat
from tests.unit.wasm.archives import tar

FILTER = wat.header_filter("world")
HOSTILE = wat.compile_text(
    '(module (import "env" "a\\u{1b}[31m\\u{a}b" (func)) (func (export "proxy_abi_version_0_2_1"))'
    + "".join(f'(func (export "quite_a_long_name_of_an_export_{n}"))' for n in range(100))
    + ")"
)


class Inspection:
    """Runs it in a folder of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file = folder / "example"
        self._capsys = capsys

    def text(self, data: bytes, *flags: str, status: int = 0) -> str:
        self.file.write_bytes(data)
        assert wasmc.main(["inspect", str(self.file), *flags]) == status
        captured = self._capsys.readouterr()
        assert captured.err == ""
        return captured.out

    def json(self, data: bytes, *flags: str, status: int = 0) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.text(data, "--json", *flags, status=status))
        return report


@pytest.fixture
def inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Inspection:
    return Inspection(tmp_path, capsys)


def test_a_good_filter_is_accepted(inspect: Inspection) -> None:
    text = inspect.text(FILTER)
    assert "Layout  a bare module" in text
    assert "ABI     0.2.1" in text
    assert "Imports 1: env.proxy_add_header_map_value" in text
    assert "Verdict accepted" in text
    report = inspect.json(FILTER)
    assert (report["accepted"], report["reason"], report["image"]) == (True, None, None)
    assert report["module"]["abi"] == "0.2.1"
    assert "compat" not in report


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_line_fits_the_terminal_and_has_no_control_characters(
    inspect: Inspection, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = inspect.text(HOSTILE, "--compat", status=1)
    digests = re.compile(r"[0-9a-f]{64}")
    for line in text.splitlines():
        assert len(digests.sub("", line)) <= width
        assert line.isprintable()
    assert "more (--json lists all)" in " ".join(text.split())
    assert len(inspect.json(HOSTILE, status=1)["module"]["exports"]) == 101


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "NotWasm"),
        (b"<html>", "NotWasm"),
        (FILTER[:-5], "Truncated"),
        (b"\0asm\x0d\0\1\0", "WasmComponent"),
        (wat.compile_text("(module)"), "AbiMissing"),
        (tar({"a.wasm": FILTER, "b.wasm": FILTER}), "AmbiguousModule"),
        (tar({"readme": b""}), "ModuleNotFoundInArchive"),
        (gzip.compress(b"rubbish"), "NotWasm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inspect_refuses_with_the_reason_of_the_server(
    inspect: Inspection, data: bytes, reason: str
) -> None:
    report = inspect.json(data, "--compat", status=1)
    assert (report["accepted"], report["reason"]) == (False, reason)
    assert report["compat"]["wasmer"] == {"pulls": False, "why": reason}
    assert f"[{reason}]" in inspect.text(data, status=1).replace("\n        ", " ")


_FILTER = """(module {} (memory (export "memory") 1)
(func (export "proxy_abi_version_0_2_1"))
(func (export "malloc") (param i32) (result i32) (i32.const 0)))"""


def test_an_import_can_be_allowed(inspect: Inspection) -> None:
    text = (Path(__file__).parents[2] / "assets" / "wat" / "unknown_import.wat").read_text()
    module = wat.compile_text(text)
    report = inspect.json(module, status=1)
    assert report["reason"] == "ImportUnknown"
    unknown = re.findall(r"--allow-import=(\S+?)[\s,;]", report["message"] + " ")[0]
    assert inspect.json(module, "--allow-import", unknown)["accepted"] is True


def test_flags_suggested_for_missing_functions_work_as_printed(
    inspect: Inspection,
) -> None:
    names = [f"extension_number_{n}" for n in range(20)]
    imports = "".join(f'(import "env" "{name}" (func))' for name in names)
    later = '(import "wasi_snapshot_preview1" "fd_tell" (func (param i32 i32) (result i32)))'
    module = wat.compile_text(_FILTER.format(f"{imports}{later}"))
    # One line for any width of the terminal, so that it can be copied.
    flags = re.search(r"--envoy-version=\S+\s+--allow-import=\S+", inspect.text(module, status=1))
    assert flags
    assert inspect.json(module, *flags[0].split())["accepted"] is True
    assert inspect.json(module, *flags[0].split()[1:], status=1)["reason"] == "ImportUnknown"


def test_report_lists_unchecked_function_bodies(inspect: Inspection) -> None:
    body = "(tag $t) (func (try (do (throw $t)) (catch_all)))"
    module = wat.compile_text(_FILTER.format(body))
    report = inspect.json(module)
    assert report["accepted"] is True
    assert report["unchecked"].startswith("1 of 3 function bodies were not validated")
    assert "Not checked: 1 of 3" in inspect.text(module)
    assert inspect.json(FILTER)["unchecked"] is None


@pytest.mark.parametrize(
    ("data", "istio", "kwctl"),
    [
        (FILTER, True, True),
        (gzip.compress(FILTER), True, False),
        (tar({"any": FILTER}), None, None),
        (tar({"any.wasm": FILTER}), True, False),
        (gzip.compress(tar({"any.wasm": FILTER})), True, False),
        (tar({"readme": b"hello", "any.wasm": FILTER}), False, False),
        (zstandard.ZstdCompressor().compress(FILTER), False, False),
    ],
    ids=["bare", "gzip", "no-name", "tar", "tar-gzip", "not-first", "zstd"],
)
def test_report_lists_the_clients_that_can_fetch_a_file_from_a_url(
    inspect: Inspection, data: bytes, istio: bool | None, kwctl: bool | None
) -> None:
    if istio is None:  # which file is meant is ambiguous
        assert inspect.json(data, status=1)["reason"] == "ModuleNotFoundInArchive"
        return
    told = inspect.json(data, "--compat")["compat"]
    assert told["Istio"]["pulls"] is told["Envoy Gateway"]["pulls"] is istio
    assert told["kwctl"]["pulls"] is kwctl
    assert not told["wasme"]["pulls"]
    inspect.text(data, "--require", "istio", status=0 if istio else 1)


def test_a_file_that_no_object_may_have_is_refused_unread(inspect: Inspection) -> None:
    with inspect.file.open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    assert wasmc.main(["inspect", str(inspect.file), "--json"]) == 1


def test_an_image_with_many_layers_and_annotations_is_shown_in_part() -> None:
    def descriptor(number: int, media_type: str = "application/wasm") -> Descriptor:
        digest = f"sha256:{number:064x}"
        return Descriptor(media_type=media_type, digest_text=digest, size=number)

    manifest = Manifest(
        schema_version=2,
        config=descriptor(99, "application/json"),
        layers=tuple(descriptor(number) for number in range(15)),
        annotations={f"key-{number:02}": "a\x1b[31m" for number in range(15)},
    )
    child = descriptor(7).digest
    resolved = ResolvedImage(
        digest=descriptor(8).digest,
        manifest=manifest,
        index=ImageIndex(schema_version=2, manifests=(descriptor(7), descriptor(6))),
        child=child,
    )
    image = ImageReport(resolved, layer=descriptor(3))
    text = as_text(
        InspectReport("r.example/x", ModuleVerdict(accepted=True, abi="0.2.1"), image=image),
        width=100,
    )
    assert "2 entries; selected:" in text
    assert str(child) in text
    assert "application/wasm, 3 B, contains the module" in text
    assert text.count("application/wasm, ") == 12
    assert "and 3 more" in text
    assert "key-11=" in text
    assert "key-12=" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("name", ["a/" * 3000, "a\0b"], ids=["too long", "zero byte"])
def test_name_that_no_file_can_have_is_taken_for_an_image(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wasmc.main(["inspect", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith("wasmc: error: ")
    assert error.count("\n") == 1
