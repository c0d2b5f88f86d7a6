"""State without pickle comes back as it was."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.runners.checkpoint import pack, random_state, restore_random_state, seed_everything, unpack

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.text(max_size=3) | st.integers() | st.sampled_from(["__tensor__", "__tuple__"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(TREES)
def test_any_tree_survives_json(tree: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    assert unpack(json.loads(json.dumps(pack(tree, tensors))), tensors) == tree


def test_numbers_of_numpy_become_plain_ones() -> None:
    tree = {"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True), "d": np.array([1, 2]), np.int64(7): "e"}
    packed = json.loads(json.dumps(pack(tree, {})))
    assert unpack(packed, {}) == {"a": 3, "b": 0.5, "c": True, "d": [1, 2], 7: "e"}


def test_an_optimizer_survives() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(pack(optimizer.state_dict(), tensors)))
    restored = unpack(packed, tensors)
    assert restored["param_groups"] == optimizer.state_dict()["param_groups"]
    for key, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(restored["state"][key][name], value) for name, value in state.items())


def test_what_json_cannot_hold_is_refused_with_its_place() -> None:
    with pytest.raises(TypeError, match=r"\.a\.1: object"):
        pack({"a": [1, object()]}, {})


def test_two_names_for_one_memory_are_kept_apart() -> None:
    shared = torch.ones(2)
    tensors: dict[str, torch.Tensor] = {}
    pack({"a": shared, "b": shared}, tensors)
    assert tensors[".a"].data_ptr() != tensors[".b"].data_ptr()


def test_generators_continue_where_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    seed_everything(3)
    draw()
    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(pack(random_state(), tensors)))
    expected = draw()
    seed_everything(99)
    restore_random_state(unpack(packed, tensors))
    assert draw() == expected
