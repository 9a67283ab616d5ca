"""`wasmc convert`: standard output has valid AutoWasms and nothing else, and all that is lost is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from autowasm.api.validation import parse
from tests.parts.clients import Client, Completed

Document = dict[str, Any]


def plugin(name: str = "hello", **spec: Any) -> Document:
    return {
        "apiVersion": "extensions.istio.io/v1alpha1",
        "kind": "WasmPlugin",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "selector": {"matchLabels": {"app": "cart"}},
            "match": [{"mode": "SERVER"}],
            "url": "oci://r.example/a:v1",
            **spec,
        },
    }


async def converted(wasmc: Client, *documents: Document, flags: tuple[str, ...] = ()) -> Completed:
    text = yaml.safe_dump_all(documents).encode()
    return await wasmc.run("convert", "-f", "-", *flags, stdin=text, check=False)


def names(text: str) -> list[str]:
    """Of the AutoWasms, which are valid."""
    found = list(yaml.safe_load_all(text))
    return [parse(one).metadata.name for one in found]


async def test_output_is_a_stream_of_autowasms(wasmc: Client) -> None:
    done = await converted(wasmc, plugin("a"), plugin("b", match=[]))
    assert done.returncode == 0
    assert names(done.stdout) == ["a", "b-inbound", "b-outbound"]
    assert "wasmc: lost:" not in done.stderr


async def test_losses_name_object_and_field_and_exit_with_status_3(
    wasmc: Client,
) -> None:
    done = await converted(wasmc, plugin("a", phase="STATS"), plugin("b", type="NETWORK"))
    assert done.returncode == 3
    assert names(done.stdout) == ["a"]
    lost = [line for line in done.stderr.splitlines() if line.startswith("wasmc: lost:")]
    assert len(lost) == 2
    assert lost[0].startswith("wasmc: lost: WasmPlugin shop/a: spec.phase: STATS: ")
    assert lost[1].startswith("wasmc: lost: WasmPlugin shop/b: spec.type: NETWORK ")


async def test_object_without_a_filter_is_lost(wasmc: Client) -> None:
    policy = {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyExtensionPolicy",
        "metadata": {"name": "p"},
        "spec": {},
    }
    done = await converted(wasmc, policy)
    assert (done.returncode, done.stdout) == (3, "")
    assert "wasmc: lost: EnvoyExtensionPolicy p: spec: has no filter" in done.stderr


async def test_autowasm_that_would_be_invalid_is_left_out(wasmc: Client) -> None:
    done = await converted(wasmc, plugin("a", sha256="short"), plugin("b"))
    assert done.returncode == 3
    assert names(done.stdout) == ["b"]
    assert "wasmc: lost: WasmPlugin shop/a: AutoWasm a would be invalid" in done.stderr


async def test_second_autowasm_of_a_name_is_not_written_over_the_first(wasmc: Client) -> None:
    other = {**plugin(), "kind": "TrafficExtension"}
    other["spec"] = {"wasm": {"url": "r.example/b"}, "match": [{"mode": "SERVER"}]}
    elsewhere = plugin()
    elsewhere["metadata"] = {"name": "hello", "namespace": "other"}
    done = await converted(wasmc, plugin(), other, elsewhere)
    assert done.returncode == 3
    assert names(done.stdout) == ["hello", "hello"]
    assert "TrafficExtension shop/hello: AutoWasm hello is left out: WasmPlugin shop/hello" in (
        done.stderr
    )


async def test_json_has_the_autowasms_and_all_messages(wasmc: Client) -> None:
    done = await converted(wasmc, plugin(phase="STATS", verificationKey="k"), flags=("--json",))
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert [one["metadata"]["name"] for one in found["autowasms"]] == ["hello"]
    (lost,) = found["lost"]
    assert (lost["object"], lost["field"]) == ("WasmPlugin shop/hello", "spec.phase")
    assert [one["field"] for one in found["notes"]] == ["spec.verificationKey"]


async def test_flag_makes_pods_gateways(wasmc: Client) -> None:
    done = await converted(wasmc, plugin(match=[]), flags=("--gateway",))
    (found,) = yaml.safe_load_all(done.stdout)
    assert found["spec"]["filter"]["context"] == "GATEWAY"


async def test_files_of_a_folder_are_converted_in_the_order_of_their_names(
    wasmc: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, document in {"2.yaml": plugin("second"), "1.json": plugin("first")}.items():
        (folder / name).write_text(json.dumps(document))
    (folder / "3.yml").write_text("kind: ConfigMap\napiVersion: v1\nmetadata: {name: c}\n")
    (folder / "read.me").write_text("no YAML: [")
    more = tmp_path / "more.yaml"
    more.write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": [plugin("listed")]}))
    done = await wasmc.run("convert", "-f", folder, "-f", more)
    assert names(done.stdout) == ["first", "second", "listed"]
    assert f"wasmc: warning: -f {folder}/3.yml: ConfigMap c: has nothing to convert" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "nothing to convert; supported are WasmPlugin (extensions.istio.io)"),
        ("kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\n", "nothing to convert"),
        ("a: [", "-f -: "),
    ],
)
async def test_input_without_anything_to_convert_is_a_usage_error(
    wasmc: Client, text: str, says: str
) -> None:
    done = await wasmc.run("convert", "-f", "-", stdin=text.encode(), check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert not done.stdout


async def test_file_that_is_not_there_is_named(wasmc: Client) -> None:
    done = await wasmc.run("convert", "-f", "absent.yaml", "--json", check=False)
    assert done.returncode == 2
    assert "-f absent.yaml: No such file or directory" in done.stderr
    assert json.loads(done.stdout)["error"]["reason"] == "Usage"


async def test_name_of_an_object_cannot_write_to_the_terminal(wasmc: Client) -> None:
    done = await converted(wasmc, plugin("a\x1b[31m", phase="STATS"))
    assert done.returncode == 3
    assert "\x1b" not in done.stderr + done.stdout
