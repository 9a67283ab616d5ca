"""AddressPolicy over all addresses: no notation and no setting allows an address that must stay blocked."""

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autowasm.errors import AddressBlocked
from autowasm.net.addresspolicy import AddressPolicy, Purpose

NEVER = [
    ipaddress.IPv4Network(text)
    for text in ("169.254.0.0/16", "0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "100.100.100.200/32")
]
never = st.one_of(*(st.ip_addresses(network=network) for network in NEVER))
purposes = st.sampled_from(Purpose)
EVERYTHING_OPEN = (
    AddressPolicy(allow=["0.0.0.0/0", "::/0"]),
    AddressPolicy(hosts=["host.example"]),
    AddressPolicy(inside=True),
)


def embedded_forms(inner: ipaddress.IPv4Address) -> list[str]:
    number = int(inner)
    high, low = number >> 16, number & 0xFFFF
    octets = inner.packed
    below_48 = bytes([0, 0x64, 0xFF, 0x9B, 0, 1, octets[0], octets[1], 0, octets[2], octets[3]])
    return [
        str(inner),
        f"::ffff:{inner}",
        f"::{inner}",
        f"2002:{high:x}:{low:x}::1",
        f"64:ff9b::{inner}",
        f"64:ff9b:1::{inner}",
        str(ipaddress.IPv6Address(below_48.ljust(16, b"\0"))),
        f"2001:0:{high:x}:{low:x}::",
        f"2001:0:808:808:0:0:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}",
        f"2001:470::5efe:{inner}",
    ]


def is_allowed(policy: AddressPolicy, address: str, purpose: Purpose) -> bool:
    try:
        policy.check(address, purpose=purpose, host="host.example", port=443)
    except AddressBlocked:
        return False
    return True


@given(inner=never, form=st.integers(0, 9), purpose=purposes)
def test_never_allowed_in_any_notation_under_any_setting(
    inner: ipaddress.IPv4Address, form: int, purpose: Purpose
) -> None:
    # ::0.0.0.1 is ::1 and ::0.0.0.0 is ::, which have rules of their own
    assume(form != 2 or int(inner) > 1)
    for policy in EVERYTHING_OPEN:
        assert not is_allowed(policy, embedded_forms(inner)[form], purpose)


@given(address=st.ip_addresses(), purpose=purposes)
def test_deny_everything_denies_everything(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, purpose: Purpose
) -> None:
    denied = ["0.0.0.0/0", "::/0"]
    for policy in (
        AddressPolicy(allow=denied, deny=denied),
        AddressPolicy(hosts=["host.example"], inside=True, deny=denied),
    ):
        assert not is_allowed(policy, str(address), purpose)


@given(address=st.ip_addresses())
def test_registries_and_objects_reach_the_same_addresses(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    policy = AddressPolicy()
    assert is_allowed(policy, str(address), Purpose.OBJECT) == is_allowed(
        policy, str(address), Purpose.REGISTRY
    )


@given(address=st.ip_addresses(), purpose=purposes)
def test_all_policies_that_open_everything_are_equivalent(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, purpose: Purpose
) -> None:
    assert len({is_allowed(policy, str(address), purpose) for policy in EVERYTHING_OPEN}) == 1


@given(address=st.ip_addresses(), other=st.ip_addresses(), port=st.integers(1, 65535))
def test_refusal_message_is_the_same_for_every_address_of_a_range(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    other: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
) -> None:
    """So a status does not reveal the address of an internal name."""
    messages = []
    for one in (address, other):
        try:
            AddressPolicy().check(str(one), purpose=Purpose.OBJECT, host="host.example", port=port)
        except AddressBlocked as error:
            messages.append(str(error))
    ranges = {message.partition("(in ")[2].partition(")")[0] for message in messages}
    assert len(ranges) == len(set(messages))


@given(inner=st.ip_addresses(v=4), form=st.integers(0, 9), purpose=purposes)
def test_a_notation_opens_nothing_that_plain_does_not(
    inner: ipaddress.IPv4Address, form: int, purpose: Purpose
) -> None:
    assume(form != 2 or int(inner) > 1)
    policy = AddressPolicy()
    if is_allowed(policy, embedded_forms(inner)[form], purpose):
        assert is_allowed(policy, str(inner), purpose)


@given(address=st.ip_addresses(v=4), purpose=purposes)
def test_sources_reach_only_addresses_that_python_calls_global(
    address: ipaddress.IPv4Address, purpose: Purpose
) -> None:
    if is_allowed(AddressPolicy(), str(address), purpose):
        # 192.88.99.0/24 (6to4 relays) and 192.0.0.9 and its like differ between Python versions
        assert address.is_global or address in ipaddress.ip_network("192.88.99.0/24")


@given(text=st.text(max_size=50))
def test_any_text_as_address_is_blocked_without_another_error(text: str) -> None:
    with pytest.raises(AddressBlocked):
        AddressPolicy(deny=["0.0.0.0/0", "::/0"]).check(
            text, purpose=Purpose.REGISTRY, host="host.example", port=443
        )
