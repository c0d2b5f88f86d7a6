"""Style figures of a package from its source: length, branches, nesting, documentation, hints, repetition."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case)
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
RUN = 6
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def body_of(function: Function) -> list[ast.stmt]:
    """The statements without the docstring."""
    first = function.body[0]
    documented = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return function.body[1:] if documented else function.body


def length(function: Function) -> int:
    """Source lines of signature and body; decorators and docstring left out."""
    body = body_of(function)
    signature = function.body[0].lineno - function.lineno
    return max(signature, 1) + (max(s.end_lineno or 0 for s in body) - body[0].lineno + 1 if body else 0)


def branches(function: Function) -> int:
    """Places where the path forks."""
    count = sum(isinstance(node, BRANCHES) for node in ast.walk(function))
    count += sum(len(node.values) - 1 for node in ast.walk(function) if isinstance(node, ast.BoolOp))
    return count + sum(len(node.ifs) for node in ast.walk(function) if isinstance(node, ast.comprehension))


def nesting(node: ast.AST) -> int:
    """The deepest block inside a function; `elif` does not count as deeper."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        deepest = max(deepest, nesting(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def quantile(values: list[int], share: float) -> int:
    """The value below which `share` of all lie."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else 0


def documented_share(trees: list[ast.Module]) -> float:
    """Share of public functions, methods and classes with a docstring."""
    flags = []
    for tree in trees:
        scopes: list[ast.Module | ast.ClassDef] = [
            tree,
            *(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"),
        ]
        for scope in scopes:
            public = (n for n in scope.body if isinstance(n, (*FUNCTIONS, ast.ClassDef)) and n.name[0] != "_")
            flags += [ast.get_docstring(n) is not None for n in public]
    return sum(flags) / max(len(flags), 1)


def hinted_share(trees: list[ast.Module]) -> float:
    """Share of parameters and returns with a type."""
    flags: list[bool] = []
    for function in (f for tree in trees for f in functions(tree)):
        arguments = function.args
        slots = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        slots += [a for a in (arguments.vararg, arguments.kwarg) if a]
        flags += [a.annotation is not None for a in slots if a.arg not in ("self", "cls")]
        flags.append(function.returns is not None)
    return sum(flags) / max(len(flags), 1)


def repeated_share(sources: list[str]) -> float:
    """Share of code lines inside a run of six or more that stands elsewhere in the package too."""
    files = [[line for raw in source.splitlines() if (line := raw.strip()) and counts(line)] for source in sources]
    windows = Counter(tuple(lines[i : i + RUN]) for lines in files for i in range(len(lines) - RUN + 1))
    repeated = 0
    for lines in files:
        marked: set[int] = set()
        for i in range(len(lines) - RUN + 1):
            if windows[tuple(lines[i : i + RUN])] > 1:
                marked.update(range(i, i + RUN))
        repeated += len(marked)
    return repeated / max(sum(map(len, files)), 1)


def counts(line: str) -> bool:
    """Imports, comments and lone punctuation are not repetition."""
    return not line.startswith(("import ", "from ", "#")) and any(c.isalnum() for c in line)


def read(package: Path) -> tuple[list[Path], list[str], list[ast.Module]]:
    """Files of a package, their sources and their syntax trees."""
    files = sorted(package.rglob("*.py"))
    sources = [f.read_text(encoding="utf-8") for f in files]
    return files, sources, [ast.parse(s) for s in sources]
