"""A module that ADR 5 refuses never reaches an Envoy, and never affects the running filters."""

from pathlib import Path

from tests.e2e.conftest import Standalone
from tests.parts import wat

_NO_ABI = "(module)"
_UNKNOWN_IMPORT = """
(module (import "env" "proxy_no_such_call" (func))
  (func (export "proxy_abi_version_0_2_1")))
"""
_LIBRARY = """
(import "wasi_snapshot_preview1" "fd_close" (func $host (param i32) (result i32)))
(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
(memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
(func (export "malloc") (param i32) (result i32) (i32.const 1024))
"""
_CALLS_BY_REFERENCE = f"""
(module (type $h (func (param i32) (result i32))) {_LIBRARY} (elem declare func $host)
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (call_ref $h (i32.const 77) (ref.func $host))))
"""
_PROGRAM = f'(module {_LIBRARY} (func (export "_start") (call $exit (i32.const 0))))'
_COMPONENT = b"\0asm\x0d\0\x01\0"


def _refused() -> dict[str, tuple[bytes, str]]:
    """Module bytes and the condition reason, by tag."""
    good = wat.header_filter("good")
    return {
        "html": (b"<html>not found</html>", "NotWasm"),
        "truncated": (good[: len(good) // 2], "Truncated"),
        "component": (_COMPONENT, "WasmComponent"),
        "no-abi": (wat.compile_text(_NO_ABI), "AbiMissing"),
        "unknown-import": (wat.compile_text(_UNKNOWN_IMPORT), "ImportUnknown"),
        "calls-by-reference": (wat.assemble(_CALLS_BY_REFERENCE), "EnvoyCrash"),
        "program": (wat.compile_text(_PROGRAM), "StartFails"),
        "malformed-body": (good.replace(b"\x41\x01\x0b", b"\x41\x01\xff"), "WasmInvalid"),
    }


async def test_refused_module_degrades_the_autowasm_and_never_reaches_envoy(
    standalone: Standalone,
) -> None:
    standalone.wasmer.apply(standalone.autowasm(await standalone.push_header("world")))
    await standalone.load.wait_for("world")
    lds = standalone.wasmer.lds.read_bytes()
    fetches = await standalone.wasmer.metric("autowasm_blob_responses_total")

    async with standalone.load.steady() as report:
        for tag, (module, reason) in _refused().items():
            image = await standalone.push(tag, module, "--force")
            standalone.wasmer.apply(standalone.autowasm(image, rootID=tag))
            status = await _wait_reason(standalone, reason)
            assert status["phase"] == "Degraded", tag
            assert "still in place" in status["message"], tag

    assert report.failed == 0, str(report)
    assert standalone.wasmer.lds.read_bytes() == lds
    assert await standalone.wasmer.metric("autowasm_blob_responses_total") == fetches


async def test_refused_first_module_is_failed_and_writes_no_envoyfilter(
    standalone: Standalone,
) -> None:
    image = await standalone.push("no-abi", wat.compile_text(_NO_ABI), "--force")

    standalone.wasmer.apply(standalone.autowasm(image))

    status = await standalone.wasmer.wait_phase("test", "Failed")
    assert "module" not in status
    assert standalone.wasmer.envoyfilter("test") == {}
    assert list(Path(standalone.wasmer.directory, "cache/blobs").iterdir()) == []


async def _wait_reason(standalone: Standalone, reason: str) -> dict:
    import asyncio  # noqa: PLC0415

    status: dict = {}
    async with asyncio.timeout(20):
        while True:
            status = await asyncio.to_thread(standalone.wasmer.status, "test")
            reasons = {c["reason"] for c in status.get("conditions", ()) if c["type"] == "Fetched"}
            if reason in reasons:
                return status
            await asyncio.sleep(0.02)
