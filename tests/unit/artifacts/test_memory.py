from collections import OrderedDict

from autowasm.artifacts.memory import MAX_REMEMBERED, keep


def test_memory_forgets_what_was_kept_longest_ago() -> None:
    memory: OrderedDict[int, str] = OrderedDict()
    for number in range(MAX_REMEMBERED):
        keep(memory, number, "first")
    keep(memory, 0, "again")
    keep(memory, MAX_REMEMBERED, "new")
    assert len(memory) == MAX_REMEMBERED
    assert 1 not in memory
    assert memory[0] == "again"
    assert memory[MAX_REMEMBERED] == "new"
