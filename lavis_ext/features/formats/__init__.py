"""The published forms of region features: each is a reader of rows and a writer of a store, named in one table."""

from __future__ import annotations

from lavis_ext.common.errors import UsageError, nearest
from lavis_ext.features.formats.arrays import Hdf5, Npy, OscarPt
from lavis_ext.features.formats.base import Format
from lavis_ext.features.formats.lmdb import TensorpackLmdb, VoltaLmdb
from lavis_ext.features.formats.tsv import Butd, OffsetMap, OscarTsv, VinvlTsv

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        OscarTsv(),
        VinvlTsv(),
        OffsetMap(),
        Butd("butd-tsv"),
        Butd("lxmert-tsv"),
        Butd("volta-tsv"),
        VoltaLmdb(),
        TensorpackLmdb(),
        OscarPt(),
        Hdf5(),
        Npy(),
    )
}


def format_of(name: str) -> Format:
    """A format by its name; raises UsageError."""
    if name not in FORMATS:
        raise UsageError(name, "is not a format of features", nearest(name, FORMATS))
    return FORMATS[name]
