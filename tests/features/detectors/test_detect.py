"""The detectors whole: the published rules, the same numbers in any company, what the options add."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import UsageError
from lavis_ext.common.registry import RegistryError, detectors, registry
from lavis_ext.features import create_store, export_store, import_features, open_store
from lavis_ext.features.detectors import DetectedRegions, Detector, DetectorOptions, build_detector, geometry
from lavis_ext.features.detectors.base import prepare_caffe, prepare_maskrcnn
from lavis_ext.features.detectors.c4 import C4Detector
from tests.features.detectors.small import detector, drawn, picture
from tests.features.detectors.test_boxes import suppressed_slowly

FRAMES = ["caffe", "maskrcnn"]


def equal(one: DetectedRegions, other: DetectedRegions) -> bool:
    names = ("boxes", "features", *one.arrays)
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def all_proposals(
    found: C4Detector, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]:
    """Proposals in the resized image, class probabilities with background first, features."""
    settings = found.settings
    prepare = prepare_caffe if settings.frame == "caffe" else prepare_maskrcnn
    prepared = prepare(image, settings.mean, settings.short, settings.long)
    with torch.inference_mode():
        mapped = found.network.backbone(prepared.pixels)
        proposals = found.propose(mapped, prepared)
        features, logits = found.describe(mapped[0], proposals)
    return proposals.numpy(), logits.softmax(1).numpy(), features.numpy(), prepared.scale


def best_by_class(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The loop of volta's script: class-wise suppression at 0.3, the best score of each box that was kept."""
    best = np.zeros(len(boxes), np.float32)
    for column in scores.T:
        keep = suppressed_slowly(boxes.astype(np.float64), column, 0.3)
        best[keep] = np.where(column[keep] > best[keep], column[keep], best[keep])
    return best


@pytest.mark.parametrize(("least", "most"), [(36, 36), (1, 9), (1, 100)])
def test_butds_regions_are_those_of_the_published_script(least: int, most: int) -> None:
    found = detector("caffe", min_boxes=least, max_boxes=most, conf=0.2, probabilities=True)
    proposals, scores, features, scale = all_proposals(found, picture(1))
    boxes = proposals / np.float32(scale[0])
    best = best_by_class(boxes, scores[:, 1:])
    keep = np.where(best >= 0.2)[0]
    if len(keep) < least:
        keep = np.argsort(-best, kind="stable")[:least]
    elif len(keep) > most:
        keep = np.argsort(-best, kind="stable")[:most]
    keep = keep[np.argsort(-best[keep], kind="stable")]

    regions = found.detect([picture(1)])[0]
    assert np.allclose(regions.boxes, boxes[keep], atol=1e-3)
    assert np.allclose(regions.features, features[keep], atol=1e-4)
    assert np.array_equal(regions.objects_id, scores[keep][:, 1:].argmax(1))
    assert np.allclose(regions.objects_conf, scores[keep][:, 1:].max(1), atol=1e-5)
    assert np.allclose(regions.cls_prob, scores[keep], atol=1e-5)


def test_vinvls_regions_keep_the_class_that_survived() -> None:
    """scene_graph_benchmark's `filter_results_peter`."""
    found = detector("maskrcnn", min_boxes=5, max_boxes=100)
    proposals, scores, _, scale = all_proposals(found, picture(2))
    masked = np.zeros_like(scores)
    for number in range(1, scores.shape[1]):
        keep = suppressed_slowly(proposals.astype(np.float64), scores[:, number], 0.3)
        masked[keep, number] = scores[keep, number]
    best, labels = masked.max(1), masked.argmax(1)
    order = np.argsort(-best, kind="stable")
    order = order[best[order] > 0][: min(max(int((best >= 0.2).sum()), 5), 100)]

    regions = found.detect([picture(2)])[0]
    back = np.float32([1 / scale[1], 1 / scale[0]] * 2)
    assert np.allclose(regions.boxes, proposals[order] * back, atol=1e-3)
    assert np.array_equal(regions.objects_id, labels[order] - 1)
    assert np.allclose(regions.objects_conf, best[order], atol=1e-5)


@pytest.mark.parametrize("frame", FRAMES)
def test_boxes_may_suppress_each_other_over_all_classes(frame: str) -> None:
    found = detector(frame, nms="agnostic", min_boxes=5)
    proposals, scores, _, scale = all_proposals(found, picture(3))
    boxes = proposals / np.float32(scale[0]) if frame == "caffe" else proposals
    likely = scores[:, 1:].max(1)
    keep = [k for k in suppressed_slowly(boxes.astype(np.float64), likely, 0.5) if likely[k] > 0.002]
    keep = keep[: max(int((likely[keep] >= 0.2).sum()), 5)]
    regions = found.detect([picture(3)])[0]
    assert np.allclose(regions.objects_conf, likely[keep], atol=1e-5)


@pytest.mark.parametrize("frame", FRAMES)
def test_attributes_come_from_features_and_class(frame: str) -> None:
    found = detector(frame, probabilities=True)
    regions = found.detect([picture(4)])[0]
    labels = regions.cls_prob.argmax(1) if frame == "caffe" else regions.objects_id + 1
    head = found.network.attribute
    with torch.inference_mode():
        embedded = torch.cat([torch.from_numpy(regions.features), head.cls_embedding(torch.from_numpy(labels))], 1)
        scores = head.attr_score(torch.relu(head.fc_attr(embedded))).softmax(1).numpy()
    assert np.allclose(regions.attrs, scores, atol=1e-5)
    assert np.array_equal(regions.attrs_id, scores[:, 1:].argmax(1))
    assert np.allclose(regions.attrs_conf, scores[:, 1:].max(1), atol=1e-5)


@pytest.mark.parametrize("frame", FRAMES)
def test_an_image_has_the_same_numbers_in_any_company(frame: str) -> None:
    found = detector(frame)
    images = [picture(seed, 100 + 13 * seed, 150 - 9 * seed) for seed in range(4)]
    together = found.detect(images)
    for image, regions in zip(images, together, strict=True):
        assert equal(found.detect([image])[0], regions)
    assert equal(found.detect(images[::-1])[-1], together[0])
    assert found.detect([]) == []


def test_a_seed_means_the_same_weights() -> None:
    one, again = (build_detector("tiny", DetectorOptions(seed=3)).detect([picture()])[0] for _ in range(2))
    other = build_detector("tiny", DetectorOptions(seed=4)).detect([picture()])[0]
    assert equal(one, again)
    assert not np.array_equal(one.features[: len(other)], other.features[: len(one)])


def test_global_randomness_plays_no_part() -> None:
    torch.manual_seed(5)
    one = build_detector("tiny").detect([picture()])[0]
    torch.manual_seed(6)
    assert equal(one, build_detector("tiny").detect([picture()])[0])


@pytest.mark.parametrize("frame", FRAMES)
def test_regions_have_the_form_that_is_promised(frame: str) -> None:
    image = picture(0, 90, 140)
    regions = detector(frame).detect([image])[0]
    n = len(regions)
    assert n >= 10
    assert (regions.height, regions.width) == (90, 140)
    assert (regions.boxes.shape, regions.boxes.dtype) == ((n, 4), np.float32)
    assert (regions.features.shape, regions.features.dtype) == ((n, 2048), np.float32)
    for name in ("objects_id", "attrs_id"):
        assert (getattr(regions, name).shape, getattr(regions, name).dtype) == ((n,), np.int64)
    for name in ("objects_conf", "attrs_conf"):
        values = getattr(regions, name)
        assert (values.shape, values.dtype) == ((n,), np.float32)
        assert ((values > 0) & (values <= 1)).all()
    assert (regions.boxes >= 0).all()
    assert (regions.boxes[:, 2] <= 140).all() and (regions.boxes[:, 3] <= 90).all()
    assert (regions.boxes[:, 2:] >= regions.boxes[:, :2]).all()
    assert sorted(regions.arrays) == ["attrs_conf", "attrs_id", "objects_conf", "objects_id"]


def test_geometry_is_oscars_six_columns() -> None:
    plain, wide = (detector("caffe", geometry=flag) for flag in (False, True))
    assert (plain.columns, wide.columns) == (2048, 2054)
    one, other = plain.detect([picture()])[0], wide.detect([picture()])[0]
    assert np.array_equal(other.features[:, :2048], one.features)
    x1, y1, x2, y2 = (one.boxes[:, i] for i in range(4))
    expected = np.stack([x1 / 160, y1 / 120, x2 / 160, y2 / 120, (x2 - x1) / 160, (y2 - y1) / 120], axis=1)
    assert np.allclose(other.features[:, 2048:], expected, atol=1e-6)
    assert other.features.dtype == np.float32
    assert geometry(np.zeros((0, 4), np.float32), 10, 10).shape == (0, 6)


@pytest.mark.parametrize("frame", FRAMES)
def test_low_precision_stays_near(frame: str) -> None:
    exact = detector(frame, min_boxes=20, max_boxes=20).detect([picture(1)])[0]
    near = detector(frame, min_boxes=20, max_boxes=20, precision="bfloat16").detect([picture(1)])[0]
    assert near.features.dtype == np.float32 and np.isfinite(near.features).all()
    assert abs(near.features.mean() - exact.features.mean()) < 0.1 * exact.features.mean()


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (12, 12), (1, 300), (300, 1), (20, 400)])
def test_odd_images_are_taken(frame: str, height: int, width: int) -> None:
    regions = detector(frame).detect([picture(0, 400, 400)[:height, :width]])[0]
    assert regions.features.shape == (len(regions), 2048)
    assert np.isfinite(regions.features).all()
    if frame == "caffe" and min(height, width) < 16:
        assert len(regions) == 0  # no side of 16 pixels fits: the rule of the published settings
    else:
        assert len(regions) > 0


def test_no_regions_are_still_a_row(tmp_path: Path) -> None:
    regions = detector("caffe", probabilities=True, geometry=True).detect([np.zeros((8, 8, 3), np.uint8)])[0]
    assert (regions.features.shape, regions.cls_prob.shape) == ((0, 2054), (0, 7))
    assert len(regions.as_row("x").features) == 0


def test_conf_decides_how_many() -> None:
    counts = [len(detector("caffe", conf=conf, min_boxes=0).detect([picture()])[0]) for conf in (0.0, 0.25, 1.0)]
    assert counts[0] >= counts[1] >= counts[2] == 0
    assert counts[0] > counts[2]


def test_rows_of_volta_hold_what_was_detected(tmp_path: Path) -> None:
    regions = detector("caffe", probabilities=True, min_boxes=6, max_boxes=6).detect([picture()])[0]
    with create_store(tmp_path / "store") as store:
        store.append(regions.as_row("COCO_train2014_000000000009"))
    export_store(open_store(tmp_path / "store"), tmp_path / "rows.tsv", "volta-tsv")
    cells = (tmp_path / "rows.tsv").read_bytes().split(b"\t")
    assert len(cells) == 13
    import_features([tmp_path / "rows.tsv"], tmp_path / "back", "volta-tsv")
    record = open_store(tmp_path / "back")["9"]
    assert (record.height, record.width, record.box_unit) == (120, 160, "pixel")
    assert np.array_equal(record.features, regions.features) and np.array_equal(record.boxes, regions.boxes)
    assert np.array_equal(record.arrays["objects_id"], regions.objects_id)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected uint8 \[H, W, 3\], got uint8 \[5, 5\]"):
        detector().detect([np.zeros((5, 5), np.uint8)])


def test_names_and_protocol() -> None:
    assert {"butd_r101_c4", "vinvl_x152_c4", "hf_detector", "tiny"} <= set(detectors.names())
    assert registry.list_detectors() == detectors.names()
    assert isinstance(build_detector("tiny"), Detector)
    with pytest.raises(RegistryError, match="did you mean 'vinvl_x152_c4'"):
        build_detector("vinvl_x152c4")


def test_identity_tells_what_decides_the_numbers() -> None:
    import json

    plain = build_detector("tiny").identity
    assert json.loads(json.dumps(plain))["weights"] == "drawn from seed 0"
    for options in ({"seed": 1}, {"conf": 0.3}, {"min_boxes": 36}, {"geometry": True}, {"nms": "agnostic"}):
        assert build_detector("tiny", DetectorOptions(**options)).identity != plain
    assert build_detector("tiny", DetectorOptions(probabilities=True)).identity == plain


def test_the_published_settings_hold() -> None:
    from lavis_ext.features.detectors.published import BUTD_SETTINGS, VINVL_SETTINGS

    for settings in (BUTD_SETTINGS, VINVL_SETTINGS):
        assert (settings.short, settings.long, settings.before, settings.after) == (600, 1000, 6000, 300)
        assert (settings.rpn_nms, settings.class_nms, settings.agnostic_nms) == (0.7, 0.3, 0.5)
        assert (settings.conf, settings.min_boxes, settings.max_boxes) == (0.2, 10, 100)
        assert (settings.pool, settings.stride) == (14, 16)
    assert BUTD_SETTINGS.mean == (102.9801, 115.9465, 122.7717)
    assert VINVL_SETTINGS.mean == (103.53, 116.28, 123.675)
    for settings in (BUTD_SETTINGS, VINVL_SETTINGS):
        assert len(settings.sizes) * len(settings.ratios) == settings.layers.anchors


def test_tiny_is_fast_enough_for_tests() -> None:
    found = build_detector("tiny")
    image = picture(0, 480, 640)
    found.detect([image])
    started = time.process_time()  # what others do on the machine does not count
    found.detect([image])
    assert time.process_time() - started < 3  # a bound against gross mistakes; 0.1 to 0.7 on a busy machine


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["butd", "vinvl"])
def test_full_size_with_drawn_weights(kind: str) -> None:
    """Every layer at its published size, on few regions of a small image."""
    from lavis_ext.features.detectors import published

    settings = replace(getattr(published, f"{kind.upper()}_SETTINGS"), short=96, long=160, after=8)
    found = C4Detector(kind, drawn(settings.layers), settings, DetectorOptions(min_boxes=4, max_boxes=4), "")
    regions = found.detect([picture(0, 96, 128)])[0]
    assert regions.features.shape == (4, 2048)
    assert np.isfinite(regions.features).all()
