"""A data set, its builder and two processors in LAVIS' manner, in one file: named by a run file, or `--plugin`."""

import os

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.base_dataset import BaseDataset
from lavis.processors.base_processor import BaseProcessor
from omegaconf import OmegaConf
from PIL import Image


@registry.register_processor("bird_caption")
class BirdCaption(BaseProcessor):
    def __init__(self, prompt=""):
        self.prompt = prompt

    def __call__(self, caption):
        return self.prompt + caption.lower()

    @classmethod
    def from_config(cls, cfg=None):
        if cfg is None:
            cfg = OmegaConf.create()
        return cls(prompt=cfg.get("prompt", ""))


class BirdDataset(BaseDataset):
    def __init__(self, vis_processor, text_processor, vis_root, ann_paths):
        super().__init__(vis_processor, text_processor, vis_root, ann_paths)
        self.img_ids = {}
        for ann in self.annotation:
            self.img_ids.setdefault(ann["image"], len(self.img_ids))

    def __getitem__(self, index):
        ann = self.annotation[index]
        image = Image.open(os.path.join(self.vis_root, ann["image"])).convert("RGB")
        return {
            "image": self.vis_processor(image),
            "text_input": self.text_processor(ann["caption"]),
            "image_id": self.img_ids[ann["image"]],
            "instance_id": ann["instance_id"],
        }


class BirdEvalDataset(BirdDataset):
    def __getitem__(self, index):
        ann = self.annotation[index]
        image = Image.open(os.path.join(self.vis_root, ann["image"])).convert("RGB")
        return {"image": self.vis_processor(image), "image_id": index, "instance_id": ann["instance_id"]}


@registry.register_builder("lavis_birds")
class BirdBuilder(BaseDatasetBuilder):
    train_dataset_cls = BirdDataset
    eval_dataset_cls = BirdEvalDataset

    DATASET_CONFIG_DICT = {"default": os.path.join(os.path.dirname(__file__), "own_data.yaml")}
