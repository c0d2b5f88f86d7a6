"""The rules of `import_args`, for flags of upstream's that do not simply become one key; each is called once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from lavis_ext.oscar.import_table import BETA, Draft

OURS = ("datasets", "pretrained_models", "exp")
"""Folders of a checkout of Oscar that `lavis-ext prepare oscar` lays out below cache_root/oscar."""

VINVL_MODELS = ("image_captioning", "coco_ir", "vqa", "gqa", "nlvr2", "od_models")
MISNAMED = {
    "vinvl/model_ckpts/coco_ir/base/checkpoint-0660000": "vinvl/model_ckpts/coco_ir/large/checkpoint-0660000",
    "oscar/pretrained_models/base-vg-labels/ep_55_1617000": "oscar/pretrained_models/large-vg-labels/ep_55_1617000",
}
"""Starts of large models, which the documents look for in the folders of the base ones."""


def moved(path: str) -> str:
    """A path of the documents as it is below cache_root: `datasets/vqa/…` → `oscar/datasets/vqa/…`.

    VinVL's document names its models in three ways; `lavis-ext prepare` puts them below `vinvl/model_ckpts`.
    """
    parts = PurePosixPath(path).parts
    if parts[:2] == ("pretrained_models", "image_captioning") or (
        parts[:1] == ("vinvl",) and len(parts) > 1 and parts[1] in VINVL_MODELS
    ):
        found = str(PurePosixPath("vinvl", "model_ckpts", *parts[1:]))
    elif parts[:1] == ("model_ckpts",):
        found = str(PurePosixPath("vinvl", *parts))
    else:
        found = str(PurePosixPath("oscar", *parts)) if parts[:1] and parts[0] in OURS else path
    return MISNAMED.get(found, found)


TEST_DEV = {"run_vqa": "test_dev", "run_gqa": "testdev"}
UPSTREAM_SPLITS = {"train": "train", "minival": "val", "val": "val", "test": "test"}
FROZEN = (
    "upstream's code never moves the teacher (its gradient is set under a misspelt name); reptile is what was meant"
)


def splits(draft: Draft) -> None:
    """`--do_*`: which splits are trained on, validated and tested."""
    given = draft.given
    test = _tested(draft)
    if draft.trains:
        validates = draft.asks or bool(given.get("evaluate_during_training"))
        draft.put("run.train_splits", ["train"])
        if given.get("do_train_val"):
            _merged(draft)
        draft.put("run.valid_splits", ["val"] if validates else [])
        draft.put("run.test_splits", [split for split in test if not (validates and split == "val")])
        if given.get("evaluate_during_training"):
            draft.note("evaluate_during_training", "a run validates at the end of every epoch (run.val_freq)")
        return
    if given.get("evaluate_during_training"):
        draft.note("evaluate_during_training", "nothing is trained")
    if not test:
        draft.refuse("do_train", "is missing, and --do_eval and --do_test too", "say what the command is to do")
    draft.put("run.evaluate", True)
    draft.put("run.test_splits", test)


MERGED = {"": "vqa!vqa/2k/", "vinvl": "vinvl/vqa!"}


def _merged(draft: Draft) -> None:
    """VQA's `--do_train_val`: upstream's own file of train and val, with the features of both."""
    if draft.given.get("do_train"):
        draft.refuse("do_train_val", "comes with --do_train: upstream would train twice", "give one of them")
    folder = MERGED[draft.form]
    names = [f"{folder}{split}_img_frcnn_feats.pt" for split in ("train", "val")]
    draft.build["annotations"] = {"train": {"artifact": [f"{folder}train+val2014_qla_mrcnn.json"]}}
    draft.build["features"] = {"artifacts": {"train": names}}
    draft.remarks.append(("run.train_splits", "train is upstream's file of train and val; val is part of it"))


def _tested(draft: Draft) -> list[str]:
    given = draft.given
    if draft.asks:
        wanted = [("do_eval", "val"), ("do_test_dev", TEST_DEV.get(draft.script.name, "test")), ("do_test", "test")]
        return [split for flag, split in wanted if given.get(flag)]
    if not (given.get("do_test") or given.get("do_eval")):
        return []
    flag = "test_split" if "test_split" in draft.script.flags else "test_yaml"
    named = str(draft.value(flag)).removesuffix(".yaml")
    if named not in UPSTREAM_SPLITS:
        draft.refuse(flag, f"no split '{named}'", f"one of {', '.join(UPSTREAM_SPLITS)}")
    return [UPSTREAM_SPLITS.get(named, "test")]


def weights(draft: Draft) -> None:
    """What the model starts from: the student's or the named weights; of a test the folder that upstream loads."""
    flag = "student_model" if draft.script.term else "model_name_or_path"
    if not draft.trains:
        flag = "output_dir" if draft.asks else "eval_model_dir"
    name = draft.given.get(flag)
    if not name:
        draft.refuse(flag, "is missing", "name the folder of a checkpoint")
        return
    for other in ("model_name_or_path", "eval_model_dir", "student_model"):
        if other != flag and draft.given.get(other, name) != name:
            draft.note(other, f"upstream takes the weights of --{flag}")
    path = moved(str(name))
    draft.sections["model"] = {
        "arch": "oscar",
        "model_type": "large" if "large" in path else "base",
        "pretrained": path,
        **draft.sections["model"],
    }
    if path in MISNAMED.values() and "large" not in str(name):
        draft.remarks.append(("model.pretrained", f"the document says {name}; the model of that name is a large one"))
    if path == name and not PurePosixPath(path).is_absolute():
        draft.remarks.append(
            ("model.pretrained", f"{path} is looked for below cache_root, then in the working directory")
        )


def teacher(draft: Draft) -> None:
    """`task: distill`, with the terms of the script."""
    name, term = draft.given.get("teacher_model"), draft.script.term
    if not name:
        draft.refuse("teacher_model", "is missing", "name the folder of the fine-tuned teacher")
        return
    terms = _layer_terms(draft) if term in BETA else [term]
    section = {"task": draft.script.task, "teacher": moved(str(name)), "terms": terms}
    draft.sections["distill"] = {**section, **draft.sections["distill"]}
    if term == "mkd":
        draft.put("distill.teacher_update", "none")
        draft.remarks.append(("run.distill.teacher_update", FROZEN))


def _layer_terms(draft: Draft) -> list[dict[str, Any]]:
    """The script's (1-α)·task + α·logits + β·layers; here α weighs all terms, so that β is divided by it.

    Its loss of logits is a mean over classes too (KLDivLoss, times T², for pkd), which is what `soft_ce` is.
    """
    term, alpha, t = draft.script.term, draft.value("alpha"), draft.value("temperature")
    beta = draft.given.get("beta", BETA[term])
    if not alpha:
        draft.refuse("alpha", "0 leaves the teacher's layers no weight here", "give it more, if only 0.001")
        return []
    draft.remarks.append(("run.distill.terms", f"{term} weighs --beta / --alpha: alpha weighs all terms here"))
    if (draft.script.name, term) == ("run_vqa", "pkd"):
        what = "the published script leaves each epoch after its first batch, by a break that stands too far left"
        draft.remarks.append(("run.max_epoch", f"{what}; all batches are trained on here"))
    return [{"name": "soft_ce", "weight": t * t if term == "pkd" else 1}, {"name": term, "weight": beta / alpha}]


def data_dir(draft: Draft) -> None:
    """The data set, its form (Oscar's or VinVL's), and its storage: cache_root, or the folder of the published files.

    All flags that name files of it must name one form: tags of one detector do not go with regions of another.
    """
    folders = draft.script.folders
    draft.dataset, draft.form = _named(next(iter(folders.values())))
    given = [flag for flag in ("data_dir", "txt_data_dir") if flag in draft.given]
    found = {flag: place for flag in given if (place := _place(draft, flag))}
    first = next(iter(found), None)
    if first:
        draft.dataset, draft.form, root = found[first]
        if root in (".", "oscar", "vinvl"):
            kind = f"[{draft.form}]" if draft.form else ""
            for flag in found:
                draft.note(flag, f"the data set is below cache_root (lavis-ext prepare {draft.dataset}{kind})")
        else:
            draft.storage = root
    elif not given and _is_vinvl(draft):
        draft.form = "vinvl"
    for flag, place in found.items():
        if first and place != found[first]:
            what = f"'{draft.given[flag]}' is another folder or form than --{first} names"
            draft.refuse(flag, what, "name one form, Oscar's or VinVL's, for all of them")
    _features(draft, first)


def _named(name: str) -> tuple[str, str]:
    """`oscar_vqa[vinvl]` → its data set and type."""
    dataset, _, form = name.rstrip("]").partition("[")
    return dataset, form


def _place(draft: Draft, flag: str) -> tuple[str, str, str] | None:
    """Data set, form and root of a folder of the published data that a flag names; a mistake where it is none."""
    folders = draft.script.folders
    parts = PurePosixPath(str(draft.given[flag])).parts
    known = sorted(folders, key=len, reverse=True)
    found = next((one for one in known if parts[-one.count("/") - 1 :] == PurePosixPath(one).parts), None)
    if found is None:
        way_out = f"give a folder that ends with {' or '.join(folders)}, as the published data have it"
        draft.refuse(flag, f"'{draft.given[flag]}' is no folder of the published data", way_out)
        return None
    depth = len(PurePosixPath(found.removeprefix("vinvl/")).parts)
    return (*_named(folders[found]), str(PurePosixPath(*parts[:-depth])))


def _is_vinvl(draft: Draft) -> bool:
    """Whether a command that names no folder of data is one of VinVL's: by its features, else by its weights."""
    if f"{draft.dataset}[vinvl]" not in draft.script.folders.values():
        return False
    if "img_feat_file" in draft.given:
        return True
    weights = (draft.given.get(flag) for flag in ("model_name_or_path", "eval_model_dir", "student_model"))
    if any(moved(str(name)).startswith("vinvl/") for name in weights if name):
        draft.remarks.append((f"datasets.{draft.dataset}.type", "the weights are VinVL's, and so are the data"))
        return True
    return False


VQA_FILES = {"train": "train", "val": "val", "test_dev": "test-dev2015", "test": "test2015"}


def _features(draft: Draft, named: str | None) -> None:
    """`--img_feat_file` (retrieval: with the tags in `predictions.tsv` beside it), and VQA's features as TSV."""
    given = draft.given
    if (file := given.get("img_feat_file")) is not None:
        draft.put("args.features", moved(str(file)))
        if named and draft.form != "vinvl":
            what = f"goes with VinVL's data set, and --{named} names Oscar's"
            draft.refuse(
                "img_feat_file", what, f"leave --{named} out, or name vinvl/{next(iter(draft.script.folders))}"
            )
    if given.get("img_feat_format") == "tsv" and draft.script.name == "run_vqa":
        if (folder := given.get("img_feat_dir")) is None:
            draft.refuse("img_feat_dir", "is missing", "name the folder of the features as TSV")
            return
        names = {**VQA_FILES, **({"train": "train+val"} if given.get("do_train_val") else {})}
        place = PurePosixPath(moved(str(folder)))
        files = {split: str(place / f"{name}_img_frcnn_feats.tsv") for split, name in names.items()}
        draft.put("args.features", files)
    elif "img_feat_dir" in given:
        draft.note("img_feat_dir", "only --img_feat_format tsv of VQA reads it")


def output_dir(draft: Draft) -> None:
    """The run's folder is the one that the command names, where the next command looks for the model.

    A test of pairs or captions writes beside the weights, as upstream's does.
    """
    named = draft.given.get("output_dir")
    if not draft.asks and not draft.trains:
        if named is not None:
            draft.note("output_dir", "upstream writes what a test yields into --eval_model_dir")
        named = draft.given.get("eval_model_dir")
    if folder := named or draft.value("output_dir"):
        path = PurePosixPath(str(folder))
        parent, name = (path.parent, path.name) if path.name not in ("", "..") else (path, ".")
        draft.put("run.output_dir", str(parent))
        draft.put("run.job_id", name)


def label_file(draft: Draft) -> None:
    """The vocabulary of answers."""
    for flag in ("label_file", "label2ans_file"):
        if flag in draft.given:
            draft.put(f"args.{flag}", moved(str(draft.given[flag])))
    if "label_file" in draft.given and "label2ans_file" not in draft.given:
        draft.put("args.label2ans_file", None)  # what lies beside the label file, not what the data set names


def width(draft: Draft) -> None:
    """How many numbers a region has."""
    if "img_feature_dim" in draft.given:
        draft.put("model.img_feature_dim", draft.given["img_feature_dim"])
        draft.put("args.img_feature_dim", draft.given["img_feature_dim"])


def length(draft: Draft) -> None:
    """`--max_steps` optimizer steps where they are given, else epochs; ours are counted in micro-batches.

    Of pre-training `--max_iters` batches, in inner epochs of `--ckpt_period`.
    """
    if "max_iters" in draft.script.flags:
        draft.put("run.runner", "runner_iter")
        draft.put("run.max_iters", draft.value("max_iters"))
        draft.put("run.iters_per_inner_epoch", max(1, min(draft.value("ckpt_period"), draft.value("max_iters"))))
        return
    steps, epochs = draft.given.get("max_steps", -1), draft.value("num_train_epochs")
    if steps > 0:
        draft.put("run.max_iters", steps * _window(draft))
        if "num_train_epochs" in draft.given:
            draft.note("num_train_epochs", "--max_steps goes before it")
        return
    draft.put("run.max_epoch", int(epochs))
    if int(epochs) != epochs:
        draft.note("num_train_epochs", f"upstream trains {int(epochs)} whole epochs")


def warmup(draft: Draft) -> None:
    """The warm-up from 0, in micro-batches."""
    draft.put("run.warmup_lr", 0)
    draft.put("run.warmup_steps", draft.given.get("warmup_steps", 0) * _window(draft))


def scheduler(draft: Draft) -> None:
    """`linear` and `constant`, both with every step."""
    linear = draft.value("scheduler") == "linear"
    draft.put("run.lr_sched", "linear_warmup_linear_lr" if linear else "constant_lr")
    if not linear:
        draft.put("run.lr_granularity", "iter")


def pair(draft: Draft) -> None:
    """NLVR2 with an input for each image."""
    if not draft.given.get("use_pair"):
        draft.refuse("use_pair", "is missing: both images in one input is not offered", "add --use_pair")
    draft.put("model.head", "pair")
    draft.put("model.num_labels", 2)


def device(draft: Draft) -> None:
    """`--no_cuda`."""
    if draft.given.get("no_cuda"):
        draft.put("run.device", "cpu")


def precision(draft: Draft) -> None:
    """`--fp16`."""
    if draft.given.get("fp16"):
        draft.put("run.precision", "fp16")


def layernorm(draft: Draft) -> None:
    """`--use_img_layernorm 0|1`."""
    if "use_img_layernorm" in draft.given:
        draft.put("model.use_img_layernorm", bool(draft.given["use_img_layernorm"]))


def captions_val(draft: Draft) -> None:
    """How many captions of an image count; with a list of candidates the flag is the length of the list."""
    if "num_captions_per_img_val" not in draft.given:
        return
    if draft.given.get("eval_caption_index_file"):
        draft.note("num_captions_per_img_val", "the file of candidates says how many there are")
    else:
        draft.put("args.num_captions_per_img_val", draft.given["num_captions_per_img_val"])


def caption_yaml(draft: Draft) -> None:
    """The model's head, and that the files of the splits are those that the data set names."""
    draft.put("model.head", "caption")
    for split in ("train", "val"):
        name = draft.given.get(f"{split}_yaml", f"{split}.yaml")
        if name != f"{split}.yaml":
            way_out = "declare a data set of the shape region_caption"
            draft.refuse(f"{split}_yaml", f"'{name}' is not what the data set has, {split}.yaml", way_out)


CORPORA = {
    "coco_flickr30k_gqa_x152c4big2exp168.yaml": "",
    "coco_flickr30k_gqa_oi_x152c4big2exp168.yaml": "medium",
    "coco_flickr30k_googlecc_gqa_sbu_oi_x152c4big2exp168.yaml": "large",
}


def corpus(draft: Draft) -> None:
    """`--dataset_file`: which of the published corpora; the head and its classes."""
    name = draft.given.get("dataset_file")
    if name is None:
        draft.refuse("dataset_file", "is missing", f"name one of {', '.join(CORPORA)}")
    elif str(name) not in CORPORA:
        way_out = "declare a data set of the shape region_pretrain for it"
        draft.refuse("dataset_file", f"'{name}' is none of the published corpora", way_out)
    draft.form = CORPORA.get(str(name), "")
    draft.put("model.head", "pretrain")
    share = draft.value("texta_false_prob")
    draft.put("model.num_contrast_classes", 3 if 0 < share < 0.5 else 2)
    draft.put("args.texta_false_prob", share)
    draft.put("run.weight_decay", 0.01)  # upstream's code has it, no flag


def clipping(draft: Draft) -> None:
    """`--max_grad_norm` of pre-training, where -1 means none."""
    if draft.value("max_grad_norm") > 0:
        draft.put("run.clip_grad_norm", draft.value("max_grad_norm"))


def tag_place(draft: Draft) -> None:
    """Where the positions of tags begin: the data set's matter and the model's."""
    if "max_seq_a_length" in draft.given or draft.trains:
        draft.put("args.max_seq_a_length", draft.value("max_seq_a_length"))
        draft.put("model.max_seq_a_length", draft.value("max_seq_a_length"))


def _window(draft: Draft) -> int:
    return max(int(draft.given.get("gradient_accumulation_steps", 1)), 1)


RULES: dict[str, Callable[[Draft], None]] = {
    rule.__name__: rule
    for rule in (
        *(splits, weights, teacher, data_dir, output_dir, label_file, width, length, warmup, scheduler, pair, device),
        *(precision, layernorm, captions_val, caption_yaml, tag_place, corpus, clipping),
    )
}
