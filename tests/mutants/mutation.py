"""All mutants of a module: each is its whole source with one change.

cosmic-ray's operators and ours (operators.py) make the changes. Left out are annotations and the flags of a dataclass, which
change nothing at run time, and changes that leave the code as it was.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider
from parso.tree import NodeOrLeaf

from tests.mutants.operators import OURS

_COSMIC_RAY: Final = (
    # One step over the boundary. A test that distinguishes `<` from `<=` distinguishes it from `>` and `>=`, too.
    *(
        f"ReplaceComparisonOperator_{pair}"
        for pair in (
            "Eq_NotEq",
            "NotEq_Eq",
            "Lt_LtE",
            "LtE_Lt",
            "Gt_GtE",
            "GtE_Gt",
            "Is_IsNot",
            "IsNot_Is",
        )
    ),
    *(
        f"ReplaceBinaryOperator_{pair}"
        for pair in (
            "Add_Sub",
            "Sub_Add",
            "Mul_FloorDiv",
            "Div_Mul",
            "FloorDiv_Mul",
            "Mod_Mul",
            "Pow_Mul",
            "BitOr_BitAnd",
            "BitAnd_BitOr",
            "BitXor_BitOr",
            "LShift_RShift",
            "RShift_LShift",
        )
    ),
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_USub",
    "AddNot",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "NumberReplacer",
    "ZeroIterationForLoop",
)

OPERATORS: Final[dict[str, type[Operator]]] = {
    **{name: OperatorProvider()[name] for name in _COSMIC_RAY},
    **OURS,
}

_FLAGS: Final = frozenset({"frozen", "slots", "gc", "kw_only"})


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one change."""

    module: str
    """Its path below the root."""
    operator: str
    where: str
    """The class and function that hold the change, joined by dots; `<module>` outside of both."""
    line: int
    """The line in the original, for the output; not part of a mutant's identity."""
    before: str
    after: str
    """The changed lines without indentation, joined by a line break."""
    source: str

    @property
    def diff(self) -> str:
        """A description for people."""
        old, new = (text.splitlines() for text in (self.before, self.after))
        return "\n".join([*(f"- {line}" for line in old), *(f"+ {line}" for line in new)])


def mutants_of(source: str, *, module: str) -> Iterator[Mutant]:
    """Every mutant, by operator and then by place."""
    tree = get_ast(source)
    for name, operator_class in OPERATORS.items():
        operator = operator_class()
        # Positions are counted here before a tree is changed, as cosmic-ray counts them.
        places = [node for node in ast_nodes(tree) for _ in operator.mutation_positions(node)]
        for occurrence, node in enumerate(places):
            if _in_annotation(node) or _in_flag(node):
                continue
            mutated = _mutated(source, operator, occurrence)
            before, after, line = _changed_lines(source, mutated)
            if before == after:
                continue
            yield Mutant(module, name, _where(node), line, before, after, mutated)


def mutants_of_file(path: Path, *, root: Path) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    found = mutants_of(path.read_text(), module=path.relative_to(root).as_posix())
    return sorted(found, key=lambda mutant: mutant.line)


def _mutated(source: str, operator: Operator, occurrence: int) -> str:
    """The source with one change. Operators change a tree in place, so each change gets its own tree."""
    tree = get_ast(source)
    seen = 0
    for node in ast_nodes(tree):
        here = len(list(operator.mutation_positions(node)))
        if seen + here > occurrence:
            changed = operator.mutate(node, occurrence - seen)
            if changed is not node:
                siblings = node.parent.children
                siblings[siblings.index(node)] = changed
            return str(tree.get_code())
        seen += here
    raise IndexError(occurrence)


def _in_annotation(node: NodeOrLeaf) -> bool:
    while (parent := node.parent) is not None:
        if parent.type in {"tfpdef", "annassign"} and node is parent.children[1]:
            return True
        if parent.type == "tfpdef" and node is not parent.children[0]:
            return True
        if parent.type == "funcdef" and node is parent.annotation:
            return True
        node = parent
    return False


def _in_flag(node: NodeOrLeaf) -> bool:
    """`frozen=True`, `slots=True`, `gc=False`: they guard or speed up; a correct program behaves the same without them."""
    parent = node.parent
    return (
        parent is not None
        and parent.type == "argument"
        and parent.children[0].get_code().strip() in _FLAGS
    )


def _where(node: NodeOrLeaf) -> str:
    names: list[str] = []
    while (parent := node.parent) is not None:
        if parent.type in {"funcdef", "classdef"} and node is parent.children[-1]:
            names.append(parent.name.value)
        elif node.type in {"funcdef", "classdef"} and not names:
            names.append(node.name.value)
        node = parent
    return ".".join(reversed(names)) or "<module>"


def _changed_lines(old: str, new: str) -> tuple[str, str, int]:
    """The changed lines of both without indentation, and the number of the first one."""
    was, now = old.splitlines(), new.splitlines()
    changes = [
        change
        for change in difflib.SequenceMatcher(None, was, now, autojunk=False).get_opcodes()
        if change[0] != "equal"
    ]
    if not changes:
        return "", "", 0
    _, first, _, start, _ = changes[0]
    _, _, last, _, end = changes[-1]
    texts = (
        "\n".join(line.strip() for line in lines) for lines in (was[first:last], now[start:end])
    )
    return next(texts), next(texts), first + 1
