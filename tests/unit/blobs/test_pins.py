from autowasm.blobs.pins import Pins
from tests.fakes.autowasms import digest

A, B = digest("a"), digest("b")


def test_a_digest_is_published_while_any_owner_pins_it() -> None:
    pins = Pins()
    pins.set("x/1", namespace="x", published=[A, B])
    pins.set("x/2", namespace="x", published=[A])
    pins.set("y/1", namespace="y", published=[A], kept=[B])
    assert set(pins.published_by("x")) == {A, B}
    assert set(pins.published_by("y")) == {A}
    pins.set("x/1", namespace="x", published=[])
    assert pins.is_published_by("y", A)
    assert not pins.is_published(B)
    assert pins.is_kept(B)
    assert list(pins.published_by("x")) == [A]
    pins.remove("x/2")
    assert pins.is_published_by("y", A)
    assert not pins.is_published_by("x", A)
    for owner in ("y/1", "y/1", "x/1", "never there"):
        pins.remove(owner)
    assert not pins.is_published(A)
    assert not pins.is_kept(B)
    assert not pins.published_by("x")
    assert not pins.published_by("y")


def test_pins_are_complete_once_every_expected_owner_has_set_its_own() -> None:
    pins = Pins()
    pins.set("x/early", namespace="x", published=[A])
    assert not pins.complete  # `expect` was not called yet
    pins.expect(["x/early", "x/1", "x/2"])
    pins.set("x/1", namespace="x", published=[])
    pins.set("x/other", namespace="x", published=[])
    assert not pins.complete
    pins.remove("x/2")  # deleted meanwhile
    assert pins.complete


def test_complete_at_once_where_there_is_nothing() -> None:
    pins = Pins()
    pins.expect([])
    assert pins.complete
