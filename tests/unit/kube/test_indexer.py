"""The store and its indices."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from autowasm.kube.indexer import Delta, Indexer
from autowasm.kube.resources import ObjectKey

A, B, C = (ObjectKey("ns", name) for name in "abc")
KEYS = st.sampled_from([A, B, C, ObjectKey("other", "a")])
WORDS = st.text("xyz", max_size=3)


def letters(word: str) -> Iterable[str]:
    return word


def indexed() -> Indexer[str]:
    return Indexer({"letter": letters, "length": lambda word: (len(word),)})


def test_tells_what_changed() -> None:
    store: Indexer[str] = Indexer()
    assert store.upsert(A, "x") == Delta("added", A, None, "x")
    assert store.upsert(A, "y") == Delta("updated", A, "x", "y")
    assert store.upsert(A, "y") is None
    assert store.delete(A) == Delta("deleted", A, "y", None)
    assert store.delete(A) is None
    assert len(store) == 0


def test_replace_tells_what_vanished_with_its_last_state() -> None:
    store: Indexer[str] = Indexer()
    for key, word in ((A, "x"), (B, "y")):
        store.upsert(key, word)
    deltas = list(store.replace({B: "y", C: "z"}))
    assert deltas == [Delta("deleted", A, "x", None), Delta("added", C, None, "z")]
    assert (A in store, store.get(B), store.get(C)) == (False, "y", "z")


def test_finds_objects_by_any_of_their_values() -> None:
    store = indexed()
    store.upsert(A, "xy")
    store.upsert(B, "yz")
    assert set(store.index_keys("letter", "y")) == {A, B}
    assert store.by_index("letter", "x") == ["xy"]
    assert store.by_index("letter", "?") == []
    store.upsert(A, "z")
    assert set(store.index_values("letter")) == {"y", "z"}


operations = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), KEYS, WORDS),
        st.tuples(st.just("delete"), KEYS, st.just("")),
        st.tuples(st.just("replace"), st.dictionaries(KEYS, WORDS), st.just("")),
    )
)


@given(operations)
def test_indices_always_say_what_the_store_holds(steps: list[tuple[str, object, str]]) -> None:
    store, model = indexed(), dict[ObjectKey, str]()
    for name, argument, word in steps:
        if isinstance(argument, dict):
            list(store.replace(argument))
            model = dict(argument)
        elif isinstance(argument, ObjectKey) and name == "upsert":
            store.upsert(argument, word)
            model[argument] = word
        elif isinstance(argument, ObjectKey):
            store.delete(argument)
            model.pop(argument, None)
    assert {key: store.get(key) for key in store} == model
    assert set(store.index_values("letter")) == {
        letter for word in model.values() for letter in word
    }
    for letter in "xyz":
        assert set(store.index_keys("letter", letter)) == {
            key for key, word in model.items() if letter in word
        }
