"""The arguments of shapes on region features, most under the names of upstream's flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lavis_ext.common.config.decode import Bound, Count, Share


@dataclass(frozen=True, kw_only=True)
class RegionKeys:
    """What every shape on region features takes."""

    features: Any = None
    """A store or a published file of them (or one for each split, or lists), instead of what the card names."""
    img_feature_dim: Count = 2054
    max_img_seq_length: Count = 50
    vocab: str = "oscar/pretrained_models/base-vg-labels/ep_107_1192087/vocab.txt"
    do_lower_case: bool = True
    max_seq_length: Count = 128
    add_od_labels: bool = True
    images: str | None = None
    """A folder of pictures, which only `browse` shows."""


@dataclass(frozen=True, kw_only=True)
class RegionCaptionKeys(RegionKeys):
    """`region_caption`."""

    max_seq_a_length: Count = 40
    """The caption's part of `max_seq_length`."""
    mask_prob: Share = 0.15
    max_masked_tokens: Count = 3


@dataclass(frozen=True, kw_only=True)
class RegionPairKeys(RegionKeys):
    """`region_pair`: `all` records of a split, or NLVR2's `bal` or `unbal` ones."""

    eval_data_type: Literal["all", "bal", "unbal"] = "all"
    test_data_type: Literal["all", "bal", "unbal"] = "all"


@dataclass(frozen=True, kw_only=True)
class RegionPretrainKeys(RegionKeys):
    """`region_pretrain`."""

    texta_false_prob: Share = 0.0
    """How often the text is another's; 0 < p < 0.5 makes three classes."""
    textb_sample_mode: Annotated[int, Bound(0, 2)] = 0
    """Which rows may give wrong tags: 0 any, 1 those with tags, 2 those with answers."""
    mask_prob: Share = 0.15


@dataclass(frozen=True, kw_only=True)
class RegionRetrievalKeys(RegionKeys):
    """`region_retrieval`."""

    num_captions_per_img_train: Count | None = 5
    """Captions of an image that count; None: all."""
    num_captions_per_img_val: Count | None = 5
    od_label_type: str = "vg"
    """The file of tags."""
    eval_caption_index_file: Any = None
    """For `val`: the captions that each image is ranked against; beside the captions, or one for each split."""
    eval_img_keys_file: Any = None
    """For `test`: the images in use."""
    att_mask_type: Literal["CLR"] = "CLR"
    """Captions, labels and regions see each other: the only one that is built."""


@dataclass(frozen=True, kw_only=True)
class RegionVqaKeys(RegionKeys):
    """`region_vqa`."""

    label_file: str | None = None
    label2ans_file: str | None = None
    """The pickles (or the ordered JSON) of the answers."""
    soft_targets: bool = True
    """`targets` of all answers with their scores (VQA), else `labels`, the class of the first (GQA)."""
    data_label_type: Literal["mask", "faster", "bal", "all"] | None = None
    """mask, faster: the files with the tags of that detector; bal, all: those questions."""
    train_data_type: Literal["bal", "all"] | None = None
    eval_data_type: Literal["bal", "all"] | None = None
    test_data_type: Literal["bal", "all"] | None = None


@dataclass(frozen=True, kw_only=True)
class VoltaKeys(RegionKeys):
    """`volta_caption`, `volta_retrieval`."""

    img_feature_dim: Count = 2048
    add_od_labels: bool = False
    od_label_type: str = ""
    num_captions_per_img_train: Count | None = None
    num_captions_per_img_val: Count | None = None
    num_locs: Literal[5, 7] = 5
    """x1/W, y1/H, x2/W, y2/H, area; or width and height before the area."""
    add_global_imgfeat: Literal["first", "last"] | None = None
    """Where the mean of the regions is added."""
    norm_embeddings: bool = False
    """Whether features are scaled to length 1."""
    hard_negatives: str | None = "mscoco/hard_negative.pkl"
    """volta's pickle of the images most like each other; None: none."""
