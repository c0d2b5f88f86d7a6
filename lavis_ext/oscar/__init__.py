"""Oscar, VinVL and volta beside the store of features: shapes, model, tasks, captions, command lines.

Begin with `model.py` (a BERT over words, tags and regions) and `datasets/` (what it is fed). A slice: nothing below
imports it, the registry finds its modules by name. Nothing heavy is imported here: `import_args.py` reads commands.
"""
