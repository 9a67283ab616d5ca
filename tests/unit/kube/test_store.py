"""The objects of the store, and its deltas."""

from hypothesis import given
from hypothesis import strategies as st

from autowasm.kube.informer import Delta, ObjectStore
from autowasm.kube.resources import ObjectKey

A, B, C = (ObjectKey("ns", name) for name in "abc")
KEYS = st.sampled_from([A, B, C, ObjectKey("other", "a")])
WORDS = st.text("xyz", max_size=3)


def test_upsert_and_delete_return_the_change() -> None:
    store: ObjectStore[str] = ObjectStore()
    assert store.upsert(A, "x") == Delta(A, None, "x")
    assert store.upsert(A, "y") == Delta(A, "x", "y")
    assert store.upsert(A, "y") is None
    assert store.delete(A) == Delta(A, "y", None)
    assert store.delete(A) is None
    assert len(store) == 0


def test_replace_returns_deleted_objects_with_their_last_state() -> None:
    store: ObjectStore[str] = ObjectStore()
    for key, word in ((A, "x"), (B, "y")):
        store.upsert(key, word)
    deltas = list(store.replace({B: "y", C: "z"}))
    assert deltas == [Delta(A, "x", None), Delta(C, None, "z")]
    assert (A in store, store.get(B), store.get(C)) == (False, "y", "z")


operations = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), KEYS, WORDS),
        st.tuples(st.just("delete"), KEYS, st.just("")),
        st.tuples(st.just("replace"), st.dictionaries(KEYS, WORDS), st.just("")),
    )
)


@given(operations)
def test_store_equals_the_model_and_reports_each_change_once(
    steps: list[tuple[str, object, str]],
) -> None:
    store: ObjectStore[str] = ObjectStore()
    model: dict[ObjectKey, str] = {}
    replayed: dict[ObjectKey, str] = {}
    for name, argument, word in steps:
        deltas: list[Delta[str] | None] = []
        if isinstance(argument, dict):
            deltas += store.replace(argument)
            model = dict(argument)
        elif isinstance(argument, ObjectKey) and name == "upsert":
            deltas.append(store.upsert(argument, word))
            model[argument] = word
        elif isinstance(argument, ObjectKey):
            deltas.append(store.delete(argument))
            model.pop(argument, None)
        for delta in deltas:
            if delta is not None:
                assert replayed.get(delta.key) == delta.old != delta.new
                replayed = (
                    {**replayed, delta.key: delta.new}
                    if delta.new is not None
                    else _without(replayed, delta.key)
                )
        assert {key: store.get(key) for key in store} == model == replayed


def _without(words: dict[ObjectKey, str], key: ObjectKey) -> dict[ObjectKey, str]:
    return {each: word for each, word in words.items() if each != key}
