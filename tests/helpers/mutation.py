"""Small faults to put into a source file, one at a time, each as a change of its text.

What is left alone: annotations, decorators, docstrings and other text (a message's wording is no
behaviour), asserts and `strict=`, and what only a type checker runs.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<=", ">"),
    ast.LtE: ("<", ">="),
    ast.Gt: (">=", "<"),
    ast.GtE: (">", "<="),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
}
ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum"} | {
    "maximum": "minimum", "argmax": "argmin", "sum": "mean", "exp": "abs", "abs": "exp",
}  # fmt: skip
IGNORED_CALLS = ("warn", "info", "debug", "warning", "Meta", "at_least", "release_memory")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: the text from ``start`` to ``end`` of a file becomes ``text``."""

    path: str  # relative to the project
    line: int
    start: int
    end: int
    text: str
    was: str

    @property
    def name(self) -> str:
        """What to know a mutant by, in records."""
        return f"{self.path}:{self.line}:{self.start}: {self.was!r} -> {self.text!r}"

    def apply(self, source: bytes) -> bytes:
        """The file with the fault in it."""
        return source[: self.start] + self.text.encode() + source[self.end :]


def mutants_of(root: Path, path: str) -> list[Mutant]:
    """All mutants of a file that still compile."""
    source = (root / path).read_bytes()
    starts = [0]
    for row in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(row))

    def span(node: ast.AST) -> tuple[int, int]:
        at: ast.expr = node  # type: ignore[assignment]
        return (
            starts[at.lineno - 1] + at.col_offset,
            starts[(at.end_lineno or 0) - 1] + (at.end_col_offset or 0),
        )

    found = {}
    for line, start, end, text in _Finder(source, span).run():
        mutant = Mutant(path, line, start, end, text, source[start:end].decode())
        try:
            compile(mutant.apply(source), path, "exec")
        except SyntaxError:
            continue
        found[mutant.name] = mutant
    return list(found.values())


Change = tuple[int, int, int, str]  # line, start, end, text


class _Finder:
    """Walks a file's tree."""

    def __init__(self, source: bytes, span: Callable[[ast.AST], tuple[int, int]]) -> None:
        self.source, self.span = source, span

    def run(self) -> Iterator[Change]:
        yield from self._children(ast.parse(self.source))

    def _children(self, node: ast.AST) -> Iterator[Change]:
        skipped: set[int] = set()
        for name in ("annotation", "returns", "decorator_list", "type_comment"):
            value = getattr(node, name, None)
            skipped.update(id(v) for v in (value if isinstance(value, list) else [value]))
        for child in ast.iter_child_nodes(node):
            if id(child) not in skipped and not self._is_left_alone(child):
                yield from self._changes(child)
                yield from self._children(child)

    def _is_left_alone(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
            return True
        if isinstance(node, ast.keyword) and node.arg in ("strict", "maxsize", "encoding"):
            return True
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return True
        if isinstance(node, ast.Assign) and "Annotated[" in ast.unparse(node.value):
            return True
        return isinstance(node, ast.Call) and _called(node) in IGNORED_CALLS

    def _text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def _changes(self, node: ast.AST) -> Iterator[Change]:
        """The mutants of one node."""
        for method in (self._operators, self._values, self._calls, self._statements):
            for start, end, text in method(node):
                yield self.source.count(b"\n", 0, start) + 1, start, end, text

    def _between(self, left: ast.AST, right: ast.AST, text: str) -> tuple[int, int, str]:
        """Replaces the operator between two nodes, with the brackets around it kept."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = self.source[start:end].decode()
        core = gap.strip(" \n\t()\\")
        at = gap.find(core)
        begin = start + len(gap[:at].encode())
        return begin, begin + len(core.encode()), text

    def _operators(self, node: ast.AST) -> Iterator[tuple[int, int, str]]:
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for i, op in enumerate(node.ops):
                for text in COMPARISONS.get(type(op), ()):
                    yield self._between(operands[i], operands[i + 1], text)
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            if not isinstance(node.left, ast.Constant) or not isinstance(node.left.value, str):
                yield self._between(node.left, node.right, ARITHMETIC[type(node.op)])
                if isinstance(node.op, ast.Add | ast.Sub | ast.Mult):  # a term forgotten
                    yield *self.span(node), f"({self._text(node.left)})"
        elif isinstance(node, ast.BoolOp):
            swapped = "or" if isinstance(node.op, ast.And) else "and"
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield self._between(left, right, swapped)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            start, end = self.span(node)
            yield start, end, self._text(node.operand)

    def _values(self, node: ast.AST) -> Iterator[tuple[int, int, str]]:
        start, end = self.span(node) if hasattr(node, "lineno") else (0, 0)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, bool):
                yield start, end, str(not node.value)
            elif isinstance(node.value, int):
                yield start, end, str(node.value + 1)
            elif isinstance(node.value, float):
                yield start, end, str(node.value * 2 or 1.0)
        elif isinstance(node, ast.IfExp):
            yield start, end, f"({self._text(node.body)})"
            yield start, end, f"({self._text(node.orelse)})"
        elif isinstance(node, ast.Slice):
            for bound in (node.lower, node.upper):
                if bound is not None:
                    yield *self.span(bound), ""
        elif isinstance(node, ast.comprehension):
            for condition in node.ifs:
                yield *self.span(condition), "True"

    def _calls(self, node: ast.AST) -> Iterator[tuple[int, int, str]]:
        if not isinstance(node, ast.Call):
            return
        name, end = _called(node), self.span(node.func)[1]
        if name in SWAPPED:
            yield end - len(name.encode()), end, SWAPPED[name]
        if name == "sorted" and node.args:
            yield *self.span(node), f"list({self._text(node.args[0])})"
        for keyword in node.keywords:
            if keyword.arg == "reverse":
                yield *self.span(keyword.value), f"not ({self._text(keyword.value)})"

    def _statements(self, node: ast.AST) -> Iterator[tuple[int, int, str]]:
        start, end = self.span(node) if hasattr(node, "lineno") else (0, 0)
        called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if called or isinstance(node, ast.Raise | ast.AugAssign):
            yield start, end, "pass"
        elif isinstance(node, ast.Return) and node.value is not None:
            if not isinstance(node.value, ast.Constant) or node.value.value is not None:
                yield *self.span(node.value), "None"
        elif isinstance(node, ast.Break):
            yield start, end, "continue"
        elif isinstance(node, ast.Continue):
            yield start, end, "break"
        elif isinstance(node, ast.If | ast.While):
            yield *self.span(node.test), f"not ({self._text(node.test)})"
            if isinstance(node, ast.If):
                yield *self.span(node.test), "False"


def _called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
