"""AddressPolicy: what is open, closed, and never open."""

import pytest

from autowasm.errors import AddressBlocked, UsageError
from autowasm.net.policy import AddressPolicy, Purpose

NEVER = [
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "fd20:ce::254",
    "ff02::1",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::169.254.169.254",
    "2002:a9fe:a9fe::1",
    "::ffff:0:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::169.254.169.254",
    "64:ff9b:1:a9fe:a9:fe00::",
    "2001:0:a9fe:a9fe::1",
    "2001:0:808:808:0:0:5601:5601",
    "2001:db8::5efe:169.254.169.254",
    "2001:db8::200:5efe:a9fe:a9fe",
]
PRIVATE = [
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "198.18.0.1",
    "fd12:3456::1",
    "fec0::1",
    "::ffff:10.0.0.1",
    "2002:a00:1::",
    "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1",
]
LOOPBACK = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "::7f00:1", "64:ff9b::7f00:1"]
PUBLIC = ["8.8.8.8", "172.32.0.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


def check(policy: AddressPolicy, address: str, purpose: Purpose) -> None:
    policy.check(address, purpose=purpose, host="modules.example")


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("address", NEVER)
def test_never_reaches_metadata_link_local_or_multicast_in_any_notation(
    address: str, purpose: Purpose
) -> None:
    everything_allowed = AddressPolicy(allow=["0.0.0.0/0", "::/0"])
    with pytest.raises(AddressBlocked, match="never allowed"):
        check(everything_allowed, address, purpose)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_is_open_for_registries_and_closed_for_objects(address: str) -> None:
    check(AddressPolicy(), address, Purpose.REGISTRY)
    with pytest.raises(AddressBlocked, match="--allow-cidr") as caught:
        check(AddressPolicy(), address, Purpose.OBJECT)
    assert "modules.example" in str(caught.value)
    assert caught.value.reason == "AddressNotAllowed"


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("address", LOOPBACK)
def test_loopback_is_closed_until_allowed(address: str, purpose: Purpose) -> None:
    with pytest.raises(AddressBlocked, match=r"loopback.*--allow-cidr"):
        check(AddressPolicy(), address, purpose)
    check(AddressPolicy(allow=["127.0.0.0/8", "::1"]), address, purpose)


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("address", PUBLIC)
def test_public_is_open(address: str, purpose: Purpose) -> None:
    check(AddressPolicy(), address, purpose)


def test_message_names_the_range_to_allow() -> None:
    with pytest.raises(AddressBlocked, match=r"--allow-cidr 10\.0\.0\.0/8"):
        check(AddressPolicy(), "10.2.3.4", Purpose.OBJECT)


def test_message_names_what_an_address_embeds() -> None:
    with pytest.raises(AddressBlocked, match=r"embeds 169\.254\.169\.254"):
        check(AddressPolicy(), "64:ff9b::a9fe:a9fe", Purpose.REGISTRY)


def test_allow_opens_only_its_own_range() -> None:
    policy = AddressPolicy(allow=["10.1.0.0/16"])
    check(policy, "10.1.2.3", Purpose.OBJECT)
    with pytest.raises(AddressBlocked):
        check(policy, "10.2.0.1", Purpose.OBJECT)


def test_allowing_an_outer_range_does_not_open_what_is_embedded() -> None:
    with pytest.raises(AddressBlocked):
        check(AddressPolicy(allow=["64:ff9b::/96"]), "64:ff9b::10.0.0.1", Purpose.OBJECT)


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "8.8.8.8", "2002:808:808::"])
def test_deny_wins_over_allow(address: str) -> None:
    policy = AddressPolicy(allow=["0.0.0.0/0", "::/0"], deny=["10.0.0.0/8", "8.8.8.8/32"])
    with pytest.raises(AddressBlocked, match="--deny-cidr"):
        check(policy, address, Purpose.REGISTRY)


def test_what_is_no_address_is_blocked() -> None:
    with pytest.raises(AddressBlocked):
        check(AddressPolicy(), "localhost", Purpose.REGISTRY)


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "example.com", "10.0.0.0/8/8"])
def test_a_malformed_cidr_names_its_flag(text: str) -> None:
    with pytest.raises(UsageError, match="--allow-cidr"):
        AddressPolicy(allow=[text])
    with pytest.raises(UsageError, match="--deny-cidr"):
        AddressPolicy(deny=[text])
