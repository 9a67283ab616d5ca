from msgspec.structs import replace

from autowasm.controller.pods.podmatching import Pod, PodAddressIndex
from autowasm.kube.resources import ObjectKey

A = Pod("team", "a", b"a" * 16, (), "10.0.0.1", "Running", 1, True)
B = replace(A, name="b", uid=b"b" * 16)
KEY_A, KEY_B = ObjectKey("team", "a"), ObjectKey("team", "b")


def test_address_leads_to_the_pods_that_have_it() -> None:
    addresses = PodAddressIndex()
    for pod in (A, B):
        addresses.pod_changed(None, pod)
    assert addresses.at("10.0.0.1") == {KEY_A, KEY_B}
    addresses.pod_changed(A, None)
    assert addresses.at("10.0.0.1") == {KEY_B}
    addresses.pod_changed(B, None)
    assert addresses.at("10.0.0.1") == frozenset()


def test_pod_that_gets_another_address_leaves_the_first() -> None:
    addresses = PodAddressIndex()
    addresses.pod_changed(None, A)
    moved = replace(A, ips="10.0.0.2")
    addresses.pod_changed(A, moved)
    assert addresses.at("10.0.0.1") == frozenset()
    assert addresses.at("10.0.0.2") == {KEY_A}


def test_pod_that_ended_has_its_address_no_more() -> None:
    addresses = PodAddressIndex()
    addresses.pod_changed(None, A)
    ended = replace(A, phase="Succeeded")
    addresses.pod_changed(A, ended)
    assert addresses.at("10.0.0.1") == frozenset()
    addresses.pod_changed(None, B)
    addresses.pod_changed(ended, None)
    assert addresses.at("10.0.0.1") == {KEY_B}
