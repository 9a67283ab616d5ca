"""Options that `wasmer` and `wasmc` have in common, as `wasmc` reads them."""

from pathlib import Path

import pytest

from autowasm.cli import clusters, wasmc, wasmer
from autowasm.cli.options import offered
from autowasm.envoyversion import EnvoyVersion
from autowasm.settings import EnvoyFetch, Settings


def test_the_service_of_wasmer_has_the_same_defaults_in_both_programs() -> None:
    arguments = wasmc.build_parser().parse_args(["explain", "x"])
    assert clusters.envoy(arguments) == EnvoyFetch()


@pytest.mark.parametrize("command", [["explain", "x"], ["plan", "-f", "x"], ["inspect", "x"]])
def test_without_flags_a_module_is_checked_as_in_wasmer(command: list[str]) -> None:
    found = offered(wasmc.build_parser().parse_args(command))
    default = Settings(cache_dir=Path("c"))
    assert found == {"allow_imports": default.allow_imports, "envoy": default.oldest_envoy}


def test_a_repeatable_flag_also_takes_commas_and_the_default_stays_empty() -> None:
    given = ["--allow-import", "a.b, c.d", "--allow-import", "e.f,", "--envoy-version", "v1.40.2"]
    parser = wasmc.build_parser()
    found = offered(parser.parse_args(["inspect", "x", *given]))
    assert found == {
        "allow_imports": frozenset({"a.b", "c.d", "e.f"}),
        "envoy": EnvoyVersion(1, 40),
    }
    assert offered(parser.parse_args(["inspect", "x"]))["allow_imports"] == frozenset()


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--envoy-version", "1.9", "argument --envoy-version: Envoy 1.36 is the oldest"),
        ("--service-port", "x", "argument --service-port: must be a whole number, not 'x'"),
        ("--service-port", "65536", "argument --service-port: must be from 1 to 65535"),
    ],
)
def test_a_wrong_value_is_a_usage_error(
    flag: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        wasmc.build_parser().parse_args(["explain", "x", flag, value])
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_the_check_before_uninstalling_takes_a_kubeconfig() -> None:
    parser = wasmer.build_parser()
    assert parser.parse_args(["check-uninstall"]).kubeconfig is None
    found = parser.parse_args(["check-uninstall", "--kubeconfig", "k"]).kubeconfig
    assert (found.name, found.exists()) == ("k", False)
