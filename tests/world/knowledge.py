"""Questions whose answers are not in the picture alone: corners, mixing of paints, where materials come from."""

from __future__ import annotations

from collections.abc import Iterator

from lavis_ext.demo.things import SHAPES, Thing
from lavis_ext.demo.world import Scene
from tests.world.answers import MIXTURES, SOURCES, Question, count

ROUND = ("circle", "ring")
CORNERS = {shape: 0 if shape in ROUND else len(curve) for shape, curve in SHAPES.items()}


def knowledge(scene: Scene) -> list[Question]:
    """All such questions about a scene, each with one true answer."""
    asked = [Question("Where does the material of the background come from?", SOURCES[scene.background])]
    for thing in scene.things:
        if count(scene.things, colour=thing.colour) == 1:
            asked += ask_of_shape(thing)
        if count(scene.things, shape=thing.shape) == 1 and thing.colour in MIXTURES:
            asked.append(Question(f"Which two paints make the color of the {thing.shape}?", MIXTURES[thing.colour]))
    return asked


def ask_of_shape(thing: Thing) -> Iterator[Question]:
    """Questions about a thing that is told by its colour."""
    yield Question(f"How many corners does the {thing.colour} shape have?", str(CORNERS[thing.shape]), "number")
    yield Question(f"Could the {thing.colour} shape roll?", "yes" if thing.shape in ROUND else "no", "yes/no")
