"""`wasmer standalone` with a wrong argument: reported before anything is opened or written."""

from pathlib import Path

import pytest

from tests.parts import envoy as envoys
from tests.parts import wasmer
from tests.parts.clients import Client


@pytest.mark.parametrize("wrong", ["template", "config"])
async def test_wrong_argument_is_reported_before_a_port_is_opened(
    tmp_path: Path, wrong: str
) -> None:
    config, template = tmp_path / "config", tmp_path / "template.yaml"
    if wrong != "config":
        config.mkdir()
    if wrong != "template":
        template.write_text(envoys.listeners_yaml([15006], cluster="web"))
    flags = {
        "--config": config,
        "--listener-template": template,
        "--envoy-dir": tmp_path / "envoy",
        "--cache-dir": tmp_path / "cache",
        "--listen": "127.0.0.1:0",
        "--admin-listen": "127.0.0.1:0",
    }
    arguments = [str(part) for pair in flags.items() for part in pair]
    client = Client(wasmer.program("wasmer"), tmp_path, {"HOME": str(tmp_path)})
    result = await client.run("standalone", *arguments, check=False)
    assert result.returncode == 2
    flag = "--config" if wrong == "config" else "--listener-template"
    assert f"{flag} {flags[flag]}: " in result.stderr
    assert "No such file or directory" in result.stderr
    assert '"started"' not in result.stderr
    assert not (tmp_path / "envoy").exists()


async def test_cache_directory_that_cannot_be_used_ends_the_start_with_one_sentence(
    tmp_path: Path,
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "template.yaml").write_text(envoys.listeners_yaml([15006], cluster="web"))
    (tmp_path / "cache").write_bytes(b"")
    flags = {
        "--config": tmp_path / "config",
        "--listener-template": tmp_path / "template.yaml",
        "--envoy-dir": tmp_path / "envoy",
        "--cache-dir": tmp_path / "cache",
        "--listen": "127.0.0.1:0",
        "--admin-listen": "127.0.0.1:0",
    }
    arguments = [str(part) for pair in flags.items() for part in pair]
    client = Client(wasmer.program("wasmer"), tmp_path, {"HOME": str(tmp_path)})
    result = await client.run("standalone", *arguments, check=False)
    assert result.returncode == 1
    assert f"wasmer: error: the cache directory {tmp_path / 'cache'} failed" in result.stderr
    assert "Traceback" not in result.stderr
