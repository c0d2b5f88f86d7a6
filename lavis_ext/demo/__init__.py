"""The small world that the quickstart and the tests run on: one set of scenes, written out in upstream formats."""
