"""Data sets and weights become batches: sharded over ranks, loaded ahead, and resumable to the sample."""

from __future__ import annotations

from lavis_ext.mixture.core import Mixture, shared_normalizer
from lavis_ext.mixture.order import Order, Slot, Source

__all__ = ["Mixture", "Order", "Slot", "Source", "shared_normalizer"]
