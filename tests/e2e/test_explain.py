"""`wasmc explain` on a real API server with Istio's CRDs: each link is broken on purpose, and the output names it."""

import json
import os
from pathlib import Path

import pytest
import yaml

from tests.parts import ports, wasmer
from tests.parts.clients import Client
from tests.parts.explaining import (
    ROOT,
    explain,
    install_good,
    install_server,
    istio,
    pod,
    push_module,
    run_wasmc,
    service,
    set_pod_status,
    wrong,
)
from tests.parts.installation import Document, Installation, autowasms, envoyfilters

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]


async def test_all_right_ends_with_0_and_a_table_of_80_columns(
    installation: Installation, namespace: str
) -> None:
    await install_good(installation, namespace)
    status, found = await explain(installation, namespace)
    assert (status, wrong(found)) == (0, {})
    assert {"Phase", "Secret", "Source", "Module", "EnvoyFilter", "Pods", "Port"} <= set(found)
    command = ("explain", f"{namespace}/test", "--strict")
    done = await run_wasmc(installation, *command, COLUMNS="80")
    assert done.returncode == 0, done.stdout
    assert "no problems found" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    piped = await run_wasmc(installation, *command)
    report = await run_wasmc(installation, *command, "--json")
    assert json.loads(report.stdout)["module"] in piped.stdout, "no digest is broken into lines"


async def test_each_wrong_secret_is_distinguished(
    installation: Installation, namespace: str
) -> None:
    await install_good(installation, namespace)
    await installation.kubectl.run("delete", "secret", "test", "-n", namespace)
    status, found = await explain(installation, namespace)
    assert (status, found["SecretNotFound"]["level"]) == (1, "error")
    meta = {"name": "test", "namespace": namespace}
    secret: Document = {"apiVersion": "v1", "kind": "Secret", "metadata": meta}
    await installation.apply({**secret, "type": "Opaque", "stringData": {"password": "hunter2"}})
    status, found = await explain(installation, namespace)
    assert (status, found["SecretInvalid"]["level"]) == (1, "error")
    assert "hunter2" not in json.dumps(found)
    await installation.kubectl.run("delete", "secret", "test", "-n", namespace)
    config = json.dumps({"auths": {"other.example": {"username": "a", "password": "hunter2"}}})
    kind = "kubernetes.io/dockerconfigjson"
    await installation.apply({**secret, "type": kind, "stringData": {".dockerconfigjson": config}})
    status, found = await explain(installation, namespace)
    assert found["SecretNoLogin"]["level"] == "warning"
    assert found["Unauthorized"]["level"] == "error"
    assert "hunter2" not in json.dumps(found)


async def test_missing_tag_is_named_by_status_and_from_here(
    installation: Installation, namespace: str
) -> None:
    image = f"{installation.registry.host}/xxx/hello:never-there"
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_phase("Failed", namespace=namespace)
    status, found = await explain(installation, namespace)
    assert status == 1
    tags = [
        one for one in found.values() if "never-there" in one["what"] and one["level"] == "error"
    ]
    assert tags
    assert found["EnvoyFilterMissing"]["level"] == "error"


async def test_registry_that_is_down_is_a_warning_from_here(
    installation: Installation, namespace: str
) -> None:
    await install_good(installation, namespace)
    await installation.registry.stop()
    try:
        status, found = await explain(installation, namespace)
    finally:
        await installation.registry.start()
    here = [one for one in found.values() if one["what"].startswith("from this machine")]
    assert status == 0
    assert [one["level"] for one in here] == ["warning"]


async def test_explain_reports_the_reason_of_a_refused_module(
    installation: Installation, namespace: str
) -> None:
    file = installation.directory / "refused.wasm"
    file.write_bytes(b"\0asm\1\0\0\0")
    image = f"{installation.registry.host}/xxx/hello:refused"
    arguments = ("push", image, "-f", str(file), "--force", "--username", "alice")
    client = wasmer.wasmc(installation.directory)
    await client.run(*arguments, "--password-stdin", stdin=b"s3cret")
    await installation.apply(installation.autowasm(image, namespace=namespace))
    document = await installation.wait_phase("Failed", namespace=namespace)
    reason = next(c["reason"] for c in document["status"]["conditions"] if c["type"] == "Fetched")
    status, found = await explain(installation, namespace)
    assert (status, found[reason]["level"]) == (1, "error")


async def test_foreign_envoyfilter_of_the_same_name_is_a_conflict(
    installation: Installation, namespace: str
) -> None:
    await installation.apply(istio("EnvoyFilter", namespace, "test", {"configPatches": []}))
    image = await push_module(installation)
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_phase("Failed", namespace=namespace)
    status, found = await explain(installation, namespace)
    assert (status, found["EnvoyFilterConflict"]["level"]) == (1, "error")


async def test_envoyfilter_edited_or_going_is_named(
    installation: Installation, namespace: str
) -> None:
    await install_good(installation, namespace)
    await installation.wasmer.process.stop()
    installation.may_die = True
    try:
        patch = [{"op": "replace", "path": "/spec/configPatches/0/match/context", "value": "ANY"}]
        arguments = ("envoyfilter", "test", "-n", namespace)
        await installation.kubectl.run("patch", *arguments, "--type=json", "-p", json.dumps(patch))
        _, found = await explain(installation, namespace)
        assert found["EnvoyFilterEdited"]["field"] == "spec.configPatches[0].match.context"
        finalizer = json.dumps({"metadata": {"finalizers": ["example.com/hold"]}})
        await installation.kubectl.run("patch", *arguments, "--type=merge", "-p", finalizer)
        await installation.kubectl.run("delete", *arguments, "--wait=false")
        status, found = await explain(installation, namespace)
        assert (status, found["EnvoyFilterTerminating"]["level"]) == (1, "error")
        free = json.dumps({"metadata": {"finalizers": []}})
        await installation.kubectl.run("patch", *arguments, "--type=merge", "-p", free)
        status, found = await explain(installation, namespace)
        assert (status, found["EnvoyFilterMissing"]["level"]) == (1, "error")
    finally:
        installation.may_die = False
        await installation.wasmer.start()


async def test_pods_and_ports_are_distinguished(installation: Installation, namespace: str) -> None:
    await install_good(installation, namespace)
    await installation.kubectl.run("delete", "pod", "details", "-n", namespace, "--force")
    _, found = await explain(installation, namespace)
    assert found["NoPod"]["level"] == "warning"
    await installation.apply(pod(namespace, proxy=False))
    status, found = await explain(installation, namespace)
    assert (status, found["NotInjected"]["level"]) == (1, "error")
    await installation.kubectl.run("delete", "pod", "details", "-n", namespace, "--force")
    await installation.apply(pod(namespace), service(namespace, port=9080, target=8000))
    status, found = await explain(installation, namespace)
    assert (status, found["ServicePortNamed"]["level"]) == (1, "error")
    assert "use 8000 instead" in found["ServicePortNamed"]["remedy"]
    await installation.apply(service(namespace, name="tcp-details"))
    status, found = await explain(installation, namespace)
    assert (status, found["NotHttp"]["level"]) == (1, "error")


async def test_old_proxies_do_not_know_fail_reload(
    installation: Installation, namespace: str
) -> None:
    await install_good(installation, namespace, failStrategy="FAIL_RELOAD")
    _, found = await explain(installation, namespace)
    assert found["FailStrategy"]["level"] == "warning"
    assert "1.25" in found["FailStrategy"]["what"]


@pytest.mark.parametrize("link", ["sidecar", "policy", "rule", "entry"])
async def test_policies_that_block_sidecars_from_wasmer_are_reported(
    installation: Installation, namespace: str, link: str
) -> None:
    await install_good(installation, namespace)
    host = "wasmer.istio-system.svc.cluster.local"
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "broken", "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": []},
    }
    tls = {"host": host, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}
    ports = [{"number": 8081, "name": "http", "protocol": "HTTP"}]
    entry = {"hosts": [host], "ports": ports, "resolution": "STATIC", "location": "MESH_INTERNAL"}
    entry["endpoints"] = [{"address": "10.1.1.1"}]
    broken: dict[str, tuple[Document, str]] = {
        "sidecar": (
            istio("Sidecar", namespace, "broken", {"egress": [{"hosts": ["./*"]}]}),
            "SidecarEgress",
        ),
        "policy": (policy, "PolicyEgress"),
        "rule": (istio("DestinationRule", namespace, "broken", tls), "DestinationRuleTls"),
        "entry": (istio("ServiceEntry", namespace, "broken", entry), "ForeignEndpoint"),
    }
    document, check = broken[link]
    await installation.apply(document)
    _, found = await explain(installation, namespace)
    assert check in wrong(found)
    assert f"{namespace}/broken" in found[check]["object"]
    await installation.kubectl.run("delete", document["kind"], "broken", "-n", namespace)
    assert check not in wrong((await explain(installation, namespace))[1])


async def test_discovery_root_namespace_and_clusters_come_from_the_mesh(
    installation: Installation, namespace: str
) -> None:
    await install_good(installation, namespace)
    mesh = {"discoverySelectors": [{"matchLabels": {"mesh": "yes"}}]}
    config: Document = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": ROOT},
        "data": {"mesh": yaml.safe_dump(mesh)},
    }
    await installation.apply(config)
    label = "topology.istio.io/network"
    await installation.kubectl.run("label", "namespace", ROOT, f"{label}=one", "--overwrite")
    try:
        status, found = await explain(installation, namespace)
        assert (status, found["NotDiscovered"]["level"]) == (1, "error")
        assert found["MultiCluster"]["level"] == "warning"
    finally:
        await installation.kubectl.run("delete", "configmap", "istio", "-n", ROOT)
        await installation.kubectl.run("label", "namespace", ROOT, f"{label}-")


async def test_filters_on_one_port_are_listed_in_order(
    installation: Installation, namespace: str
) -> None:
    await install_good(installation, namespace)
    other = await installation.envoyfilter(namespace=namespace)
    spec = {**other["spec"], "priority": -5}
    await installation.apply(istio("EnvoyFilter", namespace, "other", spec))
    _, found = await explain(installation, namespace)
    assert f"{namespace}/other > this one" in found["Order"]["what"]
    assert "OrderByAge" not in found
    await installation.apply(istio("EnvoyFilter", namespace, "other", other["spec"]))
    _, found = await explain(installation, namespace)
    assert found["OrderByAge"]["level"] == "warning"


async def test_objects_forbidden_by_rbac_are_listed_as_not_checked(
    installation: Installation, namespace: str
) -> None:
    await install_good(installation, namespace)
    role = ("reader", "-n", namespace, "--verb=get", "--resource=autowasms.wasm.tcm.io")
    await installation.kubectl.run("create", "role", *role)
    binding = ("reader", "-n", namespace, "--role=reader", f"--serviceaccount={namespace}:reader")
    await installation.kubectl.run("create", "rolebinding", *binding)
    await installation.kubectl.run("create", "serviceaccount", "reader", "-n", namespace)
    token = await installation.kubectl.run("create", "token", "reader", "-n", namespace)
    config = yaml.safe_load(installation.cluster.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"token": token.stdout.strip()}
    file = installation.directory / f"{namespace}.kubeconfig"
    file.write_text(yaml.safe_dump(config))
    client = wasmer.wasmc(installation.directory)
    arguments = ("explain", "test", "-n", namespace, "--no-source", "--json")
    done = await client.run(*arguments, "--kubeconfig", str(file), check=False)
    answer = json.loads(done.stdout)
    assert done.returncode == 0, answer
    assert {"pods", "secret", "envoyfilter", "networkpolicies"} <= set(answer["notChecked"])
    assert answer["notChecked"].pop("source") == "--no-source"
    assert all("RBAC" in why for why in answer["notChecked"].values())


async def test_absent_autowasm_and_absent_server_have_their_statuses(
    installation: Installation, namespace: str
) -> None:
    done = await run_wasmc(installation, "explain", "absent", "-n", namespace)
    assert done.returncode == 1
    assert f"AutoWasm {namespace}/absent does not exist" in done.stderr
    config = yaml.safe_load(installation.cluster.kubeconfig.read_text())
    for cluster in config["clusters"]:
        cluster["cluster"]["server"] = "https://127.0.0.1:1"
    file = installation.directory / "nowhere.kubeconfig"
    file.write_text(yaml.safe_dump(config))
    client = wasmer.wasmc(installation.directory)
    done = await client.run("explain", "test", "--kubeconfig", str(file), check=False)
    assert done.returncode == 2


async def test_a_staged_rollout_is_explained_from_its_wait_to_its_abort(
    installation: Installation, namespace: str
) -> None:
    await install_server(installation)
    await installation.apply(pod(namespace), service(namespace))
    ready: Document = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    # Nothing listens on the statistics port there.
    ready["podIPs"] = [{"ip": ports.free_address()}]
    await set_pod_status(installation, "details", namespace, ready)
    document = installation.autowasm(await push_module(installation), namespace=namespace)
    document["spec"]["rollout"] = {"steps": [1], "pause": "1s", "deadline": "1h"}
    await installation.apply(document)

    def waits(found: Document | None) -> bool:
        rollout = ((found or {}).get("status") or {}).get("rollout") or {}
        return rollout.get("reason") == "StatsUnreachable"

    def is_empty(found: Document | None) -> bool:
        return found is not None and not found["spec"].get("configPatches")

    await installation.wait_object(autowasms(namespace, "test"), waits, timeout=60)
    status, found = await explain(installation, namespace)
    assert status == 0
    assert (found["Phase"]["level"], found["Rollout"]["level"]) == ("note", "warning")
    assert found["Rollout"]["object"] == f"Pod {namespace}/details"
    assert "step 1 of 2" in found["Rollout"]["what"]
    assert "EnvoyFilterEdited" not in found, "the EnvoyFilter is as wasmer writes it in this step"
    for command, check, level in (
        ("pause", "RolloutPaused", "warning"),
        ("abort", "RolloutAborted", "error"),
    ):
        done = await run_wasmc(installation, "rollout", command, "test", "-n", namespace)
        assert done.returncode == 0, done.stdout + done.stderr
        if command == "abort":  # the EnvoyFilter follows the status
            await installation.wait_object(envoyfilters(namespace, "test"), is_empty)
        status, found = await explain(installation, namespace)
        assert found[check]["level"] == level
        assert "EnvoyFilterEdited" not in found, (command, found["EnvoyFilterEdited"])
    assert status == 1
    assert f"wasmc rollout retry test -n {namespace}" in found["RolloutAborted"]["remedy"]


async def test_all_of_a_namespace_are_explained_with_their_problems_only(
    installation: Installation, namespace: str
) -> None:
    await install_good(installation, namespace)
    image = f"{installation.registry.host}/xxx/hello:never-there"
    bad = installation.autowasm(image, namespace=namespace)
    bad["metadata"]["name"] = "bad"
    await installation.apply(bad)
    done = await run_wasmc(installation, "explain", "-n", namespace)
    assert done.returncode == 1
    assert f"AutoWasm {namespace}/bad: " in done.stdout
    assert f"AutoWasm {namespace}/test" not in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last == f"2 AutoWasms in namespace {namespace}: 1 with problems, 1 without"
    everywhere = await run_wasmc(installation, "explain", "-A", "--no-source", "--json")
    found = {(each["namespace"], each["name"]) for each in json.loads(everywhere.stdout)}
    assert {(namespace, "bad"), (namespace, "test")} <= found
    empty = await run_wasmc(installation, "explain", "-n", "kube-public")
    assert (empty.returncode, empty.stdout) == (0, "no AutoWasms in namespace kube-public\n")


async def test_kubectl_runs_it_as_a_plugin_and_shells_complete_names(
    installation: Installation, namespace: str
) -> None:
    await install_good(installation, namespace)
    kubectl = installation.kubectl
    path = f"{wasmer.program('kubectl-autowasm').parent}:{os.environ['PATH']}"
    plugin = Client(kubectl.program, kubectl.home, {**kubectl.environment, "PATH": path})
    done = await plugin.run("autowasm", "explain", "test", "-n", namespace, "--no-source")
    assert done.stdout.startswith(f"AutoWasm {namespace}/test: ")
    contexts = await kubectl.run("config", "current-context")
    named = ("--context", contexts.stdout.strip())
    done = await plugin.run("autowasm", *named, "explain", f"{namespace}/test", "--no-source")
    assert done.stdout.startswith(f"AutoWasm {namespace}/test: ")

    config = str(installation.cluster.kubeconfig)
    line = f"wasmc explain -n {namespace} --kubeconfig {config} t"
    completing = """
    source <(wasmc completion bash)
    COMP_LINE="$1"; COMP_POINT=${#1}; COMP_TYPE=9; read -ra COMP_WORDS <<< "$1"
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _python_argcomplete wasmc t ""
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    environment = {"PATH": path, "HOME": str(installation.directory)}
    bash = Client(Path("/bin/bash"), installation.directory, environment)
    done = await bash.run("-c", completing, "bash", line)
    assert done.stdout.split() == ["test"]
