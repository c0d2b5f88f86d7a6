"""volta's COCO pipeline under its own names: pictures → rows of 36 regions → one LMDB, and captions beside it."""
