import argparse
from collections.abc import Mapping
from pathlib import Path

import pytest

from autowasm.cli import wasmer, wasmerflags
from autowasm.errors import UsageError
from autowasm.settings import Outgoing, Settings

NEEDED = ["standalone", "--config", "c", "--envoy-dir", "e"]


def read(*arguments: str, environment: Mapping[str, str] | None = None) -> Settings:
    parsed = wasmer.build_parser().parse_args(arguments)
    return wasmerflags.settings_from(parsed, environment=environment or {})


def test_defaults_are_those_of_settings() -> None:
    settings = read(*NEEDED)
    assert settings.standalone is not None
    assert settings.standalone.config_dir == Path("c")
    assert settings.standalone.listener_template is None
    assert settings.cluster is None
    assert settings == Settings(
        cache_dir=Path("/var/cache/wasmer"),
        standalone=settings.standalone,
        outgoing=Outgoing(inside=True, plain_loopback=True),
    )


def test_controller_defaults_are_those_of_settings() -> None:
    cluster = read("controller").cluster
    assert cluster is not None
    assert (cluster.kubeconfig, cluster.watch_namespaces) == (None, ())
    assert (cluster.root_namespace, cluster.allow_mesh_wide) == ("istio-system", False)
    assert read("controller").outgoing == Outgoing()


def test_every_flag_reaches_its_setting() -> None:
    settings = read(
        *NEEDED,
        "--listener-template", "t", "--cache-dir", "d", "--listen", "127.0.0.1:0", "--admin-listen", "[::1]:1",
        "--disk-budget", "1Gi", "--blob-grace", "1h", "--drain-delay", "1s", "--startup-deadline", "2s",
        "--service-name", "n", "--service-namespace", "m", "--service-port", "1", "--cluster-domain", "d",
        "--envoy-cluster", "c", "--envoy-authority", "a:1", "--envoy-fetch-timeout", "3s",
        "--envoy-fetch-retries", "0", "--workers", "7", "--max-concurrent-fetches", "8", "--log-level", "debug",
        "--log-format", "console",
    )  # fmt: skip
    assert settings.standalone is not None
    assert settings.standalone.listener_template == Path("t")
    assert (settings.cache_dir, settings.listen, settings.admin_listen) == (
        Path("d"), "127.0.0.1:0", "[::1]:1",
    )  # fmt: skip
    assert (settings.disk_budget, settings.blob_grace) == (2**30, 3600)
    assert (settings.drain_delay, settings.startup_deadline) == (1, 2)
    envoy = settings.envoy
    assert (envoy.cluster, envoy.authority, envoy.timeout, envoy.retries) == ("c", "a:1", 3, 0)
    assert (envoy.service_name, envoy.service_namespace, envoy.service_port) == ("n", "m", 1)
    assert (settings.workers, settings.fetch.total) == (7, 8)
    assert (settings.log_level, settings.log_format) == ("debug", "console")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--allow-cidr", "10.0.0.0/8", "--allow-cidr", "fd00::/8"),
        ("--allow-cidr", "10.0.0.0/8,fd00::/8"),
        ("--allow-cidr", " 10.0.0.0/8 , fd00::/8,"),
    ],
)
def test_repeatable_flags_also_take_commas(arguments: tuple[str, ...]) -> None:
    assert read(*NEEDED, *arguments).outgoing.allow_cidr == ("10.0.0.0/8", "fd00::/8")


def test_lists_reach_their_settings() -> None:
    settings = read(
        *NEEDED, "--deny-cidr", "10.1.2.3/16", "--plain-http-registry", "a,b:1",
        "--insecure-registry", "c", "--allow-import", "env.f,env.g", "--allow-import", "env.h",
        "--envoy-version", "v1.39.2",
        "--allow-private-host", "d,*.e:5000,fd00::1,[fd00::2]:1",
    )  # fmt: skip
    assert settings.outgoing.private_hosts == ("d", "*.e:5000", "[fd00::1]", "[fd00::2]:1")
    assert settings.outgoing.deny_cidr == ("10.1.0.0/16",)
    assert settings.outgoing.plain_http == {"a", "b:1"}
    assert settings.outgoing.insecure == {"c"}
    assert settings.allow_imports == {"env.f", "env.g", "env.h"}
    assert settings.oldest_envoy == (1, 39)


def test_flag_wins_over_environment_over_default() -> None:
    environment = {
        "WASMER_WORKERS": "2",
        "WASMER_LOG_LEVEL": "error",
        "WASMER_ALLOW_CIDR": "::/0,10.0.0.0/8",
    }
    settings = read(*NEEDED, "--workers", "3", environment=environment)
    assert (settings.workers, settings.log_level) == (3, "error")
    assert settings.outgoing.allow_cidr == ("::/0", "10.0.0.0/8")


def test_empty_environment_variable_leaves_the_default() -> None:
    assert read(*NEEDED, environment={"WASMER_WORKERS": ""}).workers == 4


def test_required_flags_may_come_from_the_environment() -> None:
    settings = read("standalone", environment={"WASMER_CONFIG": "c", "WASMER_ENVOY_DIR": "e"})
    assert settings.standalone is not None
    assert settings.standalone.envoy_dir == Path("e")


@pytest.mark.parametrize(("text", "taken"), [("true", True), ("0", False), ("False", False)])
def test_mesh_wide_from_the_environment(text: str, taken: bool) -> None:
    cluster = read("controller", environment={"WASMER_ALLOW_MESH_WIDE": text}).cluster
    assert cluster is not None
    assert cluster.allow_mesh_wide is taken


WRONG = [
    ("--workers", "0", "must be at least 1, not 0"),
    ("--workers", "x", "must be a whole number, not 'x'"),
    ("--workers", "-1", "must be a whole number, not '-1'"),
    ("--workers", "9" * 5000, "must be a whole number"),
    ("--service-port", "65536", "must be from 1 to 65535, not 65536"),
    ("--envoy-fetch-retries", "-1", "must be a whole number"),
    ("--envoy-fetch-timeout", "30", "not a duration"),
    ("--disk-budget", "big", "not a size"),
    ("--listen", "8081", "ADDRESS:PORT"),
    ("--listen", ":8081", "ADDRESS:PORT"),
    ("--listen", "[::]:99999", "ADDRESS:PORT"),
    ("--listen", "[::]:²", "ADDRESS:PORT"),
    ("--admin-listen", "localhost:", "ADDRESS:PORT"),
    ("--allow-cidr", "10.0.0.0/8,everything", "'everything' does not appear to be"),
    ("--allow-private-host", "*", "use --allow-cidr for all hosts of a network"),
    ("--allow-private-host", "*:5000", "must be HOST[:PORT]"),
    ("--allow-private-host", "a.*.b", "must be HOST[:PORT]"),
    ("--allow-private-host", "http://a", "must be HOST[:PORT]"),
    ("--allow-private-host", "a/b", "must be HOST[:PORT]"),
    ("--allow-private-host", "10.0.0.0/8", "use --allow-cidr for all hosts of a network"),
    ("--allow-private-host", "a:70000", "must be HOST[:PORT]"),
    ("--allow-private-host", "fd00::x", "fd00::x"),
    ("--log-level", "loud", "must be one of debug, info, warning, error, not 'loud'"),
    ("--log-format", "xml", "must be one of json, console"),
    ("--registry-ca-file", "/nowhere/ca.pem", "there is no file"),
    ("--plain-http-registry", "r.example:65536", "the port must be from 1 to 65535, not 65536"),
    ("--plain-http-registry", "http://r.example", "without scheme and path"),
    ("--plain-http-registry", "r.example/team", "without scheme and path"),
    ("--insecure-registry", "r.example:0", "the port must be from 1 to 65535, not 0"),
    ("--insecure-registry", "r.example:", "not a registry host"),
    ("--insecure-registry", "[::::]:5000", "not an IPv6 address"),
    ("--registry-ca-file", "r.example:65536=/dev/null", "the port must be from 1 to 65535"),
    ("--registry-proxy", "http://proxy.example:65536", "not a URL of the form http://HOST:PORT"),
    ("--registry-proxy", "http://proxy.example:0", "not a URL of the form http://HOST:PORT"),
    ("--registry-ca-file", "=/dev/null", "there is no file"),
    ("--peer", "https://peer.example:8081", "must be http://HOST:PORT, not"),
    ("--peer", "http://u:p@peer.example", "must be http://HOST:PORT, not"),
    ("--peer", "http://peer.example:8081/x", "without a path"),
    ("--peer", "peer.example:8081?x", "without a path"),
    ("--peer", "http://peer.example:65536", "the port must be a number from 1 to 65535"),
    ("--peer", "http://peer.example:x", "the port must be a number from 1 to 65535"),
]


@pytest.mark.parametrize(("flag", "value", "says"), WRONG)
def test_wrong_value_names_the_flag_and_the_problem(flag: str, value: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(*NEEDED, f"{flag}={value}")
    assert str(caught.value).startswith(f"{flag}: ")
    assert says in str(caught.value)


def test_a_switch_from_the_environment_is_true_or_false() -> None:
    with pytest.raises(UsageError, match="WASMER_ALLOW_MESH_WIDE: must be true or false"):
        read("controller", environment={"WASMER_ALLOW_MESH_WIDE": "maybe"})


def test_wrong_variable_is_named_as_a_variable() -> None:
    with pytest.raises(UsageError, match=r"^WASMER_WORKERS: must be"):
        read(*NEEDED, environment={"WASMER_WORKERS": "many"})


@pytest.mark.parametrize("missing", ["--config", "--envoy-dir"])
def test_missing_flag_is_named_with_its_variable(missing: str) -> None:
    index = NEEDED.index(missing)
    variable = "WASMER_" + missing.removeprefix("--").replace("-", "_").upper()
    with pytest.raises(UsageError, match=f"{missing} is required .or {variable}"):
        read(*NEEDED[:index], *NEEDED[index + 2 :])


def test_every_flag_is_explained() -> None:
    subparsers = next(
        action
        for action in wasmer.build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    assert set(subparsers.choices) == {
        "standalone",
        "controller",
        "check-uninstall",
        "check-download",
    }
    for parser in subparsers.choices.values():
        assert all(action.help for action in parser._actions)
        parser.format_help()


def test_registries_in_full(tmp_path: Path) -> None:
    one, two = tmp_path / "a=b.pem", tmp_path / "two.pem"
    for path in (one, two):
        path.touch()
    settings = read(
        *NEEDED,
        *("--registry-ca-file", str(one), "--registry-ca-file", f"r.example:5000={two}"),
        *("--registry-proxy", "http://u:s3cret@proxy:3128", "--no-proxy", ".corp,10.0.0.0/8"),
        *("--registry-rate", "5", "--policy-file", str(two)),
    )
    outgoing = settings.outgoing
    assert (outgoing.ca_file, outgoing.ca_files) == (one, (("r.example:5000", two),))
    assert (outgoing.proxy, outgoing.no_proxy) == (
        "http://u:s3cret@proxy:3128",
        (".corp", "10.0.0.0/8"),
    )
    assert (outgoing.host_rate, outgoing.host_burst) == (5.0, 10)
    assert settings.policy_file == two
    assert "s3cret" not in repr(settings)


def test_one_ca_file_is_for_every_host(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pem", tmp_path / "two.pem"
    for path in (one, two):
        path.touch()
    with pytest.raises(UsageError, match="only one without HOST="):
        read(*NEEDED, f"--registry-ca-file={one}", f"--registry-ca-file={two}")
    with pytest.raises(UsageError, match="must be HOST=FILE or FILE"):
        read(*NEEDED, f"--registry-ca-file=={one}")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--registry-ca-file", "/no/such.pem"),
        ("--registry-ca-file", "host=/no/such.pem"),
        ("--registry-proxy", "https://u:s3cret@proxy"),
        ("--registry-rate", "-1"),
    ],
)
def test_wrong_registry_flags_are_named_without_passwords(wrong: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=wrong[0]) as caught:
        read(*NEEDED, *wrong)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "pod", "namespace"),
    [
        (["controller"], "", "istio-system"),
        (["controller"], "istio-system", "istio-system"),
        (["controller"], "mesh-blue", "mesh-blue"),
        (["controller", "--service-namespace", "given"], "mesh-blue", "given"),
        # The Pod's namespace means nothing for another cluster.
        (["controller", "--kubeconfig", "f"], "mesh-blue", "istio-system"),
        (NEEDED, "mesh-blue", "istio-system"),
    ],
)
def test_the_service_is_in_the_pods_namespace_unless_a_flag_says_otherwise(
    arguments: list[str], pod: str, namespace: str
) -> None:
    parsed = wasmer.build_parser().parse_args(arguments)
    settings = wasmerflags.settings_from(parsed, environment={}, pod_namespace=lambda: pod)
    assert settings.envoy.service_namespace == namespace
    assert settings.envoy.authority == f"wasmer.{namespace}:8081"
    peers = settings.peers.host
    assert peers == (f"wasmer-peers.{namespace}.svc.cluster.local" if settings.cluster else "")


def test_the_namespace_is_read_from_the_mounted_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "namespace"
    monkeypatch.setattr(wasmerflags, "FILE", file)
    assert wasmerflags.pod_namespace() == ""
    file.write_text("mesh-blue\n")
    assert wasmerflags.pod_namespace() == "mesh-blue"
    assert read("controller").envoy.service_namespace == "mesh-blue"
