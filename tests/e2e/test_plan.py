"""`wasmc plan` on a real API server: its output equals wasmer's later writes, and it writes nothing itself."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from tests.parts import wat
from tests.parts.explaining import install_server, pod, run_wasmc, service
from tests.parts.installation import Installation

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]


async def test_plan_equals_the_later_write_of_wasmer(
    installation: Installation, namespace: str
) -> None:
    await install_server(installation)
    module = wat.header_filter("planned")
    image = await installation.push("planned", module)
    document = installation.autowasm(image, namespace=namespace)
    text = yaml.safe_dump(document)
    await installation.apply(pod(namespace), service(namespace))
    done = await run_wasmc(installation, "plan", "-f", "-", "--json", stdin=text)
    (plan,) = json.loads(done.stdout)
    assert (done.returncode, plan["action"]) == (0, "create")
    assert hashlib.sha256(module).hexdigest() in plan["diff"]
    assert plan["podNames"] == [{"namespace": namespace, "name": "details", "injected": True}]
    with pytest.raises(Exception, match=r"404|not found"):
        await installation.get(namespace=namespace)  # nothing was written
    await installation.apply(document)
    await installation.wait_phase("Synced", namespace=namespace)
    live = await installation.envoyfilter(namespace=namespace)
    assert live["spec"] == plan["envoyFilter"]["spec"]
    assert live["metadata"]["annotations"] == plan["envoyFilter"]["metadata"]["annotations"]
    done = await run_wasmc(installation, "plan", "-f", "-", "--json", stdin=text)
    assert json.loads(done.stdout)[0]["action"] == "unchanged"
    document["spec"]["filter"]["pluginConfig"] = {"answer": 42}
    changed = yaml.safe_dump(document)
    done = await run_wasmc(installation, "plan", "-f", "-", "-q", stdin=changed)
    assert done.returncode == 0, done.stdout
    added = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    removed = [line for line in done.stdout.splitlines() if line.startswith("- ")]
    given = {"value": '{"answer":42}'}
    assert any(yaml.safe_load(line[1:]) == given for line in added if "answer" in line)
    assert not removed


# Values that the API server returns in another form or order.
CONFIG = (
    '{"zulu": {"b": 1e20, "a": [1.0, 1e3, 9007199254740993, 9223372036854775807, 9223372036854775808, '
    "18446744073709551615, 123456789012345678901234567890, 1.2345678901234567e20, 1e-7, 5e-324, -0.0]}, "
    '"alpha": "\u00e9\u2028<>&\U0001f600", "\U0001f600": 1, "\u00e9": 2, "A": true, "a": {}, "": [null]}'
)


async def test_plan_has_the_configuration_that_the_filter_will_get(
    installation: Installation, namespace: str
) -> None:
    image = await installation.push("values", wat.header_filter("values"))
    document = installation.autowasm(image, namespace=namespace)
    text = json.dumps(document, ensure_ascii=False)
    text = text.replace('"filter": {', f'"filter": {{"pluginConfig": {CONFIG}, ', 1)
    done = await run_wasmc(installation, "plan", "-f", "-", "--json", stdin=text)
    (plan,) = json.loads(done.stdout)
    await installation.kubectl.run("apply", "-f", "-", stdin=text.encode())
    await installation.wait_phase("Synced", namespace=namespace)
    live = await installation.envoyfilter(namespace=namespace)
    assert live["spec"] == plan["envoyFilter"]["spec"]


async def test_plan_names_the_field_that_is_wrong(
    installation: Installation, namespace: str
) -> None:
    document = installation.autowasm("registry.example/x:v1", namespace=namespace, applyPorts=[0])
    text = yaml.safe_dump(document)
    done = await run_wasmc(installation, "plan", "-f", "-", "--json", stdin=text)
    found = json.loads(done.stdout)[0]["findings"]
    assert done.returncode == 1
    assert [one["field"] for one in found if one["check"] == "InvalidSpec"] == [
        "spec.filter.applyPorts[0]"
    ]


async def test_a_folder_is_planned_file_by_file_and_duplicates_are_named(
    installation: Installation, namespace: str, tmp_path: Path
) -> None:
    image = await installation.push("folder", wat.header_filter("folder"))
    for file, name in (("a.yaml", "one"), ("b.json", "two"), ("c.yml", "one")):
        document = installation.autowasm(image, namespace=namespace)
        document["metadata"]["name"] = name
        (tmp_path / file).write_text(json.dumps(document))
    (tmp_path / "README.md").write_text("not read: [")
    done = await run_wasmc(installation, "plan", "-f", str(tmp_path), "--json")
    plans = {each["name"]: each for each in json.loads(done.stdout)}
    assert set(plans) == {"one", "two"}
    assert plans["two"]["action"] == "create"
    twice = [each["what"] for each in plans["one"]["findings"] if each["level"] == "error"]
    assert any("a.yaml and " in each and "c.yml" in each for each in twice), twice
    assert done.returncode == 1
