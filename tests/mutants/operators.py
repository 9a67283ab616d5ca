"""Mutation operators that cosmic-ray lacks. Each makes one change that a reviewer could miss.

They follow the interface of `cosmic_ray.operators.operator.Operator`: `mutation_positions` yields one position per possible
change of a node, `mutate` makes one of them. Trees are parso's.
"""

from collections.abc import Iterator
from typing import ClassVar, Final

from cosmic_ray.operators.operator import Example, Operator
from parso.python.tree import Keyword, Name, String
from parso.tree import NodeOrLeaf

_Position = tuple[tuple[int, int], tuple[int, int]]


def _where(node: NodeOrLeaf) -> _Position:
    return node.start_pos, node.end_pos


def _prefix(node: NodeOrLeaf) -> str:
    return node.get_first_leaf().prefix


def _is_call(node: NodeOrLeaf) -> bool:
    """`f(x)`, `a.f(x)`, `await f(x)`."""
    last = node.children[-1] if node.type in {"atom_expr", "power"} else None
    return last is not None and last.type == "trailer" and last.children[0].value == "("


def _is_effect(node: NodeOrLeaf) -> bool:
    """A statement without a value, only with side effects."""
    if node.type == "expr_stmt":
        target, operation = node.children[0], node.children[1]
        if operation.type == "annassign":
            return False
        return operation.get_code().strip() != "=" or target.type in {"atom_expr", "power"}
    return (
        _is_call(node)
        or node.type in {"raise_stmt", "del_stmt"}
        or node.get_code().strip() == "raise"
    )


class StatementRemover(Operator):
    """Replaces a call, a `raise`, a `del`, an augmented assignment or an assignment to an attribute or item with `pass`."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[_Position]:
        if node.type == "simple_stmt" and _is_effect(node.children[0]):
            yield _where(node.children[0])

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        old = node.children[0]
        node.children[0] = Keyword("pass", old.start_pos, prefix=_prefix(old))
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (
            Example("f(x)\n", "pass\n"),
            Example("async def g():\n    await f(x)\n", "async def g():\n    pass\n"),
            Example("if x:\n    raise E(x)\n", "if x:\n    pass\n"),
            Example("self.x = 1\n", "pass\n"),
            Example("x += 1\n", "pass\n"),
            Example("del x[1]\n", "pass\n"),
        )


class HandlerRemover(Operator):
    """Replaces one class of an `except` clause with one that is never raised."""

    NEVER = "StopAsyncIteration"

    @staticmethod
    def _classes(node: NodeOrLeaf) -> list[NodeOrLeaf]:
        named = node.children[1]
        if named.type == "atom":
            inner = named.children[1]
            return inner.children[::2] if inner.type == "testlist_comp" else [inner]
        return [named]

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[_Position]:
        if node.type == "except_clause":
            yield from map(_where, self._classes(node))

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        old = self._classes(node)[index]
        holder = old.parent
        holder.children[holder.children.index(old)] = Name(
            self.NEVER, old.start_pos, prefix=_prefix(old)
        )
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        head = "try:\n    f()\nexcept "
        return (
            Example(f"{head}OSError:\n    pass\n", f"{head}{cls.NEVER}:\n    pass\n"),
            Example(
                f"{head}(A, b.C) as e:\n    pass\n",
                f"{head}(A, {cls.NEVER}) as e:\n    pass\n",
                occurrence=1,
            ),
        )


class MembershipReplacer(Operator):
    """Swaps `in` and `not in`."""

    @staticmethod
    def _operators(node: NodeOrLeaf) -> list[int]:
        if node.type != "comparison":
            return []
        return [
            index
            for index, child in enumerate(node.children)
            if index % 2 and " ".join(child.get_code().split()) in {"in", "not in"}
        ]

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[_Position]:
        for index in self._operators(node):
            yield _where(node.children[index])

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        at = self._operators(node)[index]
        word = "not in" if node.children[at].get_code().strip() == "in" else "in"
        node.children[at] = Name(word, node.children[at].start_pos, prefix=" ")
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return Example("x in y\n", "x not in y\n"), Example("x not in y\n", "x in y\n")


class ConditionRemover(Operator):
    """Negates the condition of a comprehension."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[_Position]:
        if node.type == "comp_if":
            yield _where(node.children[1])

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        condition = node.children[1]
        code = condition.get_code(include_prefix=False)
        node.children[1] = Name(f"not ({code})", condition.start_pos, prefix=" ")
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("[x for x in y if x > 1]\n", "[x for x in y if not (x > 1)]\n"),)


class BuiltinReplacer(Operator):
    """Swaps `min` and `max`, `any` and `all`."""

    OTHER: ClassVar = {"min": "max", "max": "min", "any": "all", "all": "any"}

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[_Position]:
        if (
            _is_call(node)
            and len(node.children) == 2
            and node.children[0].get_code().strip() in self.OTHER
        ):
            yield _where(node.children[0])

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        name = node.children[0]
        node.children[0] = Name(self.OTHER[name.value], name.start_pos, prefix=name.prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return Example("x = min(y)\n", "x = max(y)\n"), Example("x = any(y)\n", "x = all(y)\n")


class StringReplacer(Operator):
    """Changes a string that is a name, a key or a media type. Text for people has spaces and stays."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[_Position]:
        if (
            isinstance(node, String)
            and not any(character.isspace() for character in node.value)
            and '"""' not in node.value
            and node.parent.type not in {"simple_stmt", "strings"}
        ):
            yield _where(node)

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        opening = len(node.string_prefix) + 1
        value = f"{node.value[:opening]}X{node.value[opening:]}"
        return String(value, node.start_pos, prefix=node.prefix)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return Example('x["key"]\n', 'x["Xkey"]\n'), Example('x = b""\n', 'x = b"X"\n')


OURS: Final[dict[str, type[Operator]]] = {
    operator.__name__: operator
    for operator in (
        StatementRemover,
        HandlerRemover,
        MembershipReplacer,
        ConditionRemover,
        BuiltinReplacer,
        StringReplacer,
    )
}
