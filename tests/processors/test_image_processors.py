"""LAVIS' image processors against Pillow's results and torchvision's draws."""

import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lavis_ext.common.config.schema import ProcessorConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.types import ImageProcessor
from lavis_ext.datasets.readers import decode_rgb
from lavis_ext.processors import build_processor, load_processor
from lavis_ext.processors.image import (
    LOG_RATIO,
    MEAN,
    STD,
    Box,
    Normalizer,
    _drawn,
    central_box,
    normalize,
    random_box,
    short_side,
)
from tests.support.pictures import PHOTOS, needs_photos, pixels

DEFAULT_SIZES = {
    "blip_image_train": 384, "blip2_image_train": 364, "blip_image_eval": 384,
    "clip_image_train": 224, "clip_image_eval": 224,
}  # fmt: skip
NAMES = sorted(DEFAULT_SIZES)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def torchvision_box(height: int, width: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params as torchvision documents it, from torch's global generator."""
    area, ratio = height * width, (3.0 / 4.0, 4.0 / 3.0)
    log_ratio = torch.log(torch.tensor(ratio))
    for _ in range(10):
        target = area * torch.empty(1).uniform_(scale[0], scale[1]).item()
        aspect = torch.exp(torch.empty(1).uniform_(log_ratio[0], log_ratio[1])).item()
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            i = torch.randint(0, height - h + 1, size=(1,)).item()
            return int(i), int(torch.randint(0, width - w + 1, size=(1,)).item()), h, w
    return tuple(central_box(height, width))  # type: ignore[return-value]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(0, 2**40),
    st.sampled_from([(0.5, 1.0), (0.9, 1.0), (0.08, 1.0)]),
)
def test_the_same_seed_crops_where_torchvision_does(
    height: int, width: int, seed: int, scale: tuple[float, float]
) -> None:
    torch.manual_seed(seed)
    expected = torchvision_box(height, width, scale)
    torch.manual_seed(seed)
    assert tuple(random_box(height, width, scale, None)) == expected
    assert tuple(random_box(height, width, scale, rng(seed))) == expected
    box = Box(*expected)
    assert box.height > 0
    assert box.width > 0
    assert box.top + box.height <= height
    assert box.left + box.width <= width


def test_when_no_crop_fits_the_middle_is_taken() -> None:
    assert central_box(100, 400) == Box(0, 133, 100, 133)
    assert central_box(400, 100) == Box(133, 0, 133, 100)
    assert central_box(90, 100) == Box(0, 0, 90, 100)
    assert random_box(10, 4000, (0.9, 1.0), rng()) == central_box(10, 4000)


def pillow_resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Pillow's bicubic with the horizontal pass first, which newer versions do only where it is the cheaper one."""
    return image.resize((width, image.height), Image.BICUBIC).resize((width, height), Image.BICUBIC)


def pillow_eval(name: str, array: np.ndarray, size: int) -> np.ndarray:
    image = Image.fromarray(array)
    if name == "blip_image_eval":
        return np.asarray(pillow_resize(image, size, size))
    height, width = short_side(image.height, image.width, size)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.asarray(pillow_resize(image, width, height))[top : top + size, left : left + size]


def pictures() -> list[np.ndarray]:
    shapes = [(480, 640), (640, 427), (100, 100), (37, 500), (224, 224), (300, 31)]
    return [pixels(i, *shape) for i, shape in enumerate(shapes)]


def photographs() -> list[np.ndarray]:
    return [decode_rgb(path.read_bytes()) for path in sorted(PHOTOS.glob("*.jpg"))[:12]]


@pytest.mark.parametrize("name", ["blip_image_eval", "clip_image_eval"])
@pytest.mark.parametrize("source", [pictures, pytest.param(photographs, marks=needs_photos)])
def test_eval_equals_pillow(name: str, source: Any) -> None:
    processor = load_processor(name, {"image_size": 224})
    for array in source():
        mine = processor.uint8(array, rng()).permute(1, 2, 0).numpy().astype(int)
        difference = np.abs(mine - pillow_eval(name, array, 224))
        assert difference.mean() <= 0.02  # in 1/255
        assert difference.max() <= 2


@pytest.mark.parametrize("name", ["blip2_image_train", "clip_image_train"])
def test_training_crops_equal_pillow(name: str) -> None:
    scale = (0.5, 1.0) if name == "blip2_image_train" else (0.9, 1.0)
    processor = load_processor(name, {"image_size": 96})
    for seed, array in enumerate(pictures()):
        torch.manual_seed(seed)
        top, left, height, width = torchvision_box(*array.shape[:2], scale)
        box = (left, top, left + width, top + height)
        expected = np.asarray(pillow_resize(Image.fromarray(array).crop(box), 96, 96))
        if name == "blip2_image_train" and torch.rand(1) < 0.5:
            expected = expected[:, ::-1]
        torch.manual_seed(seed)
        mine = processor(Image.fromarray(array))
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        reference = (torch.tensor(expected.copy()).permute(2, 0, 1) / 255 - mean) / std
        assert (mine - reference).abs().mean().item() * min(STD) * 255 <= 0.02


@pytest.mark.parametrize("name", NAMES)
def test_every_image_processor_keeps_the_contract(name: str) -> None:
    processor = load_processor(name, {"image_size": 40})
    assert isinstance(processor, ImageProcessor)
    array = pixels(1, 50, 70)
    before = array.copy()
    first = processor.uint8(array, rng(5))
    assert first.dtype == torch.uint8
    assert first.shape == (3, 40, 40)
    assert first.is_contiguous()
    copy = pickle.loads(pickle.dumps(processor))
    assert torch.equal(copy.uint8(array, rng(5)), first)
    assert torch.allclose(processor(array, rng(5)), normalize(first))
    torch.manual_seed(5)
    assert torch.allclose(processor(Image.fromarray(array)), normalize(first))
    assert np.array_equal(array, before)
    array.flags.writeable = False
    assert torch.equal(processor.uint8(array, rng(5)), first)


@pytest.mark.parametrize("name", ["blip_image_train", "blip2_image_train", "clip_image_train"])
def test_seeds_matter_in_training(name: str) -> None:
    processor, array = load_processor(name, {"image_size": 40}), pixels(1, 60, 70)
    state = torch.random.get_rng_state()
    seen = {processor.uint8(array, rng(seed)).numpy().tobytes() for seed in range(8)}
    assert len(seen) == 8
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_lavis(name: str) -> None:
    processor = load_processor(name)
    assert processor.image_size == DEFAULT_SIZES[name]
    assert (processor.mean, processor.std) == (MEAN, STD)
    scales = {"blip_image_train": (0.5, 1.0), "blip2_image_train": (0.5, 1.0), "clip_image_train": (0.9, 1.0)}
    if name in scales:
        assert (processor.min_scale, processor.max_scale) == scales[name]


def test_arguments() -> None:
    half = load_processor(
        "blip_image_eval", {"name": "blip_image_eval", "image_size": 8, "mean": [0.5] * 3, "std": None}
    )
    assert half.mean == (0.5, 0.5, 0.5)
    assert half.std == STD
    assert type(half).build(image_size=8, mean=[0.5] * 3) == half
    assert build_processor(ProcessorConfig(name="blip_image_eval", args={"image_size": 8})).image_size == 8
    assert build_processor(None) is None
    with pytest.raises(ConfigError, match="did you mean 'image_size'"):
        load_processor("blip_image_eval", {"imagesize": 8})
    with pytest.raises(ConfigError, match="did you mean 'blip_image_eval'"):
        load_processor("blip_image_evil")
    for key, wrong in (("image_size", 0), ("image_size", "eight"), ("mean", [0.5]), ("std", "thin")):
        with pytest.raises(ConfigError, match=rf"BlipImageEval\.{key}: "):
            load_processor("blip_image_eval", {key: wrong})


@pytest.mark.parametrize(
    "wrong", ["a.jpg", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)]
)
def test_what_is_no_picture(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="image processor"):
        load_processor("blip_image_eval")(wrong)


def test_pil_images_of_any_mode_become_rgb() -> None:
    processor = load_processor("blip_image_eval", {"image_size": 16})
    image = Image.fromarray(pixels(3)).convert("P")
    assert torch.equal(processor(image), processor(image.convert("RGB")))


def test_the_statistics_are_those_of_clip() -> None:
    """As numbers: a test that takes them from the module under test says nothing about them."""
    assert MEAN == (0.48145466, 0.4578275, 0.40821073)
    assert STD == (0.26862954, 0.26130258, 0.27577711)
    black, white = torch.zeros(3, 1, 1, dtype=torch.uint8), torch.full((3, 1, 1), 255, dtype=torch.uint8)
    for form in (Normalizer(), normalize):
        assert form(black).flatten().tolist() == pytest.approx([-1.7922626, -1.7520971, -1.4802198], abs=1e-5)
        assert form(white).flatten().tolist() == pytest.approx([1.9303361, 2.0748838, 2.1458969], abs=1e-5)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"))],
)
def test_an_accelerator_normalises_in_one_operation_to_the_same(device: str) -> None:
    """The form that an accelerator takes, which a CPU can compute too."""
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=rng())
    expected = normalize(images, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), fused=False)
    found = normalize(images.to(device), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), fused=True)
    assert (found.dtype, found.device.type) == (torch.float32, device)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-5)
    meta = normalize(images.to("meta"))  # an accelerator that computes nothing
    assert (meta.dtype, meta.device.type, meta.shape) == (torch.float32, "meta", images.shape)


def test_normalising_is_to_tensor_and_normalize() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=rng())
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    assert torch.allclose(normalize(images), (images.float() / 255 - mean) / std, atol=1e-6)
    assert Normalizer()(images).dtype == torch.float32
    assert Normalizer()(images.float()).equal(images.float())
    assert pickle.loads(pickle.dumps(Normalizer())) == Normalizer()


def test_a_plain_class_can_be_a_processor(tmp_path: Path) -> None:
    from lavis_ext.common.registry import processors

    @processors.register("shout_for_tests")
    class Shout:
        def __init__(self, sign: str = "!") -> None:
            self.sign = sign

        def __call__(self, text: str) -> str:
            return text.upper() + self.sign

    assert load_processor("shout_for_tests", {"sign": "?"})("hey") == "HEY?"
    with pytest.raises(ConfigError, match="sing"):
        load_processor("shout_for_tests", {"sing": "?"})


@given(seed=st.integers(0, 2**63 - 1), stop=st.integers(1, 10_000))
def test_numbers_are_those_that_torch_draws(seed: int, stop: int) -> None:
    ours, torchs = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    drawn = [_drawn.uniform(0.5, 1.0, ours), _drawn.exp_uniform(*LOG_RATIO, ours)]
    drawn += [_drawn.below(stop, ours), _drawn.uniform(0, 1, ours)]
    expected = [torch.empty(1).uniform_(0.5, 1.0, generator=torchs).item()]
    expected += [torch.exp(torch.empty(1).uniform_(*LOG_RATIO, generator=torchs)).item()]
    expected += [torch.randint(0, stop, (1,), generator=torchs).item(), torch.rand(1, generator=torchs).item()]
    assert drawn == expected and torch.equal(ours.get_state(), torchs.get_state())


def test_a_thread_that_draws_first_under_inference_mode_draws_on() -> None:
    def draw() -> list[Box]:
        with torch.inference_mode():
            first = random_box(480, 640, (0.5, 1.0), rng())
        return [first, random_box(480, 640, (0.5, 1.0), rng())]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(draw).result() == [random_box(480, 640, (0.5, 1.0), rng())] * 2


def test_threads_draw_apart() -> None:
    with ThreadPoolExecutor(4) as pool:
        boxes = [random_box(480, 640, (0.5, 1.0), torch.Generator().manual_seed(seed)) for seed in range(200)]
        seeds = [torch.Generator().manual_seed(seed) for seed in range(200)]
        assert list(pool.map(lambda rng: random_box(480, 640, (0.5, 1.0), rng), seeds)) == boxes
