"""BLIP's ten operations against Pillow's counterparts and by hand."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lavis_ext.processors import augment
from lavis_ext.processors.augment import OPERATIONS, random_augment
from lavis_ext.processors.image import to_tensor
from tests.support.pictures import pixels


def run(operation: str, array: np.ndarray, strength: float = 5, sign: float = 1.0) -> np.ndarray:
    result = getattr(augment, operation)(to_tensor(array), strength, sign)
    assert result.dtype == torch.uint8
    return result.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("seed", range(4))
def test_equalize_and_contrast_equal_pillow(seed: int) -> None:
    array = (pixels(seed, 60, 80) // 2 + 40).astype(np.uint8)
    image = Image.fromarray(array)
    assert np.array_equal(run("equalize", array), np.asarray(ImageOps.equalize(image)))
    assert np.abs(run("auto_contrast", array).astype(int) - np.asarray(ImageOps.autocontrast(image))).max() <= 1


@pytest.mark.parametrize("operation", ["equalize", "auto_contrast"])
def test_flat_channels_stay(operation: str) -> None:
    array = np.full((5, 6, 3), 77, np.uint8)
    assert np.array_equal(run(operation, array), array)


def test_strength_five_neither_brightens_nor_sharpens() -> None:
    array = pixels(1)
    for operation in ("brightness", "sharpness", "identity"):
        assert np.array_equal(run(operation, array), array)


def test_brightness_multiplies_and_clips() -> None:
    array = np.array([[[0, 100, 200]]], np.uint8)
    assert run("brightness", array, strength=10).tolist() == [[[0, 190, 255]]]
    assert run("brightness", array, strength=0).tolist() == [[[0, 10, 20]]]


def test_sharpness_blends_inside_and_keeps_the_edge() -> None:
    array = np.zeros((5, 5, 3), np.uint8)
    array[2, 2] = 130
    soft = run("sharpness", array, strength=0)[..., 0]
    assert soft[2, 2] == int(50 + 0.1 * (130 - 50))
    assert soft[1, 1] == int(10 + 0.1 * (0 - 10))
    array[0, 0] = 99
    assert run("sharpness", array, strength=10)[0, 0, 0] == 99


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_translation_moves_whole_pixels(sign: float) -> None:
    array = pixels(2, 20, 30)
    moved, step = run("translate_x", array, sign=sign), 5
    kept, shown = (array[:, step:], moved[:, :-step]) if sign > 0 else (array[:, :-step], moved[:, step:])
    assert np.array_equal(kept, shown)
    assert (np.delete(moved, range(30 - step) if sign > 0 else range(step, 30), axis=1) == 128).all()
    turned = run("translate_y", array.transpose(1, 0, 2).copy(), sign=sign)
    assert np.array_equal(turned.transpose(1, 0, 2), moved)


def test_shear_moves_a_row_by_its_share() -> None:
    array = np.zeros((21, 40, 3), np.uint8)
    array[:, 5] = 200
    sheared = run("shear_x", array)
    assert [int(sheared[row, :, 0][:20].argmax()) for row in (0, 20)] == [5, 8]
    turned = run("shear_y", array.transpose(1, 0, 2).copy())
    assert np.array_equal(turned.transpose(1, 0, 2), sheared)


def test_rotation_is_about_the_centre() -> None:
    array = np.zeros((40, 40, 3), np.uint8)
    array[18:23, 18:23] = 255
    turned = run("rotate", array)
    assert turned[20, 20, 0] == 255
    assert (turned[0, 0] == 128).all()
    assert abs(float(turned[10:30, 10:30, 0].astype(int).sum()) / (25 * 255) - 1) < 0.05
    back = run("rotate", pixels(3, 40, 40), strength=10)
    reference = Image.fromarray(pixels(3, 40, 40)).rotate(30, Image.BILINEAR, center=(20.5, 20.5), fillcolor=(128,) * 3)
    assert np.abs(back.astype(int) - np.asarray(reference))[10:30, 10:30].mean() < 2


def test_draws_come_from_the_generator_alone() -> None:
    image = to_tensor(pixels(4))
    outcomes = [random_augment(image, 2, 5, torch.Generator().manual_seed(seed)) for seed in range(300)]
    again = random_augment(image, 2, 5, torch.Generator().manual_seed(7))
    assert torch.equal(again, outcomes[7])
    unchanged = sum(torch.equal(outcome, image) for outcome in outcomes)
    # Each of two draws leaves the picture alone with 1/2 + 1/2 * 3/10: three operations do nothing at strength 5.
    assert 0.33 < unchanged / 300 < 0.52
    assert len(OPERATIONS) == 10
