"""The drawn world in COCO's form, and the journey through it that `lavis-ext demo` makes.

Begin with `tour.run_demo`: a `World` of `things`, and what `language` says of them, is written as `coco` publishes
pictures and captions into a `mirror`, served, and taken from there by the real verbs (`steps`). The same world in the
form of every other family of data sets lies in `tests/world/` of a checkout.
"""
