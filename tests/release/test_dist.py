"""The files of `make dist` have one version, commit and date, and the single file needs nothing of the machine."""

import asyncio
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.parts import pythons, registry, wat
from tests.parts.clients import Client
from tools.release import dist

pytestmark = pytest.mark.timeout(600)


def _builder() -> tuple[Path, dict[str, str]]:
    """A Python, and the environment in which PyInstaller finds libpython, which it copies.

    Debian has it in a package of its own, which a Python of Debian can lack: then it is taken from there.
    """
    load = "import ctypes, sysconfig; ctypes.CDLL(sysconfig.get_config_var('INSTSONAME'))"
    own = dist.ROOT / ".venv/bin/python"
    for python in (Path(sys.executable), own):
        if subprocess.run([python, "-c", load], capture_output=True).returncode == 0:
            return python, dict(os.environ)
    tell = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([own, "-c", tell], capture_output=True, text=True, check=True).stdout
    folder = pythons.shared_library(version.strip())
    return own, {**os.environ, "LD_LIBRARY_PATH": str(folder)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the three files."""
    target = tmp_path_factory.mktemp("dist") / "files"
    python, environment = _builder()
    done = subprocess.run(
        [python, "-m", "tools.release.dist", target],
        cwd=dist.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture
def bare(built: Path, tmp_path: Path) -> Client:
    """The single file on a machine without programs, Python and files of ours."""
    folders = {name: tmp_path / name for name in ("home", "temporary", "programs")}
    for folder in folders.values():
        folder.mkdir()
    environment = {
        "HOME": str(folders["home"]),
        "TMPDIR": str(folders["temporary"]),
        "PATH": str(folders["programs"]),
    }
    return Client(built / dist.single_file_name(), folders["home"], environment)


def test_three_files_are_built_and_have_one_stamp(built: Path) -> None:
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert {file.name for file in built.iterdir()} == {
        wheel.name,
        source.name,
        dist.single_file_name(),
    }
    stamp = zipfile.ZipFile(wheel).read("autowasm/_build.py").decode()
    assert re.search(
        r'^COMMIT = "[0-9a-f]{12}(-dirty)?"\nDATE = "\d{4}-\d\d-\d\d"$', stamp, re.MULTILINE
    )
    folder = source.name.removesuffix(".tar.gz")
    with tarfile.open(source) as archive:
        member = archive.extractfile(f"{folder}/src/autowasm/_build.py")
        assert member is not None
        assert member.read().decode() == stamp
    single = subprocess.run(
        [built / dist.single_file_name(), "--version"], capture_output=True, text=True, check=True
    )
    commit, date = re.findall(r'"([^"]+)"', stamp.split("\n\n", 1)[1])
    version = folder.removeprefix("autowasm-")
    assert single.stdout == f"wasmc {version} (commit {commit}, built {date})\n"


async def test_the_single_file_runs_on_a_bare_machine_and_leaves_nothing(bare: Client) -> None:
    module = bare.home / "hello.wasm"
    await asyncio.to_thread(module.write_bytes, wat.header_filter("world"))
    said = await bare.run("inspect", "hello.wasm")
    assert "Verdict accepted" in said.stdout
    await asyncio.to_thread(module.write_bytes, b"\0asm\1\0\0\0\xff")
    assert (await bare.run("inspect", "hello.wasm", check=False)).returncode == 1
    await asyncio.to_thread(module.unlink)
    for folder in (bare.home, Path(bare.environment["TMPDIR"])):
        assert await asyncio.to_thread(lambda f=folder: list(f.rglob("*"))) == []


async def test_the_single_file_runs_and_tests_a_filter(bare: Client) -> None:
    await asyncio.to_thread((bare.home / "hello.wasm").write_bytes, wat.header_filter("world"))
    said = await bare.run("run", "hello.wasm")
    assert "+ hello: world" in said.stdout
    suite = '{"defaults": {"module": "hello.wasm"}, "cases": [{"name": "a"}]}'
    await asyncio.to_thread((bare.home / "suite.json").write_text, suite)
    said = await bare.run("test", "suite.json", "--junit", "results.xml")
    assert "1 passed" in said.stdout
    said = await bare.run("inspect", "hello.wasm", "--start")
    assert "starts with this configuration" in said.stdout


async def test_the_single_file_pushes_and_pulls(bare: Client, tmp_path: Path) -> None:
    content = wat.header_filter("world")
    await asyncio.to_thread((bare.home / "hello.wasm").write_bytes, content)
    async with registry.distribution(tmp_path / "registry") as store:
        for form in ("artifact", "image"):
            reference = f"{store.host}/demo/{form}:v1"
            await bare.run("push", reference, "-f", "hello.wasm", "--format", form)
            await bare.run("pull", reference, "-o", f"{form}/")
            pulled = bare.home / form / "filter.wasm"
            assert await asyncio.to_thread(pulled.read_bytes) == content


async def test_the_single_file_connects_to_the_cluster_of_a_kubeconfig(bare: Client) -> None:
    said = await bare.run("explain", "hello", "--kubeconfig", "absent", check=False)
    assert (said.returncode, said.stderr) == (
        2,
        "wasmc: error: --kubeconfig absent: no such file\n",
    )
    kubeconfig = bare.home / "kubeconfig"
    await asyncio.to_thread(kubeconfig.write_text, _KUBECONFIG)
    said = await bare.run("explain", "hello", "--kubeconfig", "kubeconfig", check=False)
    assert said.returncode == 2
    assert "127.0.0.1:1" in said.stderr


_KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: none, user: {token: none}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
current-context: none
"""
