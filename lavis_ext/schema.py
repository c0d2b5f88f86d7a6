"""What a run file may say: the dataclasses that every YAML becomes at the door, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ProcessorArgs = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """A registered processor and its arguments: `{name: blip2_image_train, image_size: 224}`."""

    name: str
    args: ProcessorArgs = field(default_factory=dict)

    @staticmethod
    def accept(value: Any) -> Any:
        """LAVIS' flat form: all keys beside `name` are arguments; a bare name is a processor without arguments."""
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict) or "args" in value:
            return value
        named = {"name": value["name"]} if "name" in value else {}
        return {**named, "args": {key: item for key, item in value.items() if key != "name"}}


@dataclass(frozen=True, kw_only=True)
class ProcessorPair:
    """The processors of the train split and of all others; None leaves the item as it is read."""

    train: ProcessorConfig | None = None
    eval: ProcessorConfig | None = None

    def of(self, split: str) -> ProcessorConfig | None:
        """The processor for a split: `train` for the split of that name, else `eval`."""
        return self.train if split == "train" else self.eval


@dataclass(frozen=True, kw_only=True)
class AnnotationConfig:
    """Annotation files of one split; `storage` is relative to cache_root, `url`/`md5` as in LAVIS.

    A file is named by an artifact of the card, `name`, `name!member` for a file out of an archive, or `family/name` for
    one of another card; or by its path below cache_root, which is what has a suffix and no `!`.
    """

    artifact: list[str] = field(default_factory=list)
    instead: list[str] = field(default_factory=list)
    """The same split in another published form, taken where a mirror or the disk has that and not `artifact`."""
    url: list[str] = field(default_factory=list)
    storage: list[str] = field(default_factory=list)
    md5: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Where the images lie (relative to cache_root), and which artifacts each split needs (`name` or `family/name`)."""

    storage: str = ""
    artifacts: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BuildInfo:
    """LAVIS' `build_info`: annotations per split, images, or the storage of shards."""

    annotations: dict[str, AnnotationConfig] = field(default_factory=dict)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    storage: list[str] = field(default_factory=list)
    """Shards or folders of data sets without annotation files: a path, a brace or glob pattern, or a list of them."""

    @staticmethod
    def accept(value: Any) -> Any:
        """LAVIS names the folder of the images by `data_type`: `videos:` and `features:` mean the same as `images:`."""
        if not isinstance(value, dict):
            return value
        return {("images" if key in ("videos", "features") else key): item for key, item in value.items()}


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What a complete split holds."""

    samples: int | None = None
    images: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One data set of a run: its shape (`builder`), files and processors, and its weight in the mixture."""

    name: str
    builder: str = ""
    type: str = "default"
    family: str = ""
    dataset_card: str = ""
    manual: str = ""
    """What no command can fetch, and how a person gets it; told where it is missing."""
    on_request: bool = False
    """`prepare` of the family passes this config type over, that of the name unless it is `default`; `name[type]` asks
    for it."""
    data_type: Literal["images", "videos", "features"] = "images"
    build_info: BuildInfo = field(default_factory=BuildInfo)
    vis_processor: ProcessorPair = field(default_factory=ProcessorPair)
    text_processor: ProcessorPair = field(default_factory=ProcessorPair)
    counts: dict[str, SplitCounts] = field(default_factory=dict)
    weight: float | None = None
    """Share of the batches in a mixture; None: in proportion to its length."""
    max_samples: dict[str, int] = field(default_factory=dict)
    """Use only the first N samples of a split."""
    tolerance: float = 0.01
    """Share of samples that may be missing or corrupt before a run stops with exit code 8."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the builder."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., arXiv:2106.09685) on a frozen language model, under peft's names."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    target_modules: list[str] = field(default_factory=list)
    """Names that the adapted layers end with; empty: the projections of queries and values."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model of a run under LAVIS' keys; a key that an architecture does not use is refused by `check`."""

    arch: str
    model_type: str
    image_size: int = 224
    vit_model: Literal["eva_clip_g", "clip_L"] = "eva_clip_g"
    vit_precision: Literal["fp16", "bf16", "fp32"] = "fp32"
    drop_path_rate: float = 0.0
    use_grad_checkpoint: bool = False
    freeze_vit: bool = True
    freeze_llm: bool = True
    llm_precision: Literal["fp16", "bf16", "fp32"] = "fp32"
    """Of a frozen language model; one that is trained stays in fp32."""
    tokenizer: str | None = None
    """A folder in transformers' form (as given, or below a configs folder) or hub name; None: `pretrained`'s."""
    num_query_token: int = 32
    prompt: str = ""
    max_txt_len: int = 32
    apply_lemmatizer: bool = False
    load_pretrained: bool = True
    pretrained: str | None = None
    """A local folder or hub name in transformers' form."""
    load_finetuned: bool = False
    finetuned: str | None = None
    """A checkpoint of ours (`checkpoint_*/`), or a folder in transformers' form, put over `pretrained`."""
    opt_model: str | None = None
    t5_model: str | None = None
    llama_model: str | None = None
    end_sym: str = "\n"
    only_proj: bool = False
    lora: LoraConfig | None = None
    """Adapters on the language model, which stays frozen; needs peft."""
    qformer_weight_path: str | None = None
    proj_weight_path: str | None = None
    bert_model: str | None = None
    """First stage: the BERT that the Q-Former starts from, a folder or hub name; None: all of it is `pretrained`'s."""
    cross_attention_freq: int = 2
    embed_dim: int = 256
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For models built from scratch: transformers' arguments of `vision_config`, `qformer_config`, `text_config`."""

    head: Literal["sequence", "pair", "caption", "pretrain"] = "sequence"
    """Oscar's: a class of one input or of `num_choice` together, words at masked places, or words and matching."""
    num_labels: int | None = None
    """None: as many as the vocabulary of answers of the data set has."""
    loss_type: Literal["bce", "kl", "ce", "xe", "sfmx"] = "ce"
    """bce: sigmoid, summed over classes; kl: against soft targets; all others: softmax cross-entropy."""
    classifier: Literal["linear", "mlp"] = "linear"
    cls_hidden_scale: int = 2
    """Width of the `mlp` classifier's inner layer, in hidden sizes."""
    use_pair: bool = False
    """Upstream's flag for `head: pair`."""
    num_choice: int = 2
    img_feature_dim: int = 2054
    """2048 numbers of appearance and 6 of the box."""
    use_img_layernorm: bool = False
    """A LayerNorm over the projected regions (VinVL); told from the weights where there are any."""
    img_layer_norm_eps: float = 1e-12
    drop_out: float = 0.1
    num_hidden_layers: int | None = None
    """Layers of a smaller model, the first of `pretrained`'s; None: all."""
    layers: list[int] = field(default_factory=list)
    """Which layers of `pretrained` a smaller model starts from, counted from 0; empty: the first."""
    num_contrast_classes: int = 2
    """`head: pretrain`: 2 (matches, or not), or 3 (the text or the tags do not)."""
    label_smoothing: float = 0.0
    drop_worst_ratio: float = 0.0
    """`head: caption`: share of the tokens with the highest loss that is left out …"""
    drop_worst_after: int = 0
    """… after so many training batches."""
    tie_weights: bool = True
    """The last matrix of a word head is that of the word embeddings."""
    freeze_embedding: bool = False
    """Word embeddings are not trained."""
    max_seq_a_length: int = 40
    """`head: caption`: where the positions of object tags begin, as in training."""


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """A registered term of distillation and its arguments: `{name: pkd, weight: 1000}`, or the bare name."""

    name: str
    weight: float | None = None
    """Its share of the loss, within `alpha`; None: the published one (docs/oscar.md)."""
    args: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def accept(value: Any) -> Any:
        """All keys beside `name` and `weight` are arguments; a bare name has none."""
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict) or "args" in value:
            return value
        own = {key: value[key] for key in ("name", "weight") if key in value}
        return {**own, "args": {key: item for key, item in value.items() if key not in own}}


Strategy = Literal["first", "last", "skip", "both"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What `task: distill` teaches and how: loss = (1 - alpha) * task + alpha * sum of weight * term."""

    task: str
    """The task that is learnt and evaluated."""
    teacher: ModelConfig | str
    """A model section (what it does not say is the student's), or a folder: a run, a checkpoint, or upstream's."""
    terms: list[TermConfig] = field(default_factory=lambda: [TermConfig(name="mkd")])
    alpha: float = 0.5
    temperature: float = 5.0
    kd_weights: dict[str, float] = field(default_factory=lambda: {"full": 0.5, "text": 0.25, "image": 0.25})
    """Share of each view in `mkd`."""
    student_init: Literal["first", "last", "skip", "teacher-first", "teacher-last", "teacher-skip", "none"] = "none"
    """Layers of `model.pretrained` or of the teacher that the student starts from; none: as the model section says."""
    strategy: Strategy | list[list[int]] = "first"
    """Which layers of the teacher each layer of the student moves; or a list of [student, teacher]."""
    teacher_update: Literal["none", "reptile", "reptile_adamw"] = "none"
    """reptile: by meta_lr towards the student after an inner step; reptile_adamw: that way by AdamW, as published."""
    meta_batch: Literal["same", "next"] = "same"
    """Whether the student then learns from the batch of the inner step, or from the one after it."""
    inner_optimizer: Literal["sgd", "adamw"] = "sgd"
    inner_lr: float | None = None
    """None: run.init_lr."""
    inner_steps: int = 1
    inner_clip: float | None = None
    """Largest norm of the inner gradient; None: any."""
    teacher_lr: float | None = None
    """Rate of reptile_adamw; None: run.init_lr."""
    meta_lr: float | None = None
    """Step of reptile, a share of the way; None: teacher_lr."""
    meta_schedule: Literal["constant", "linear"] = "constant"
    """linear: meta_lr or teacher_lr falls to 0 at the end of the run."""
    meta_clip: float | None = None
    """Largest norm of the way from teacher to student; None: any."""
    cache: Literal["none", "float16", "float32"] = "none"
    """Keep the logits of a teacher that does not move in files of this precision, once for all epochs and runs."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run trains and evaluates: LAVIS' `run:` keys, and ours at the end; anything else is an error."""

    task: str
    runner: str = "runner_base"
    eval_task: str | None = None
    """The task that validates and tests where `task` has no evaluation of its own (VPGTrans: `captioning`)."""
    output_dir: str = "output"
    """Relative to the working directory; each run makes `output_dir/<job id>/`."""
    job_id: str | None = None
    """Default: the start time. Naming it makes a second start of the same command resume the first."""
    seed: int = 42
    device: str = "auto"
    """auto | cpu | cuda | cuda:N"""
    evaluate: bool = False
    train_splits: list[str] = field(default_factory=list)
    valid_splits: list[str] = field(default_factory=list)
    test_splits: list[str] = field(default_factory=list)

    lr_sched: str = "linear_warmup_cosine_lr"
    init_lr: float = 1e-4
    min_lr: float = 0.0
    warmup_lr: float = -1.0
    """Start of the warm-up; -1: init_lr."""
    warmup_steps: int = 0
    lr_decay_rate: float | None = None
    lr_granularity: Literal["epoch", "iter"] = "epoch"
    """epoch: LAVIS' rule, one rate an (inner) epoch and the warm-up in epoch 0; iter: with every micro-batch."""
    lr_layer_decay: float = 1.0
    """Share of the rate that each block of the image encoder has of the one above it."""
    weight_decay: float = 0.05
    optimizer: Literal["adamw", "adamax"] = "adamw"
    beta2: float = 0.999
    adam_epsilon: float = 1e-8

    max_epoch: int | None = None
    max_iters: int | None = None
    """Micro-batches in all (LAVIS' runner_iter)."""
    iters_per_inner_epoch: int | None = None
    batch_size_train: int = 64
    batch_size_eval: int = 64
    num_workers: int = 2
    """Loader threads."""
    group_by_length: bool = False
    """Training batches of samples of like length, within windows of 50 shuffled batches, of data sets that know lengths
    (docs/region-datasets.md): less padding, but other batches than those that published values came from."""
    accum_grad_iters: int = 1
    amp: bool = False
    use_dist_eval_sampler: bool = True
    log_freq: int = 50
    save_freq: int = 1
    """Epochs between checkpoints."""
    val_freq: int = 1
    save_last: bool = True
    resume_ckpt_path: str | None = None

    num_beams: int = 5
    max_len: int = 30
    min_len: int = 1
    top_p: float = 0.9
    temperature: float = 1.0
    length_penalty: float | None = None
    """None: 1 for captions, -1 for answers, as in LAVIS."""
    repetition_penalty: float = 1.0
    prompt: str = ""
    num_keep_best: int = 1
    """`oscar_caption`: captions an image of beam search; the first is scored."""
    use_cbs: bool = False
    """`oscar_caption`: beam search that names what was detected …"""
    min_constraints_to_satisfy: int = 2
    """… at least so many of it."""
    scst: bool = False
    """`oscar_caption`: learn from CIDEr-D of drawn captions (Rennie et al., arXiv:1612.00563), not hidden words."""
    sc_train_sample_n: int = 5
    """Captions that are drawn of each image."""
    sc_baseline_type: Literal["greedy", "sample"] = "greedy"
    """What a drawn caption must be better than: the greedy one, or the mean of the others drawn."""
    report_metric: bool = True
    extra_metrics: list[Literal["METEOR", "SPICE"]] = field(default_factory=list)
    """Caption scores that need Java, beside BLEU, ROUGE-L and CIDEr; left out with a warning where it is not there."""
    annotation_file: str | None = None
    sample_id_key: str | None = None
    caption_key: str = "caption"
    load_gt_from_file: bool = False
    img_ids: list[str] = field(default_factory=list)
    inference_method: Literal["generate", "rank"] = "generate"
    num_ans_candidates: int = 128
    ques_files: dict[str, str] = field(default_factory=dict)
    anno_files: dict[str, str] = field(default_factory=dict)
    k_test: int = 128

    precision: Literal["no", "fp16", "bf16"] | None = None
    """None: fp16 on a GPU when `amp` is set, bf16 on a CPU, else no."""
    clip_grad_norm: float | None = None
    save_steps: int | None = None
    """Optimizer steps between checkpoints, besides those of `save_freq`."""
    keep_checkpoints: int = 2
    allow_config_drift: bool = False
    """Resume although keys that change the numbers differ from the checkpoint's."""
    parallel: Literal["ddp", "fsdp"] | None = None
    """Several processes: each holds all parameters (ddp) or part of them (fsdp); None: accelerate's word, else ddp."""
    distill: DistillConfig | None = None
    """Of `task: distill`."""
    wait_minutes: float = 60.0
    """How long processes wait for the first one while it prepares data, writes or scores."""
    find_unused_parameters: bool = False
    """For distributed training of a model whose loss does not reach every trained parameter."""
    tensorboard: bool = True
    wandb: bool = False
    report: bool = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment: a run, its model, its data sets, and the file that it came from."""

    run: RunConfig
    model: ModelConfig | None
    datasets: dict[str, DatasetConfig]
    cache_root: str
    path: str = ""
    resolved: dict[str, Any] = field(default_factory=dict)
    """The merged tree as plain values, written to `config.yaml` of the run."""
    places: dict[str, str] = field(default_factory=dict)
    """`dotted.key` → `file:line` or `--options`, for messages."""
