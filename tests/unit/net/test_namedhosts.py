"""A host of a spec is counted under a name that the operator wrote, or as `other`."""

from hypothesis import given
from hypothesis import strategies as st

from autowasm.net.hosts import NAMED, OTHER, PUBLIC, NamedHosts


def named(*entries: str) -> NamedHosts:
    hosts = NamedHosts()
    hosts.set(entries)
    return hosts


def test_hosts_of_the_operator_have_a_name_each() -> None:
    hosts = named("registry.example.com:5000", "old.example.com")
    assert hosts.name_of("registry.example.com:5000") == "registry.example.com:5000"
    assert hosts.name_of("OLD.example.com:8443") == "old.example.com"
    assert hosts.name_of("registry.example.com") == OTHER


def test_the_most_exact_entry_names_a_host() -> None:
    hosts = named("*", "*.com", "*.example.com", "a.example.com", "a.example.com:5000")
    assert hosts.name_of("a.example.com:5000") == "a.example.com:5000"
    assert hosts.name_of("a.example.com") == "a.example.com"
    assert hosts.name_of("b.example.com") == "*.example.com"
    assert hosts.name_of("example.org") == OTHER, "`*` would name every host of a tenant"


def test_public_registries_are_named_without_any_setting() -> None:
    hosts = NamedHosts()
    assert hosts.name_of("registry-1.docker.io") == "*.docker.io"
    assert hosts.name_of("team.pkg.dev") == "*.pkg.dev", "a subdomain is the tenant's"
    assert hosts.name_of("ghcr.io") == "ghcr.io"


def test_the_last_list_counts() -> None:
    hosts = named("a.example")
    hosts.set(["b.example"])
    assert (hosts.name_of("a.example"), hosts.name_of("b.example")) == (OTHER, "b.example")


@given(
    st.lists(st.text("abc.*:123", min_size=1), max_size=2 * NAMED),
    st.text(min_size=1, max_size=300),
)
def test_no_host_makes_up_a_name(entries: list[str], host: str) -> None:
    hosts = named(*entries)
    assert hosts.name_of(host) in {*entries, *PUBLIC, OTHER}


def test_names_are_bounded() -> None:
    hosts = named(*(f"h{number}.example" for number in range(3 * NAMED)))
    names = {hosts.name_of(f"h{number}.example") for number in range(3 * NAMED)}
    assert len(names) == NAMED + 1
