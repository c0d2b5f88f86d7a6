"""An import or an export in a process of its own, that can be killed in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.killing import ask_for_leave


def run_import(source: str, store: str) -> None:
    """Import, asking after each row."""
    from lavis_ext.features import import_features
    from lavis_ext.fetch.transfer import Silent

    class Slow(Silent):
        def advance(self, label: str, count: int) -> None:
            ask_for_leave()

    import_features([source], store, progress=Slow())


def run_export(store: str, destination: str, form: str) -> None:
    """Export, asking before each row."""
    from lavis_ext.features import FeatureStore, export_store, open_store
    from lavis_ext.features.formats import lmdb as volta_lmdb

    volta_lmdb.COMMIT_ROWS = 2
    at = FeatureStore.at

    def slow(self: Any, row: int) -> Any:
        ask_for_leave()
        return at(self, row)

    FeatureStore.at = slow  # type: ignore[method-assign]
    export_store(open_store(store), Path(destination), form)
