"""The Dockerfile, as far as it can be run without a container engine: its files, its commands, its entrypoint."""

import asyncio
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.manifests import documents
from tests.manifests.documents import ROOT
from tests.parts import pythons

Instruction = tuple[str, str]


def _instructions() -> list[Instruction]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [
        (word.upper(), rest.strip()) for word, _, rest in (x.partition(" ") for x in lines) if word
    ]


def _stages() -> list[list[Instruction]]:
    stages: list[list[Instruction]] = []
    for instruction in _instructions():
        if instruction[0] == "FROM":
            stages.append([])
        if stages:
            stages[-1].append(instruction)
    return stages


def _pins() -> dict[str, str]:
    """Version of each package of requirements.txt, which `make lint` holds to uv.lock."""
    found = re.findall(r"^(\S+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    return {_normal(name): version for name, version in found}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


async def _run(
    *command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None
) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


def test_every_instruction_is_one() -> None:
    known = {
        "ARG",
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "LABEL",
        "ENV",
        "USER",
        "EXPOSE",
        "ENTRYPOINT",
    }
    assert {word for word, _ in _instructions()} <= known


def test_the_base_is_pinned_and_the_same_for_all_stages() -> None:
    word, base = _instructions()[0]
    assert word == "ARG"
    assert re.fullmatch(
        rf"BASE=python:{re.escape(pythons.IMAGE)}\.\d+-slim-[a-z]+@sha256:[0-9a-f]{{64}}", base
    )
    build, final = _stages()
    assert build[0] == ("FROM", "${BASE} AS build")
    assert final[0] == ("FROM", "${BASE}")


def test_the_final_stage_runs_wasmer_without_a_shell_as_a_user_by_number() -> None:
    final = dict(_stages()[-1])
    assert "RUN" not in final
    assert final["ENTRYPOINT"] == '["wasmer"]'
    context = documents.installed("Deployment")["spec"]["template"]["spec"]["securityContext"]
    assert final["USER"] == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert context["runAsUser"] > 0


def test_the_build_context_holds_only_copied_files() -> None:
    build = _stages()[0]
    copied = {name for word, rest in build if word == "COPY" for name in shlex.split(rest)[:-1]}
    allowed = {x[1:] for x in (ROOT / ".dockerignore").read_text().splitlines() if x[:1] == "!"}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_every_runtime_dependency_has_an_exact_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {_normal(re.split(r"[<>=!~\[; ]", line)[0]) for line in project["dependencies"]}
    assert wanted <= _pins().keys()


def test_the_labels_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    final = _stages()[-1]
    (label,) = [rest for word, rest in final if word == "LABEL"]
    labels = dict(each.split("=", 1) for each in shlex.split(label))
    of_images = "org.opencontainers.image."
    assert labels[of_images + "licenses"] == project["license"]
    assert labels[of_images + "source"] == project["urls"]["Repository"]
    assert labels[of_images + "documentation"] == project["urls"]["Documentation"]
    assert ("ARG", f"VERSION={project['version']}") in final
    assert (labels[of_images + "version"], labels[of_images + "revision"]) == (
        "${VERSION}",
        "${COMMIT}",
    )


@pytest.mark.timeout(600)  # downloads of some 100 MB where no cache has them
async def test_the_wheel_of_the_copied_files_runs_in_an_empty_environment(tmp_path: Path) -> None:
    context, wheels, prefix = tmp_path / "context", tmp_path / "wheels", tmp_path / "autowasm"
    await asyncio.to_thread(_copy_context, context)
    pip: Sequence[str | Path] = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    for program in (builder := tmp_path / "builder", prefix):
        await _run(sys.executable, "-m", "venv", "--without-pip", program, cwd=context)
    hashed = ("install", "--only-binary", ":all:", "--require-hashes", "--requirement")
    await _run(
        *pip, "--python", builder / "bin/python", *hashed, "requirements-build.txt", cwd=context
    )
    await _run(*pip, "--python", prefix / "bin/python", *hashed, "requirements.txt", cwd=context)
    build = ("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", wheels, ".")
    stamp = {"AUTOWASM_COMMIT": "94610a8eed44" + 28 * "0", "SOURCE_DATE_EPOCH": "1795737600"}
    await _run(*pip, "--python", builder / "bin/python", *build, cwd=context, environment=stamp)
    (wheel,) = await asyncio.to_thread(lambda: list(wheels.glob("*.whl")))
    install = ("install", "--no-deps", "--no-index", wheel)
    await _run(*pip, "--python", prefix / "bin/python", *install, cwd=context)

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for command in ("wasmer", "wasmc"):
        said = await _run(prefix / "bin" / command, "--version", cwd=tmp_path)
        assert said.strip() == f"{command} {version} (commit 94610a8eed44, built 2026-11-27)"
    await _run(prefix / "bin/wasmer", "controller", "--help", cwd=tmp_path)

    frozen = await _run(*pip, "--python", prefix / "bin/python", "freeze", cwd=tmp_path)
    names = {_normal(re.split(r"==| @ ", line)[0]) for line in frozen.split("\n") if line}
    assert names - {"autowasm"} <= _pins().keys(), "something in it has no exact version"


def _copy_context(context: Path) -> None:
    for word, rest in _stages()[0]:
        for name in shlex.split(rest)[:-1] if word == "COPY" else ():
            source, target = ROOT / name, context / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.parent.mkdir(exist_ok=True)
                shutil.copy(source, target)
