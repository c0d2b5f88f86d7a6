"""Detectors of transformers behind the protocol: which rows are features, which columns are classes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import ConfigError, IntegrityError, NetworkError, UsageError
from lavis_ext.features.detectors import DetectorOptions, build_detector
from lavis_ext.features.detectors.transformers_detector import class_probabilities, corners, query_states
from tests.features.detectors.small import picture


def save_processor(kind: str, folder: Path) -> None:
    import transformers

    made = getattr(transformers, kind)(size={"shortest_edge": 64, "longest_edge": 128})
    made.save_pretrained(folder)


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    folder = tmp_path_factory.mktemp("detr")
    small = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    config = DetrConfig(
        use_timm_backbone=False,
        backbone_config=ResNetConfig(**small, out_features=["stage4"]),
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=12,
        id2label={0: "cat", 1: "dog", 2: "kite"},
    )
    torch.manual_seed(0)
    DetrForObjectDetection(config).save_pretrained(folder)
    save_processor("DetrImageProcessorPil", folder)
    return folder


@pytest.fixture(scope="module")
def yolos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import YolosConfig, YolosForObjectDetection

    folder = tmp_path_factory.mktemp("yolos")
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 96],
        num_detection_tokens=11,
        num_labels=4,
    )
    torch.manual_seed(0)
    YolosForObjectDetection(config).save_pretrained(folder)
    save_processor("YolosImageProcessorPil", folder)
    return folder


def test_detr_gives_its_queries(detr: Path) -> None:
    options = DetectorOptions(weights=str(detr), min_boxes=5, max_boxes=12, conf=0.0, probabilities=True)
    found = build_detector("hf_detector", options)
    assert (found.columns, found.classes, found.attributes) == (24, ("cat", "dog", "kite"), ())
    regions = found.detect([picture(0, 80, 120)])[0]
    assert (regions.features.shape, regions.cls_prob.shape) == ((12, 24), (12, 4))
    assert np.allclose(regions.cls_prob.sum(1), 1, atol=1e-5)
    assert np.array_equal(regions.objects_id, regions.cls_prob[:, 1:].argmax(1))
    assert (np.diff(regions.objects_conf) <= 0).all()
    assert (regions.boxes >= 0).all() and (regions.boxes <= [120, 80, 120, 80]).all()
    assert regions.attrs_id is None and "attrs_id" not in regions.arrays


def test_features_are_those_of_the_model_itself(detr: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    image = picture(1, 80, 120)
    inputs = AutoImageProcessor.from_pretrained(detr)(images=image, return_tensors="pt")
    with torch.inference_mode():
        outputs = AutoModelForObjectDetection.from_pretrained(detr).eval()(**inputs)
    scores, labels = outputs.logits[0].softmax(-1)[:, :-1].max(-1)
    order = scores.argsort(descending=True, stable=True)
    options = DetectorOptions(weights=str(detr), min_boxes=12, geometry=True)
    regions = build_detector("hf_detector", options).detect([picture(5), image])[1]
    assert regions.features.shape == (12, 30)
    assert np.allclose(regions.features[:, :24], outputs.last_hidden_state[0, order].numpy(), atol=1e-5)
    assert np.array_equal(regions.objects_id, labels[order].numpy())
    x, y, width, height = outputs.pred_boxes[0, order[0]].tolist()
    expected = [(x - width / 2) * 120, (y - height / 2) * 80, (x + width / 2) * 120, (y + height / 2) * 80]
    assert regions.boxes[0].tolist() == pytest.approx(expected, abs=1e-2)


def test_the_queries_of_yolos_stand_behind_its_patches(yolos: Path) -> None:
    found = build_detector("hf_detector", DetectorOptions(weights=str(yolos), min_boxes=11))
    regions = found.detect([picture(0, 64, 96)])[0]
    assert regions.features.shape == (11, 16) and found.columns == 16
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    inputs = AutoImageProcessor.from_pretrained(yolos)(images=picture(0, 64, 96), return_tensors="pt")
    with torch.inference_mode():
        outputs = AutoModelForObjectDetection.from_pretrained(yolos).eval()(pixel_values=inputs["pixel_values"])
    patches = 1 + (64 // 16) * (96 // 16)
    queries = outputs.last_hidden_state[0, patches:].numpy()
    assert len(queries) == 11
    nearest = np.abs(regions.features[:, None] - queries[None]).max(-1).min(1)
    assert (nearest < 1e-4).all()


def test_the_numbers_do_not_depend_on_the_batch(detr: Path) -> None:
    found = build_detector("hf_detector", DetectorOptions(weights=str(detr)))
    images = [picture(0, 60, 90), picture(1, 100, 70)]
    for one, other in zip(found.detect(images), [found.detect([image])[0] for image in images], strict=True):
        assert np.array_equal(one.features, other.features) and np.array_equal(one.boxes, other.boxes)


def test_classes_with_and_without_a_column_for_no_object() -> None:
    logits = torch.tensor([[1.0, 2, 3, 0]])
    soft = class_probabilities(logits, known=3)
    assert torch.allclose(soft[0], logits[0].softmax(0)[[3, 0, 1, 2]])
    each = class_probabilities(logits, known=4)
    assert each.shape == (1, 5)
    assert torch.allclose(each[0, 1:], logits[0].sigmoid())
    assert each[0, 0].item() == pytest.approx(1 - torch.sigmoid(torch.tensor(3.0)).item())


def test_boxes_end_at_the_edges() -> None:
    found = corners(torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.0, 1.0, 0.5, 0.5]]), height=100, width=200)
    assert found.tolist() == [[50, 0, 150, 100], [0, 75, 50, 100]]


def test_a_model_without_queries_is_refused() -> None:
    from types import SimpleNamespace

    boxes = torch.zeros(1, 9, 4)
    for states in (None, torch.zeros(1, 5, 8), torch.zeros(1, 8, 4, 4)):
        with pytest.raises(ConfigError, match="no queries"):
            query_states(SimpleNamespace(last_hidden_state=states, pred_boxes=boxes))


def test_what_cannot_be_loaded_says_what_would_do(tmp_path: Path, detr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_EXT_OFFLINE", "1")
    with pytest.raises(UsageError, match="needs a model; name a folder"):
        build_detector("hf_detector")
    with pytest.raises(ConfigError, match="no folder"):
        build_detector("hf_detector", DetectorOptions(weights=str(tmp_path / "absent")))
    with pytest.raises(ConfigError, match=r"put config\.json"):
        build_detector("hf_detector", DetectorOptions(weights=str(tmp_path)))
    with pytest.raises(NetworkError, match=r"offline; .*hf download some/detector --local-dir DIR"):
        build_detector("hf_detector", DetectorOptions(weights="some/detector"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in detr.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(IntegrityError, match="broken"):
        build_detector("hf_detector", DetectorOptions(weights=str(broken)))


def test_identity_names_the_weights(detr: Path, yolos: Path) -> None:
    one, other = (
        build_detector("hf_detector", DetectorOptions(weights=str(folder))).identity for folder in (detr, yolos)
    )
    assert one["weights"] != other["weights"]
    assert str(one["weights"][0]).startswith("sha256:")
