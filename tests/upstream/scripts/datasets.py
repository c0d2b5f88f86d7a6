"""Data sets, builders and processors, as a notebook calls them. Each cell is run by itself, in a small prepared world."""

# %% load-dataset
from lavis.datasets.builders import load_dataset
from PIL import Image

coco = load_dataset("coco_caption")
assert sorted(coco) == ["test", "train", "val"] and [len(coco[k]) for k in ("train", "val", "test")] == [6, 3, 3]
sample = coco["train"][0]
assert isinstance(sample["image"], Image.Image) and sample["text_input"] == "A thing, 0."  # no processors, as in LAVIS
assert sample["image"].size == (32, 24) and set(coco["val"][0]) == {"image", "image_id", "instance_id"}

# %% load-dataset-cfg-path
import yaml
from lavis.datasets.builders import load_dataset

section = {"vis_processor": {"train": {"name": "blip2_image_train", "image_size": 32}},
           "text_processor": {"train": {"name": "blip_caption", "prompt": "a photo of "}}}
with open("coco.yaml", "w") as file:
    yaml.safe_dump({"datasets": {"coco_caption": section}}, file)
coco = load_dataset("coco_caption", cfg_path="coco.yaml")
assert coco["train"][0]["image"].shape == (3, 32, 32) and coco["train"][0]["text_input"] == "a photo of a thing, 0"

# %% load-dataset-vis-path
import shutil

from lavis.common.utils import get_cache_path
from lavis.datasets.builders import load_dataset

shutil.copytree(get_cache_path("coco/images"), "elsewhere")
coco = load_dataset("coco_caption", vis_path="elsewhere")
assert coco["train"].vis_root.endswith("/elsewhere") and coco["train"][0]["image"].size == (32, 24)

# %% load-dataset-unknown
import pytest
from lavis.datasets.builders import load_dataset

with pytest.raises(Exception, match="did you mean 'coco_caption'"):  # LAVIS prints and exits
    load_dataset("coco_captoin")

# %% dataset-zoo
from lavis.datasets.builders import dataset_zoo

assert "coco_caption" in dataset_zoo.get_names()
assert {"default", "eval"} <= set(dataset_zoo.dataset_zoo["coco_vqa"])

# %% dataset-zoo-own
from lavis.common.registry import registry
from lavis.datasets.builders import dataset_zoo
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder


@registry.register_builder("later")
class Later(BaseDatasetBuilder):
    DATASET_CONFIG_DICT = {"default": "later.yaml"}


assert "later" in dataset_zoo.get_names() and dataset_zoo.dataset_zoo["later"] == ["default"]

# %% builder-config
from lavis.common.registry import registry
from omegaconf import OmegaConf

builder = registry.get_builder_class("coco_caption")()
assert builder.data_type == "images" == builder.config.data_type
assert builder.config.build_info.images.storage == "coco/images"
assert builder.config.build_info.annotations.train.storage == ["coco/annotations/coco_karpathy_train.json"]
assert OmegaConf.is_config(builder.config) and sorted(builder.build_datasets()) == ["test", "train", "val"]

# %% builder-images-storage
import shutil

from lavis.common.registry import registry
from lavis.common.utils import get_cache_path

shutil.copytree(get_cache_path("coco/images"), "mine")
builder = registry.get_builder_class("coco_caption")()
builder.config.build_info.images.storage = "mine"
builder.config.build_info.images.storage = str(__import__("pathlib").Path("mine").absolute())
assert builder.build_datasets()["train"].vis_root.endswith("/mine")

# %% builder-of-a-node
from lavis.datasets.builders.caption_builder import COCOCapBuilder
from omegaconf import OmegaConf

cfg = OmegaConf.load(COCOCapBuilder.default_config_path()).datasets.coco_caption
cfg = OmegaConf.merge(cfg, {"vis_processor": {"eval": {"name": "blip_image_eval", "image_size": 16}}})
datasets = COCOCapBuilder(cfg).build_datasets()
assert datasets["val"][0]["image"].shape == (3, 16, 16)

# %% builder-of-a-path
import yaml
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset_config

with open("some.yaml", "w") as file:
    yaml.safe_dump({"datasets": {"coco_caption": {"text_processor": {"train": {"name": "blip_caption"}}}}}, file)
assert load_dataset_config("some.yaml").text_processor.train.name == "blip_caption"
assert registry.get_builder_class("coco_caption")("some.yaml").build_datasets()["train"][1]["text_input"] == "a thing, 1"

# %% builder-processors
from lavis.common.registry import registry

builder = registry.get_builder_class("coco_caption")()
assert builder.vis_processors["train"]("as it is") == "as it is"
builder.config.vis_processor = {"train": {"name": "blip2_image_train", "image_size": 16}}
builder.build_processors()
assert builder.vis_processors["train"].image_size == 16

# %% builder-types
import pytest
from lavis.common.registry import registry

cls = registry.get_builder_class("coco_vqa")
assert {"default", "eval"} <= set(cls.DATASET_CONFIG_DICT) and cls.default_config_path("eval").endswith(".yaml")
with pytest.raises(Exception, match="config type"):
    cls.default_config_path("evla")

# %% annotation-filter
from lavis.datasets.builders import load_dataset

train = load_dataset("coco_caption")["train"]
assert isinstance(train.annotation, list) and train.annotation[0]["caption"] == "A thing, 0."
train.annotation = [ann for ann in train.annotation if ann["image_id"] != "coco_1"]
assert len(train) == 4 and train[0]["text_input"] == "A thing, 0." and train[0]["image_id"] == 1  # ids stay, as in LAVIS
train.annotation = train.annotation[:1]
assert len(train) == 1 and [s["image_id"] for s in (train[i] for i in range(1))] == [1]

# %% annotation-in-place
import random

from lavis.datasets.builders import load_dataset

data = load_dataset("coco_caption")
train, val = data["train"], data["val"]
train.annotation[0]["caption"] = "another caption"
assert train[0]["text_input"] == "another caption"
del train.annotation[3:]
assert len(train) == 3
train.annotation.append({"image": val.annotation[0]["image"], "caption": "new", "image_id": "new", "instance_id": "9"})
assert len(train) == 4 and train[3]["text_input"] == "new" and train[3]["image_id"] == 3
first = val[0]["image_id"]
val.annotation.reverse()
assert val[2]["image_id"] == first and len(val) == 3

# %% annotation-of-questions
from lavis.datasets.builders import load_dataset

train = load_dataset("coco_vqa")["train"]
assert len(train) == 6 and train.annotation[0]["question"].startswith("What is in picture 1")
train.annotation = [ann for ann in train.annotation if ann["question_id"] == 20]
sample = train[0]
assert len(train) == 1 and sample["answers"] == ["net", "a net", "netting"] and abs(sum(sample["weights"]) - 1) < 1e-6

# %% set-processors
from lavis.datasets.builders import load_dataset
from lavis.processors import load_processor

train = load_dataset("coco_caption")["train"]
train.set_processors(load_processor("blip_image_eval", {"image_size": 24}), load_processor("blip_caption"))
assert train[0]["image"].shape == (3, 24, 24) and train[0]["text_input"] == "a thing, 0"
train.vis_processor = load_processor("blip_image_eval", {"image_size": 16})
assert train[0]["image"].shape == (3, 16, 16)

# %% data-loader
import torch
from lavis.datasets.builders import load_dataset
from lavis.datasets.data_utils import prepare_sample
from lavis.processors import load_processor

train = load_dataset("coco_caption")["train"]
train.set_processors(load_processor("blip_image_eval", {"image_size": 16}), load_processor("blip_caption"))
loader = torch.utils.data.DataLoader(train, batch_size=4, shuffle=True, collate_fn=train.collater)
batch = prepare_sample(next(iter(loader)), cuda_enabled=torch.cuda.is_available())
assert batch["image"].shape == (4, 3, 16, 16) and len(batch["text_input"]) == 4
assert train.collater([train[0], None])["image"].shape == (1, 3, 16, 16)  # samples that are None are left out

# %% displ-item
from lavis.datasets.builders import load_dataset

shown = load_dataset("coco_caption")["train"].displ_item(0)
assert list(shown) == ["file", "caption", "image"] and shown["caption"] == "A thing, 0."

# %% dataset-by-hand
from lavis.common.utils import get_cache_path
from lavis.datasets.datasets.coco_caption_datasets import COCOCapDataset, COCOCapEvalDataset
from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageEvalProcessor

train = COCOCapDataset(
    vis_processor=BlipImageEvalProcessor(image_size=16),
    text_processor=BlipCaptionProcessor(),
    vis_root=get_cache_path("coco/images"),
    ann_paths=[get_cache_path("coco/annotations/coco_karpathy_train.json")],
)
assert len(train) == 6 and train[0]["image"].shape == (3, 16, 16) and train.img_ids["coco_2"] == 1
root = get_cache_path("coco/images")
val = COCOCapEvalDataset(None, None, root, [get_cache_path("coco/annotations/coco_karpathy_val.json")])
assert len(val) == 3 and val.vis_root == root

# %% dataset-subclass
import os

from lavis.common.utils import get_cache_path
from lavis.datasets.datasets.caption_datasets import CaptionDataset
from PIL import Image


class Shouting(CaptionDataset):
    def __init__(self, vis_processor, text_processor, vis_root, ann_paths, mark="!"):
        super().__init__(vis_processor, text_processor, vis_root, ann_paths)
        self.mark = mark
        self.annotation = [ann for ann in self.annotation if ann["caption"].endswith("0.")]

    def __getitem__(self, index):
        ann = self.annotation[index]
        image = Image.open(os.path.join(self.vis_root, ann["image"])).convert("RGB")
        return {"image": image, "text_input": ann["caption"].upper() + self.mark, "image_id": self.img_ids[ann["image_id"]]}


files = get_cache_path("coco/images"), [get_cache_path("coco/annotations/coco_karpathy_train.json")]
data = Shouting(None, None, *files)
assert len(data) == 3 and data[1]["text_input"] == "A THING, 0.!" and data[1]["image_id"] == 1


class Counted(CaptionDataset):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "count": len(self.annotation)}


assert Counted(None, None, *files)[5]["count"] == 6

# %% dataset-from-nothing
from lavis.datasets.datasets.base_dataset import BaseDataset


class Numbers(BaseDataset):
    def __init__(self, size):  # without super().__init__, which many leave out
        self.annotation = [{"value": number} for number in range(size)]
        self.vis_processor = lambda item: item * 2

    def __getitem__(self, index):
        return {"text_input": str(self.vis_processor(self.annotation[index]["value"]))}

    def __len__(self):
        return len(self.annotation)


data = Numbers(3)
data._add_instance_ids()
assert [data[i]["text_input"] for i in range(len(data))] == ["0", "2", "4"]
assert data.collater([data[0], data[1]]) == {"text_input": ["0", "2"]} and data.annotation[2]["instance_id"] == "2"
assert BaseDataset(vis_processor=None, text_processor=None, vis_root="", ann_paths=[]).annotation == []

# %% dataset-of-questions
from lavis.common.utils import get_cache_path
from lavis.datasets.datasets.vqa_datasets import VQADataset


class Yes(VQADataset):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, "answers": ["yes", "no"], "weights": [0.75, 0.25]}


data = Yes(None, None, get_cache_path("coco/images"), [get_cache_path("coco/annotations/vqa_train.json")])
data.set_processors(lambda image: __import__("torch").zeros(3, 4, 4), None)
batch = data.collater([data[0], data[1]])
assert batch["answer"] == ["yes", "no"] * 2 and batch["n_answers"].tolist() == [2, 2] and len(batch["weight"]) == 4


class Listed(VQADataset):
    def __init__(self, vis_processor, text_processor, vis_root, ann_paths):
        super().__init__(vis_processor, text_processor, vis_root, ann_paths)
        self.answer_list, self.split, self.images = ["yes", "no"], "dev", []  # names that ours have too
        self.vis_root = vis_root

    def __getitem__(self, index):
        return {"text_input": self.annotation[index]["question"], "question_id": index, "instance_id": str(index)}


data = Listed(None, None, get_cache_path("coco/images"), [get_cache_path("coco/annotations/vqa_train.json")])
assert data.split == "dev" and data.images == [] and data.collater([data[0]])["question_id"].tolist() == [0]

# %% concat-datasets
from lavis.datasets.builders import load_dataset
from lavis.datasets.data_utils import concat_datasets, reorg_datasets_by_split
from lavis.datasets.datasets.base_dataset import ConcatDataset

coco = load_dataset("coco_caption")
both = concat_datasets(reorg_datasets_by_split({"one": coco, "two": load_dataset("coco_retrieval")}))
assert isinstance(both["train"], ConcatDataset) and len(both["train"]) == 12 and both["val"] is coco["val"]

# %% custom-builder
import yaml
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.caption_datasets import CaptionDataset, CaptionEvalDataset

with open("mine.yaml", "w") as file:
    build_info = {
        "annotations": {split: {"url": f"https://example.org/{split}.json", "storage": f"coco/annotations/coco_karpathy_{split}.json"}
                        for split in ("train", "val")},
        "images": {"storage": "coco/images/"},
    }
    yaml.safe_dump({"datasets": {"mine": {"data_type": "images", "build_info": build_info}}}, file)


@registry.register_builder("mine")
class MineBuilder(BaseDatasetBuilder):
    train_dataset_cls = CaptionDataset
    eval_dataset_cls = CaptionEvalDataset

    DATASET_CONFIG_DICT = {"default": __import__("os").path.abspath("mine.yaml")}


data = load_dataset("mine")
assert [len(data["train"]), len(data["val"])] == [6, 3] and data["train"][0]["text_input"] == "A thing, 0."
assert "mine" in registry.list_datasets() and data["val"].split == "val"

# %% custom-builder-build
from lavis.common.registry import registry
from lavis.common.utils import get_cache_path
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.coco_caption_datasets import COCOCapDataset
from omegaconf import OmegaConf


@registry.register_builder("by_build")
class ByBuild(BaseDatasetBuilder):
    train_dataset_cls = COCOCapDataset

    def build(self):
        self.build_processors()
        info = self.config.build_info
        train = self.train_dataset_cls(
            vis_processor=self.vis_processors["train"],
            text_processor=self.text_processors["train"],
            vis_root=get_cache_path(info.get(self.data_type).storage),
            ann_paths=[get_cache_path(info.annotations.train.storage)],
        )
        return {"train": train}


cfg = OmegaConf.create({
    "data_type": "images",
    "vis_processor": {"train": {"name": "blip_image_eval", "image_size": 16}},
    "build_info": {"annotations": {"train": {"storage": "coco/annotations/coco_karpathy_train.json"}},
                   "images": {"storage": "coco/images"}},
})
assert ByBuild(cfg).build_datasets()["train"][0]["image"].shape == (3, 16, 16)

# %% builder-subclass
from lavis.datasets.builders.caption_builder import COCOCapBuilder
from lavis.datasets.datasets.coco_caption_datasets import COCOCapDataset, COCOCapEvalDataset


class Marked(COCOCapDataset):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "mark": 1}


class MarkedBuilder(COCOCapBuilder):
    train_dataset_cls = Marked
    eval_dataset_cls = COCOCapEvalDataset


data = MarkedBuilder().build_datasets()
assert data["train"][0]["mark"] == 1 and len(data["val"]) == 3 and data["train"].name == "coco_caption"

# %% builder-missing-file
import pytest
from lavis.datasets.builders import load_dataset

with pytest.raises(Exception, match="lavis-ext prepare nocaps") as error:  # LAVIS begins to download
    load_dataset("nocaps")
assert error.value.exit_code == 8

# %% load-processor
import numpy as np
from lavis.processors import load_processor
from PIL import Image

image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
assert load_processor("blip_image_eval")(image).shape == (3, 384, 384)
assert load_processor("blip2_image_train", cfg={"image_size": 32}).build(image_size=16)(image).shape == (3, 16, 16)
assert load_processor("blip_caption")("Two  Dogs!") == "two dogs" and load_processor("blip_question")("Why?") == "why?"

# %% processor-identity
from lavis.processors import BaseProcessor
from lavis.processors.base_processor import BaseProcessor as Same

assert BaseProcessor is Same and BaseProcessor()(5) == 5 and BaseProcessor.from_config()(6) == 6

# %% custom-processor
from lavis.common.registry import registry
from lavis.processors import load_processor
from lavis.processors.base_processor import BaseProcessor
from omegaconf import OmegaConf


@registry.register_processor("halver")
class Halver(BaseProcessor):
    def __init__(self, size=8):
        self.transform = lambda image: image.resize((size, size))

    def __call__(self, item):
        return self.transform(item)

    @classmethod
    def from_config(cls, cfg=None):
        if cfg is None:
            cfg = OmegaConf.create()
        return cls(size=cfg.get("size", 8))


from PIL import Image

assert load_processor("halver", OmegaConf.create({"name": "halver", "size": 4}))(Image.new("RGB", (9, 9))).size == (4, 4)
assert load_processor("halver")(Image.new("RGB", (9, 9))).size == (8, 8)
assert Halver().build(size=2)(Image.new("RGB", (9, 9))).size == (2, 2)

# %% processor-subclass
from lavis.common.registry import registry
from lavis.processors.blip_processors import BlipCaptionProcessor


@registry.register_processor("loud_caption")
class Loud(BlipCaptionProcessor):
    def __call__(self, caption):
        return super().__call__(caption).upper()

    @classmethod
    def from_config(cls, cfg=None):
        return cls(prompt=cfg.get("prompt", "") if cfg else "")


assert Loud.from_config({"prompt": "see "})("A dog.") == "SEE A DOG"

# %% processor-unknown-key
import pytest
from lavis.processors import load_processor

with pytest.raises(Exception, match="did you mean 'image_size'"):
    load_processor("blip_image_eval", {"image_sise": 16})

# %% processor-with-a-transform
import os

import torch
from lavis.common.registry import registry
from lavis.common.utils import get_cache_path
from lavis.datasets.datasets.caption_datasets import CaptionDataset
from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageBaseProcessor


class Flat(BlipImageBaseProcessor):
    def __init__(self, image_size=8, mean=None, std=None):
        super().__init__(mean=mean, std=std)
        self.size = image_size
        self.transform = lambda image: self.normalize(torch.zeros(3, self.size, self.size))

    def __call__(self, item):
        return self.transform(item)


class Prompted(BlipCaptionProcessor):
    def __init__(self, prompt=""):
        self.prompt = prompt
        self.max_words = 50


files = get_cache_path("coco/images"), [get_cache_path("coco/annotations/coco_karpathy_train.json")]
data = CaptionDataset(Flat(), Prompted("see "), *files)
for sample in (data[0], data.load(0, torch.Generator())):
    assert sample["image"].shape == (3, 8, 8) and abs(float(sample["image"][0, 0, 0]) + 1.7923) < 1e-3
    assert sample["text_input"] == "see a thing, 0"

# %% builder-of-a-config
from argparse import Namespace

from lavis.common.config import Config
from lavis.common.registry import registry

cfg = Config(Namespace(cfg_path="run.yaml", options=["datasets.coco_caption.build_info.images.storage=coco/images"]))
builder = registry.get_builder_class("coco_caption")(cfg.datasets_cfg.coco_caption)
assert builder.build_datasets()["train"][0]["image"].shape == (3, 64, 64)

# %% builder-downloads
from lavis.datasets.builders.caption_builder import COCOCapBuilder

done = []


class Own(COCOCapBuilder):
    def _download_ann(self):
        super()._download_ann()
        done.append("annotations")

    def _download_vis(self):
        done.append("pictures")


Own().build_datasets()
assert done == ["annotations", "pictures"]

# %% dataset-gives-none
import pytest
import torch
from lavis.common.utils import get_cache_path
from lavis.datasets.datasets.caption_datasets import CaptionDataset


class Holes(CaptionDataset):
    def __getitem__(self, index):
        if index == 1:
            return None
        if index == 2:
            open("nowhere.jpg")
        return {"text_input": "x"}


files = get_cache_path("coco/images"), [get_cache_path("coco/annotations/coco_karpathy_train.json")]
data = Holes(None, None, *files)
assert data.load(0, torch.Generator()) == {"text_input": "x"} and data.collater([data[0], data[1]]) == {"text_input": ["x"]}
for index in (1, 2):  # counted by a run, up to the tolerance of the data set
    with pytest.raises(Exception) as error:
        data.load(index, torch.Generator())
    assert error.value.exit_code == 5

# %% annotation-files
import json

from lavis.datasets.datasets.base_dataset import BaseDataset

json.dump({"a": {"q": 1}, "b": {"q": 2}}, open("d.json", "w"))
open("d.csv", "w").write("image,caption\na.jpg,hello\n")
open("d.jsonl", "w").write('{"image": "a.jpg"}\n')
assert [ann["sample_id"] for ann in BaseDataset(None, None, "", ["d.json"]).annotation] == ["a", "b"]
assert BaseDataset(ann_paths=["d.csv"]).annotation[0]["caption"] == "hello" and len(BaseDataset(ann_paths=["d.jsonl"])) == 1

# %% dataset-copies
import copy
import pickle

import torch
from lavis.datasets.builders import load_dataset

train = load_dataset("coco_caption")["train"]
part = copy.deepcopy(train)
part.annotation = part.annotation[:2]
assert (len(part), len(train)) == (2, 6) and len(pickle.loads(pickle.dumps(part))) == 2
assert len(torch.utils.data.Subset(train, [0, 1])) == 2 and len(torch.utils.data.ConcatDataset([train, train])) == 12
assert len([sample for sample in train]) == 6

# %% load-dataset-instruct
from lavis.datasets.builders import load_dataset

train = load_dataset("coco_caption_instruct")["train"]
sample = train[0]
assert sample["image"].shape == (3, 224, 224) and sample["text_input"] == sample["text_input"].lower().strip()
assert sample["text_output"] and set(train.collater([train[0], train[1]])) >= {"image", "text_input", "text_output"}

# %% batches-of-instructions
from lavis.datasets.builders.vqa_builder import COCOVQAInstructBuilder
from lavis.datasets.datasets.coco_vqa_datasets import COCOVQAInstructDataset

builder = COCOVQAInstructBuilder()
train = builder.build_datasets()["train"]
batch = train.collater([train[i] for i in range(3)])
assert len(batch["text_output"]) == len(batch["text_input"]) == 3  # LAVIS: as many as there are answers
assert all(one in train[i]["answers"] for i, one in enumerate(batch["text_output"]))
assert COCOVQAInstructDataset.card == "coco_vqa_instruct"

# %% blip-instruction
import pytest
from lavis.processors import load_processor
from lavis.processors.instruction_text_processors import BlipInstructionProcessor
from omegaconf import OmegaConf

asked = BlipInstructionProcessor.from_config(OmegaConf.create({"modality": "image", "task": "qa"}))("Is it red?")
assert "is it red?" in asked and asked == asked.lower()
assert load_processor("blip_instruction").build(task="caption")("A dog.") == "a dog"
assert BlipInstructionProcessor("{} ", 50, "image", "qa", cmu_dict_path=None)("Red?").startswith("{} ")  # the prompt stays
for key, value in (("modality", "video"), ("modality", "audio"), ("modality", "pc"), ("task", "classification")):
    for make in (lambda cfg: load_processor("blip_instruction", cfg), lambda cfg: BlipInstructionProcessor(**cfg)):
        with pytest.raises(Exception, match="not served here"):
            make({key: value, "cmu_dict_path": "words.p"})

# %% random-augment
import numpy as np
import pytest
import torch
from lavis.processors.randaugment import RandomAugment
from PIL import Image

img = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
torch.manual_seed(0)
seen = [RandomAugment(2, 7, isPIL=True)(Image.fromarray(img)) for _ in range(20)]
assert all(one.shape == img.shape and one.dtype == np.uint8 for one in seen)
assert any((one != img).any() for one in seen) and any((one == img).all() for one in seen)
torch.manual_seed(0)
assert all((RandomAugment(2, 7)(img) == one).all() for one in seen)


def applied(name, level=5):
    augment = RandomAugment(1, level, augs=[name])
    augment.get_random_ops = lambda: [(name, 1.0, level)]
    return augment(img)


assert (applied("Solarize") == np.where(img < 128, img, 255 - img)).all() and (applied("Posterize") == (img & 0b11000000)).all()
assert (applied("Posterize", 0) == 0).all() and (applied("Identity") == img).all()
assert np.abs(applied("Color").astype(int) - img).max() <= 1 and np.abs(applied("Contrast").astype(int) - img).max() <= 1
grey = applied("Color", 0).astype(int)  # a tenth of the colour is left
assert np.ptp(grey, axis=-1).max() <= 0.1 * 255 + 1 and np.ptp(applied("Contrast", 0).astype(int)) <= 0.1 * 255 + 1
with pytest.raises(Exception, match="Solarise"):
    RandomAugment(augs=["Solarise"])

# %% iter-loader
import random

import pytest
from lavis.datasets.datasets.dataloader_utils import IterLoader, MultiIterLoader, PrefetchLoader
from torch.utils.data import DataLoader

loader = IterLoader(DataLoader(list(range(5)), batch_size=2))
assert [next(loader).tolist() for _ in range(7)] == [[0, 1], [2, 3], [4], [0, 1], [2, 3], [4], [0, 1]]
assert loader.epoch == 2 and len(loader) == 3
random.seed(0)
mixed = MultiIterLoader([IterLoader(["a"]), IterLoader(["b"])], ratios=[1, 3])
assert 650 < [next(mixed) for _ in range(1000)].count("b") < 850
with pytest.raises(Exception, match="no iterator"):
    MultiIterLoader([DataLoader([1])])
with pytest.raises(Exception, match="ratios"):
    MultiIterLoader([loader], ratios=[1, 2])
batches = PrefetchLoader(DataLoader([{"x": float(i)} for i in range(5)], batch_size=2))
for _ in range(2):
    assert [batch["x"].tolist() for batch in batches] == [[0.0, 1.0], [2.0, 3.0], [4.0]]
assert len(batches) == 3 and batches.batch_size == 2

# %% laion-dataset
import io
import json
import tarfile

import pytest
from lavis.datasets.datasets.laion_dataset import LaionDataset, LaionInstructDataset
from lavis.processors import load_processor
from PIL import Image
from torch.utils.data import DataLoader

for shard in range(2):
    with tarfile.open(f"0000{shard}.tar", "w") as tar:
        for number in range(3):
            picture = io.BytesIO()
            Image.new("RGB", (40, 30), (80 * number, 0, 0)).save(picture, "JPEG")
            text = json.dumps({"caption": f"A bird, {shard}{number}"}).encode()
            for end, data in (("jpg", picture.getvalue()), ("json", text)):
                member = tarfile.TarInfo(f"{shard}{number}.{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

import os

location = os.path.join(os.getcwd(), "{00000..00001}.tar")
vis = load_processor("blip_image_eval", {"image_size": 32})
dataset = LaionDataset(vis_processor=vis, text_processor=lambda text: text.lower(), location=location)
batches = iter(DataLoader(dataset.inner_dataset, batch_size=2))
seen = [next(batches) for _ in range(6)]
assert seen[0]["image"].shape == (2, 3, 32, 32)
texts = [text for batch in seen for text in batch["text_input"]]
expected = sorted(f"a bird, {shard}{number}" for shard in range(2) for number in range(3))
assert sorted(texts[:6]) == sorted(texts[6:]) == expected
instruct = LaionInstructDataset(vis, load_processor("blip_caption"), location)
sample = next(iter(instruct.inner_dataset))
assert sample["text_input"] == "" and sample["text_output"] in expected


class Numbered(LaionDataset):
    def to_dict(self, sample):
        data = super().to_dict(sample)
        data["number"] = int(sample[1]["caption"][-2:])
        return None if data["number"] == 2 else data


with pytest.raises(Exception, match="1 of 6"):  # a sample that is left out is a fault, which is counted
    seen = []
    for sample in Numbered(vis, load_processor("blip_caption"), location):
        seen.append(sample)
assert sorted(sample["number"] for sample in seen) == [0, 1, 10, 11, 12] and seen[0]["text_input"].startswith("a bird")
with pytest.raises(Exception, match="shards"):
    LaionDataset(vis, None, location="nowhere/{00000..00001}.tar")
