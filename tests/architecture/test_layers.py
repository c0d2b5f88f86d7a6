"""Imports point down the layers, and light modules import nothing heavy: both are read from the source."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lavis_ext"
# A part may import lower parts and its own folder. `oscar` and `distill` are slices: nobody below imports them, the
# registry finds their modules by name; neither imports the other.
LAYERS = [
    ["common"],
    ["fetch", "processors", "metrics", "datasets/readers", "schema"],
    ["prepare"],
    ["datasets", "features"],
    ["models"],
    ["tasks"],
    ["browse"],
    ["runners"],
    ["oscar", "distill"],
    ["adapters", "demo"],
    ["cli"],
    ["__main__", "__init__"],
]
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "transformers", "accelerate", "img2dataset", "webdataset", "tensorboard", "pandas", "scipy"}
LIGHT = ["common", "fetch", "prepare", "demo", "cli"]
LIGHT_FILES = ["oscar/import_args.py", "oscar/import_rules.py", "oscar/import_table.py", "oscar/import_words.py"]
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: str) -> str:
    """`fetch` for `fetch/engine.py`, `datasets/readers` for what lies in it."""
    first, _, rest = path.partition("/")
    return "datasets/readers" if first == "datasets" and rest.startswith("readers") else first.removesuffix(".py")


@cache
def scan(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Modules that a file imports anywhere, and at its top; those for type checkers only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    guarded = {
        id(inner)
        for node in nodes
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    anywhere, top = (
        frozenset(module for node in some if id(node) not in guarded for module in modules(node))
        for some in (nodes, tree.body)
    )
    return anywhere, top


def modules(node: ast.AST) -> Iterable[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        inside = [f"lavis_ext.{alias.name}" for alias in node.names] if node.module == "lavis_ext" else []
        return [node.module, *inside]
    return []


def imports(path: Path, top_only: bool = False) -> frozenset[str]:
    """Modules that a file imports; with `top_only` those whose import runs with the file's."""
    return scan(path)[top_only]


def test_imports_point_down() -> None:
    wrong: list[str] = []
    for path in FILES:
        here = part_of(str(path.relative_to(PACKAGE)))
        assert here in LAYER_OF, f"{path}: give it a layer in docs/architecture.md and here"
        for module in imports(path):
            if module.split(".")[0] in ("benchmarks", "studies", "tests"):
                wrong.append(f"{path}: {module} is not in the wheel")
            target = part_of(module.removeprefix("lavis_ext.").replace(".", "/"))
            if not module.startswith("lavis_ext.") or target not in LAYER_OF or target == here:
                continue
            if LAYER_OF[target] >= LAYER_OF[here]:
                wrong.append(f"{path}: {here} may not import {module}")
    assert wrong == []


LIGHT_PATHS = [f for f in FILES if part_of(str(f.relative_to(PACKAGE))) in LIGHT]
LIGHT_PATHS.remove(PACKAGE / "prepare/urls/parts.py")  # img2dataset's classes: only the worker's process imports it


def test_light_parts_import_nothing_heavy_at_the_top() -> None:
    assert len(LIGHT_PATHS) > 50
    files = [*LIGHT_PATHS, *(PACKAGE / name for name in LIGHT_FILES)]
    heavy = {str(path): {m.split(".")[0] for m in imports(path, top_only=True)} & HEAVY for path in files}
    assert {path: found for path, found in heavy.items() if found} == {}


def test_only_fetch_opens_urls() -> None:
    clients = {"urllib.request", "urllib3", "requests", "httpx", "aiohttp", "http.client", "obstore"}
    for path in FILES:
        if part_of(str(path.relative_to(PACKAGE))) != "fetch":
            assert not clients & imports(path), f"{path} opens URLs; only lavis_ext/fetch does"


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


def test_every_folder_says_what_it_is_for() -> None:
    faces = [f for f in FILES if f.name == "__init__.py"]
    assert [str(f) for f in faces if not ast.get_docstring(ast.parse(f.read_text("utf-8")))] == []
