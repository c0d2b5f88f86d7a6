"""The drawn world in COCO's form, and the run through it that `lavis-ext demo` makes.

Start at `tour.run_demo`. A `World` of `things`, with captions from `language`, is written as COCO is published (`coco`)
into a `mirror`, served, and fetched from there by the real verbs (`steps`). The same world in the form of every other
family of data sets is in `tests/world/` of a checkout.
"""
