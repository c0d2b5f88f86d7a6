"""Images are resized as OpenCV and Pillow resize them, and lose the mean in BGR."""

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_ext.common.errors import UsageError
from lavis_ext.features.detectors.base import checked, prepare_caffe, prepare_maskrcnn, resize_bilinear
from tests.features.detectors.small import picture

MEAN = (102.9801, 115.9465, 122.7717)


def resized_slowly(row: list[float], scale: float) -> list[float]:
    """OpenCV's INTER_LINEAR of float32 with `fx`, along one axis."""
    out = []
    for place in range(round(len(row) * scale)):
        at = (place + 0.5) / scale - 0.5
        low = int(np.floor(at))
        share = at - low
        if low < 0:
            low, share = 0, 0.0
        if low >= len(row) - 1:
            low, share = len(row) - 1, 0.0
        out.append(row[low] * (1 - share) + row[min(low + 1, len(row) - 1)] * share)
    return out


@pytest.mark.parametrize("scale", [0.37, 0.5, 1.0, 1.6, 2.0, 3.3])
def test_bilinear_resize_is_opencvs(scale: float) -> None:
    row = [3.0, 9, -4, 7, 0, 12, 5]
    assert resize_bilinear(torch.tensor(row).view(1, 1, 7).expand(1, 4, 7), scale)[0, 0].tolist() == pytest.approx(
        resized_slowly(row, scale), abs=1e-5
    )
    column = resize_bilinear(torch.tensor(row).view(1, 7, 1).expand(1, 7, 3), scale)[0, :, 0]
    assert column.tolist() == pytest.approx(resized_slowly(row, scale), abs=1e-5)


def test_doubling_gives_the_vector_known_from_opencv() -> None:
    # cv2.resize(np.float32([[0, 4]]), None, fx=2, fy=1) is [[0, 1, 3, 4]]
    assert resize_bilinear(torch.tensor([[[0.0, 4]]]), 2.0)[0, 0].tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("height", "width", "tall", "wide", "scale"),
    [
        (480, 640, 600, 800, 1.25),
        (640, 480, 800, 600, 1.25),
        (200, 500, 400, 1000, 2.0),  # the longer side would be 1500
        (600, 1000, 600, 1000, 1.0),
        (427, 640, 600, 899, 600 / 427),
    ],
)
def test_caffes_sizes(height: int, width: int, tall: int, wide: int, scale: float) -> None:
    prepared = prepare_caffe(np.zeros((height, width, 3), np.uint8), MEAN, 600, 1000)
    assert (prepared.height, prepared.width) == (tall, wide)
    assert prepared.scale == pytest.approx((scale, scale))


@pytest.mark.parametrize(
    ("height", "width", "tall", "wide"),
    [
        (480, 640, 600, 800),
        (640, 480, 800, 600),
        (200, 500, 400, 1000),
        (427, 640, 600, 899),  # 899.3, rounded down
        (333, 999, 333, 999),  # 1000 / 3 = 333.3 is the size it has
        (1, 3000, 1, 3000),  # a line: the size rounds to 0, and is 1
    ],
)
def test_maskrcnns_sizes(height: int, width: int, tall: int, wide: int) -> None:
    prepared = prepare_maskrcnn(np.zeros((height, width, 3), np.uint8), MEAN, 600, 1000)
    assert (prepared.height, prepared.width) == (tall, wide)
    assert prepared.scale == pytest.approx((tall / height, wide / width))


def test_the_mean_is_taken_off_in_bgr() -> None:
    image = np.full((60, 80, 3), (10, 20, 30), np.uint8)  # red 10, green 20, blue 30
    for prepare in (prepare_caffe, prepare_maskrcnn):
        pixels = prepare(image, MEAN, 60, 100).pixels
        assert pixels.shape == (1, 3, 60, 80)
        assert pixels[0, :, 0, 0].tolist() == pytest.approx([30 - MEAN[0], 20 - MEAN[1], 10 - MEAN[2]])


def test_maskrcnns_pixels_are_pillows() -> None:
    image = picture(3, 50, 70)
    pixels = prepare_maskrcnn(image, (0, 0, 0), 100, 1000).pixels[0].numpy()
    expected = np.asarray(Image.fromarray(image).resize((140, 100), Image.Resampling.BILINEAR))
    assert np.array_equal(pixels, expected[:, :, ::-1].transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[1, 2]],
        None,
    ],
)
def test_what_is_no_rgb_image_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"expected uint8 \[H, W, 3\]|has no pixels"):
        checked(wrong)
