"""The style bars of docs/architecture.md §7: what is never to be passed fails here."""

from pathlib import Path

from tests.architecture import style

ROOT = Path(__file__).parents[2]
FILES, SOURCES, TREES = style.read(ROOT / "lavis_ext")
FUNCTIONS = [(path, f) for path, tree in zip(FILES, TREES, strict=True) for f in style.functions(tree)]


def test_functions_are_short() -> None:
    too_long = [f"{path.name}:{f.name} {style.length(f)}" for path, f in FUNCTIONS if style.length(f) > 60]
    assert too_long == []
    assert style.quantile([style.length(f) for _, f in FUNCTIONS], 0.9) <= 30


def test_functions_are_flat() -> None:
    assert style.quantile([style.branches(f) for _, f in FUNCTIONS], 0.9) <= 6
    assert style.quantile([style.nesting(f) for _, f in FUNCTIONS], 0.9) <= 3


def test_files_are_short() -> None:
    assert [
        f"{path.name} {n}" for path, s in zip(FILES, SOURCES, strict=True) if (n := len(s.splitlines())) > 400
    ] == []


def test_public_things_are_documented_and_typed() -> None:
    assert style.documented_share(TREES) >= 0.85
    assert style.hinted_share(TREES) >= 0.98


def test_nothing_is_written_twice() -> None:
    assert style.repeated_share(SOURCES) <= 0.04


def test_tests_keep_up_with_the_source() -> None:
    tests = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "tests").rglob("*.py"))
    assert tests / sum(len(s.splitlines()) for s in SOURCES) >= 0.6


def test_every_module_states_its_contract() -> None:
    import ast

    assert [str(path) for path, tree in zip(FILES, TREES, strict=True) if not ast.get_docstring(tree)] == []
