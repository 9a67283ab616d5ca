"""Usage errors name what was meant; help, version and completion; the same program as a plug-in of kubectl."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autowasm.cli import modules, wasmc
from autowasm.cli.wasmc import build_parser
from tests.parts import wasmer
from tests.parts.clients import Client

DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pul", "r.example/x"], "invalid choice: 'pul'; did you mean pull?"),
        (["xplain", "x"], "did you mean explain?"),
        (["LOGIN"], "did you mean login?"),
        (
            ["pull", "r.example/x", "--forse"],
            "unrecognized arguments: --forse; did you mean --force?",
        ),
        (["pull", "r.example/x", "--out=f"], "did you mean --output?"),
        (["push", "r.example/x", "--flie", "m"], "did you mean --file?"),
        (["plan", "--flie", "m"], "unrecognized arguments: --flie; did you mean --file?"),
        (
            ["pull", "r.example/x", "y.wasm"],
            "unrecognized arguments: y.wasm; did you mean -o y.wasm?",
        ),
        (["inspect", "r.example/x", "-o", "json"], "did you mean --json?"),
        (["inspect", "r.example/x", "--format=json"], "did you mean --json?"),
        (["run", "m.wasm", "-e", "A=b"], "did you mean --env?"),
        (["save", "r.example/x"], "there is no command 'save'; use `wasmc pull REF -o FILE`"),
        (["rollout", "undo", "x"], "there is no command 'undo'; use `wasmc rollout abort NAME`"),
        (["tag", "r.example/x:v1"], "no command 'tag'; use `wasmc copy REF NAME:TAG`"),
        (["get", "aw"], "no command 'get'; use `kubectl get autowasm`"),
        (["push", "r.example/x"], "no module is given: wasmc push r.example/x -f FILE"),
        (["push", "r.example/x", "-f", "a", "b"], "-f a and b: only one module can be pushed"),
        (["push", __file__, "r.example/x"], "the reference comes first: wasmc push r.example/x -f"),
        (["push", __file__], "the reference comes first: wasmc push REF -f"),
        (["push", "r.example/x", "-f", "m", "--format", "imgae"], "did you mean image?"),
        (["inspect", "m.wasm", "--require", "istoi"], "did you mean istio?"),
        (["help", "plna"], "no command 'plna'; did you mean plan?"),
        (["completion", "tcsh"], "invalid choice: 'tcsh'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_usage_errors_suggest_a_correction(
    wasmc: Client, arguments: list[str], says: str
) -> None:
    done = await wasmc.run(*arguments, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr.splitlines()[-1]


async def test_an_unknown_flag_is_answered_with_the_usage_of_the_command(wasmc: Client) -> None:
    done = await wasmc.run("rollout", "status", "x", "--wacht", check=False)
    assert done.stderr.startswith("usage: wasmc rollout status ")
    assert done.stderr.splitlines()[-1].endswith("--wacht; did you mean --watch?")


@pytest.mark.parametrize(
    "words", [["m.wasm"], ["m.wasm", "-q"], ["-q", "m.wasm"], ["-q", "-f", "m.wasm"]]
)
def test_the_module_of_a_push_stands_anywhere_behind_the_reference(words: list[str]) -> None:
    parsed = build_parser().parse_args(["push", "r.example/x", *words])
    assert (str(parsed.file or parsed.module), parsed.quiet) == ("m.wasm", "-q" in words)


@pytest.mark.parametrize("name", ["build/hello.wasm", "hello.wasm", "hello", "src/hello"])
@pytest.mark.parametrize("command", ["inspect", "run"])
async def test_a_file_that_does_not_exist_is_missing_and_not_an_image_of_docker_hub(
    wasmc: Client, tmp_path: Path, command: str, name: str
) -> None:
    (tmp_path / "src").mkdir()
    done = await wasmc.run(command, name, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{name}: no such file" in done.stderr


@pytest.mark.parametrize(
    "name", ["hello:v1", "team/hello", "127.0.0.1:1/hello.wasm", f"hello@{DIGEST}", "127.0.0.1:1/x"]
)
def test_a_reference_is_no_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.chdir(tmp_path)
    assert modules.file_of(name, command="inspect") is None


async def test_help_of_a_command_is_that_of_its_flag(wasmc: Client) -> None:
    assert (await wasmc.run("help")).stdout == (await wasmc.run("--help")).stdout
    for command in ("push", "copy", "explain"):
        told = (await wasmc.run("help", command)).stdout
        assert told == (await wasmc.run(command, "--help")).stdout
    assert (await wasmc.run("help", "cp")).stdout == (await wasmc.run("help", "copy")).stdout
    assert (await wasmc.run("version")).stdout == (await wasmc.run("--version")).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_every_shell_gets_code_for_both_programs(wasmc: Client, shell: str) -> None:
    code = (await wasmc.run("completion", shell)).stdout
    assert "_ARGCOMPLETE" in code
    assert "wasmc" in code
    assert "kubectl-autowasm" in code


COMPLETE = """
source <(wasmc completion bash)
COMP_LINE="$1"; COMP_POINT=${#1}; COMP_TYPE=9
read -ra COMP_WORDS <<< "$1"
[[ "$1" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete wasmc "${COMP_WORDS[COMP_CWORD]}" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("wasmc pu", {"push", "pull"}),
        ("wasmc push --for", {"--force", "--format"}),
        ("wasmc push x --format ", {"artifact", "image", "cncf", "kwctl"}),
        ("wasmc inspect x --require w", {"wasme", "wkg"}),
        ("wasmc pull x -o m", {"m.wasm"}),
    ],
)
def test_bash_completes_commands_flags_choices_and_files(
    tmp_path: Path, line: str, words: set[str]
) -> None:
    (tmp_path / "m.wasm").touch()
    path = f"{wasmer.program('wasmc').parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", line],
        cwd=tmp_path,
        env={"PATH": path, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert {word.strip() for word in done.stdout.splitlines() if word.strip()} == words


IMPORTS = """
import sys
from autowasm.cli import modules, wasmc
from autowasm.cli.wasmc import build_parser
sys.argv = ["wasmc", "--help"]
try:
    wasmc.main()
except SystemExit:
    pass
print("argcomplete" in sys.modules, file=sys.stderr)
"""


def test_completion_is_imported_only_for_a_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "False\n"


def test_the_plugin_of_kubectl_is_the_same_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wasmc.kubectl_main(["--help"])
    told = capsys.readouterr().out
    assert told.startswith("usage: kubectl autowasm ")
    with pytest.raises(SystemExit):
        wasmc.main(["--help"])
    assert capsys.readouterr().out == told.replace("usage: kubectl autowasm ", "usage: wasmc ")


def test_errors_of_the_plugin_have_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        wasmc.kubectl_main(["explain", "x", "--contxt", "y"])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("kubectl autowasm: error: unrecognized arguments: --contxt")
    assert "did you mean --context?" in last


def test_flags_before_the_command_are_those_of_the_command() -> None:
    done = subprocess.run(
        [
            wasmer.program("kubectl-autowasm"),
            *("--kubeconfig", "/absent", "-n=team", "--context=c", "explain", "x"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "kubectl autowasm: error: --kubeconfig /absent: no such file\n"


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("a/b/c", [], "must be NAME or NAMESPACE/NAME"),
        ("team/", [], "must be NAME or NAMESPACE/NAME"),
        ("a/b", ["-n", "c"], "another namespace, c"),
        ("a", ["-A"], "use either a NAME or --all-namespaces"),
    ],
)
def test_a_name_that_is_ambiguous_is_a_usage_error(
    name: str, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wasmc.main(["explain", name, *flags]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "the folder has no *.yaml"),
        ({"a.yaml": "kind: Pod\napiVersion: v1\nmetadata: {name: a}"}, "contain no AutoWasm"),
        ({"a.yaml": "a: [", "b.json": "{"}, "b.json: "),
    ],
)
def test_a_folder_without_autowasms_is_not_planned(
    tmp_path: Path, files: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.txt").write_text("no YAML: [")
    assert wasmc.main(["plan", "-f", str(tmp_path), "--offline"]) == 2
    assert says in capsys.readouterr().err
