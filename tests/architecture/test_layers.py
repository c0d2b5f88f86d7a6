"""Imports point down the layers, and nothing heavy stands on a light path: both read from the source, not hoped."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lavis_ext"
LAYERS = [
    ["errors", "types", "names", "wording"],
    ["registry", "yamlio", "typed", "files"],
    ["schema"],
    ["config"],
    ["cards", "fetch", "readers"],
    ["imagelists", "import_args"],
    ["check", "doctor", "prepare", "processors", "metrics", "demo"],
    ["collate", "objectives", "features"],
    ["builders", "models"],
    ["mixture", "tasks", "browse"],
    ["runner"],
    ["adapters"],
    ["cli"],
    ["__main__", "__init__"],
]
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "transformers", "accelerate", "img2dataset", "webdataset", "tensorboard", "pandas", "scipy"}
LIGHT = [
    "errors",
    "schema",
    "registry",
    "names",
    "yamlio",
    "typed",
    "config",
    "cards",
    "check",
    "fetch",
    "prepare",
    "demo",
    "doctor",
    "import_args",
    "cli",
]
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """`fetch` for `lavis_ext/fetch/engine.py`, `cards` for `lavis_ext/cards.py`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, top_only: bool = False) -> Iterator[str]:
    """Modules that a file imports; those for type checkers only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "lavis_ext":
                yield from (f"lavis_ext.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_imports_point_down(path: Path) -> None:
    here = part_of(path)
    assert here in LAYER_OF, f"{path}: give it a layer in docs/architecture.md and here"
    for module in imports(path):
        parts = module.split(".")
        assert parts[0] not in ("benchmarks", "studies", "tests"), f"{path}: {module} is not in the wheel"
        if parts[0] != "lavis_ext" or len(parts) < 2 or parts[1] not in LAYER_OF or parts[1] == here:
            continue
        assert LAYER_OF[parts[1]] < LAYER_OF[here], f"{path}: {here} may not import {module}"


@pytest.mark.parametrize("name", LIGHT)
def test_light_parts_import_nothing_heavy_at_the_top(name: str) -> None:
    files = [f for f in FILES if part_of(f) == name]
    for path in files:
        heavy = {m.split(".")[0] for m in imports(path, top_only=True)} & HEAVY
        assert not heavy, f"{path} imports {heavy} at its top"


def test_only_fetch_opens_urls() -> None:
    clients = {"urllib.request", "urllib3", "requests", "httpx", "aiohttp", "http.client", "obstore"}
    for path in FILES:
        if part_of(path) != "fetch":
            assert not clients & set(imports(path)), f"{path} opens URLs; only lavis_ext/fetch does"


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[module] = {m for m in imports(path, top_only=True) if m.startswith("lavis_ext") and m != module}
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        assert module not in trail, f"cycle: {' → '.join([*trail, module])}"
        if module in done or module not in graph:
            return
        for target in graph[module]:
            visit(target, [*trail, module])
        done.add(module)

    for module in graph:
        visit(module, [])
