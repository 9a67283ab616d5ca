from collections import OrderedDict

from autowasm.artifacts.memory import REMEMBERED_MOST, keep


def test_memory_forgets_what_was_kept_longest_ago() -> None:
    memory: OrderedDict[int, str] = OrderedDict()
    for number in range(REMEMBERED_MOST):
        keep(memory, number, "first")
    keep(memory, 0, "again")
    keep(memory, REMEMBERED_MOST, "new")
    assert len(memory) == REMEMBERED_MOST
    assert 1 not in memory
    assert memory[0] == "again"
    assert memory[REMEMBERED_MOST] == "new"
