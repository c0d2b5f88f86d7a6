"""The published forms of region features: each is a reader of rows and a writer of a store, named in one table."""

from __future__ import annotations

from lavis_ext.errors import UsageError, nearest
from lavis_ext.features.formats.base import Format
from lavis_ext.features.formats.butd import Butd
from lavis_ext.features.formats.hdf5 import Hdf5
from lavis_ext.features.formats.mapped import OffsetMap
from lavis_ext.features.formats.npy import Npy
from lavis_ext.features.formats.oscar import OscarTsv, VinvlTsv
from lavis_ext.features.formats.pt import OscarPt
from lavis_ext.features.formats.tensorpack import TensorpackLmdb
from lavis_ext.features.formats.volta_lmdb import VoltaLmdb

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
