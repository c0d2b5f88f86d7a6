"""The types of the pipeline: samples, batches, and the protocols of processors, data sets and streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


class Sample(TypedDict, total=False):
    """One sample under LAVIS' keys; which are there depends on the shape of the data set and on the split."""

    image: Tensor  # float32 [3,H,W] normalised from `dataset[i]`; uint8 [3,H,W] from `dataset.load(i, rng)`
    text_input: str
    text_output: str
    prompt: str
    image_id: int | str
    instance_id: str
    question_id: int | str
    answers: list[str]
    weights: list[float]
    answer: str | None
    choices: list[str]
    correct_choice_idx: int | None
    direct_answers: list[str] | None
    image0: Tensor
    image1: Tensor
    label: int
    index: int

    # of conversations, whose `image` is a list
    conversations: list[dict[str, str]]
    sample_id: str

    # of data sets on region features; of two inputs in one sample, lists of two
    input_ids: Any  # list[int]
    token_type_ids: Any  # list[int]
    position_ids: Any  # list[int]
    regions: Any  # references to the features, from `dataset.load(i, rng)`
    img_feats: Any  # float32 [n,D], from `dataset[i]`
    features: Any  # volta's, float32 [n,2048], and beside them
    locs: Any  # float32 [n,5 or 7]
    targets: tuple[list[int], list[float]]
    labels: Any
    tag_ids: list[int]
    od_ids: list[int]
    masked_pos: list[int]
    masked_ids: list[int]
    lm_labels: list[int]


Batch = dict[str, Any]
"""Samples under the same keys: `image` a stacked tensor [B,3,H,W], ids and texts lists of length B."""


@runtime_checkable
class ImageProcessor(Protocol):
    """Image → tensor. Picklable; all randomness comes from `rng`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int

    def __call__(self, image: Any) -> Tensor:
        """A PIL image or uint8 [H,W,3] array → normalised float32 [3,S,S] (LAVIS' form)."""

    def uint8(self, image: np.ndarray, rng: torch.Generator | None = None) -> Tensor:
        """A uint8 [H,W,3] RGB array → uint8 [3,S,S]; normalising is left to the device."""


@runtime_checkable
class Dataset(Protocol):
    """Rows of one split; it knows neither order nor rank nor batch."""

    @property
    def name(self) -> str:
        """The name of the data set."""

    @property
    def split(self) -> str:
        """The split."""

    def __len__(self) -> int:
        """How many samples."""

    def __getitem__(self, index: int) -> Sample:
        """Sample as LAVIS users know it: `image` float32 [3,H,W] normalised."""

    def load(self, index: int, rng: torch.Generator) -> Sample:
        """The same sample with `image` uint8 [3,H,W] and augmentation drawn from `rng`; raises SampleError."""

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch (LAVIS' spelling)."""


class Stream(Protocol):
    """Samples in the order in which they come from shards; restartable at a sample."""

    name: str
    split: str
    epoch_size: int

    def iterate(self, rank: int, world: int, state: Mapping[str, Any] | None) -> Iterator[Sample]:
        """Samples of this rank from `state` on."""

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream, from which `iterate` goes on."""

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch."""
