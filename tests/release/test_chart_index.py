"""`helm repo add` works with the index that the release workflow writes, for the charts of all releases."""

import asyncio
import functools
import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.manifests.documents import ROOT
from tests.parts import clients, provision
from tests.parts.clients import Client

_GH = """#!/bin/sh
# `gh release`, as .ci/chart-index uses it: releases are folders of $RELEASES.
case "$2" in
  list) ls "$RELEASES" ;;
  view) ls "$RELEASES/$3" ;;
  download)
    while [ "$1" != --dir ]; do [ "$1" = download ] && tag=$2; shift; done
    mkdir -p "$2" && cp "$RELEASES/$tag"/wasmer-*.tgz "$2" ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address of a web server on it."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Says nothing."""

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def _write_index(tmp_path: Path, helm: Client, url: str) -> subprocess.CompletedProcess[str]:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "gh").write_text(_GH)
    (programs / "gh").chmod(0o755)
    (programs / "helm").symlink_to(helm.program)
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(helm.home),
        "RELEASES": str(tmp_path / "www/team/wasm/releases/download"),
        "GITHUB_REPOSITORY": "team/wasm",
        "GITHUB_SERVER_URL": url,
    }
    command = [ROOT / ".ci/chart-index", tmp_path / "www/charts"]
    return await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True
    )


async def test_charts_of_all_releases_are_installed_from_the_repository(
    tmp_path: Path, served: tuple[Path, str]
) -> None:
    folder, url = served
    helm = await clients.helm(tmp_path / "home")
    releases = folder / "team/wasm/releases/download"
    (releases / "v0.0.9").mkdir(parents=True)  # without a chart
    for version in ("0.1.0", "0.2.0"):
        chart, target = ROOT / "manifests/helm/wasmer", releases / f"v{version}"
        await helm.run("package", chart, "--version", version, "--destination", target)

    done = await _write_index(tmp_path, helm, url)
    assert done.returncode == 0, done.stderr
    index = yaml.safe_load((folder / "charts/index.yaml").read_text())
    assert sorted(one["version"] for one in index["entries"]["wasmer"]) == ["0.1.0", "0.2.0"]

    await helm.run("repo", "add", "autowasm", f"{url}/charts")
    for version in ("0.1.0", "0.2.0"):
        said = await helm.run("show", "chart", "autowasm/wasmer", "--version", version)
        assert yaml.safe_load(said.stdout)["version"] == version
    said = await helm.run("template", "autowasm/wasmer", "--generate-name")
    assert "kind: Deployment" in said.stdout


async def test_an_index_without_charts_is_no_index(
    tmp_path: Path, served: tuple[Path, str]
) -> None:
    folder, url = served
    (folder / "team/wasm/releases/download").mkdir(parents=True)
    helm = Client(await asyncio.to_thread(provision.helm), tmp_path, {})
    done = await _write_index(tmp_path, helm, url)
    assert (done.returncode, done.stderr) == (1, "no release has a chart\n")
