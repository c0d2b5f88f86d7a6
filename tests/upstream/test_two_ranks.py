"""The first stage on two processes against LAVIS' formula, which treats gathered features as constants, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.models import stage1
from tests.support.blip2 import small_batch, small_stage1
from tests.support.processes import run_ranks

TEXTS = ["a red circle", "two green triangles", "x", "a man on a horse"]
IDS = ["1", "2", "1", "3"]
SHARED = ("net.vision_projection.weight", "net.text_projection.weight", "net.query_tokens", "temp")


def whole_batch() -> dict[str, Any]:
    image = torch.cat([small_batch()["image"], small_batch(1)["image"].flip(-1)]).double()
    return {"image": image, "text_input": TEXTS, "image_id": IDS}


def hardest(similarity: Tensor, same: Tensor) -> Tensor:
    return similarity.detach().masked_fill(same, float("-inf")).argmax(1)


def one_of_two_ranks(out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    stage1.draw_negatives = hardest  # type: ignore[assignment]
    rank, model = dist.get_rank(), small_stage1(freeze_vit=False).double()
    losses = model({key: value[2 * rank : 2 * rank + 2] for key, value in whole_batch().items()})
    losses["loss"].backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for grad in grads.values():
        dist.all_reduce(grad)  # DDP's mean over ranks
        grad /= 2
    torch.save({"grads": grads, "losses": {k: v.detach() for k, v in losses.items()}}, f"{out}.{rank}")


def lavis_loss(model: Any, rank: int) -> dict[str, Tensor]:
    """The losses of one of two ranks as LAVIS' code has them, from the features of the whole batch."""
    batch, own = whole_batch(), slice(2 * rank, 2 * rank + 2)
    embeds, texts = model.encode_image(batch), model.encode(TEXTS)
    queries, words = model.caption_logits(embeds, texts)
    images = F.normalize(model.net.vision_projection(queries), dim=-1)
    heads = F.normalize(model.net.text_projection(model.encode_text(texts)[:, 0]), dim=-1)
    to_text = torch.einsum("bqd,nd->bnq", images[own], heads.detach()).amax(-1) / model.temp
    to_image = torch.einsum("bd,nqd->bnq", heads[own], images.detach()).amax(-1) / model.temp
    same = torch.tensor([[one == other for other in IDS] for one in IDS[own]])
    targets = 0.9 * same.double() / same.double().sum(1, keepdim=True) + 0.1 / len(IDS)
    itc = sum(-(way.log_softmax(1) * targets).sum(1).mean() for way in (to_text, to_image)) / 2
    text_of, image_of = hardest(to_text, same), hardest(to_image, same)
    pictures = torch.cat([embeds[own], embeds[image_of], embeds[own]])
    ids = torch.cat([texts.ids[own], texts.ids[own], texts.ids[text_of]])
    mask = torch.cat([texts.mask[own], texts.mask[own], texts.mask[text_of]])
    labels = torch.tensor([1, 1, 0, 0, 0, 0])
    itm = F.cross_entropy(model.match(pictures, stage1.Texts(ids, mask)), labels)
    wanted = texts.ids[own].masked_fill(texts.mask[own] == 0, -100)[:, 1:]
    lm = F.cross_entropy(words[own][:, :-1].flatten(0, 1), wanted.flatten(), label_smoothing=0.1)
    return {"loss": itc + itm + lm, "loss_itc": itc, "loss_itm": itm, "loss_lm": lm}


@pytest.mark.slow
def test_two_processes_equal_the_formula_of_lavis(tmp_path: Path) -> None:
    done = run_ranks(one_of_two_ranks, 2, (str(tmp_path / "out"),), tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    found = [torch.load(tmp_path / f"out.{rank}", weights_only=True) for rank in range(2)]
    model = small_stage1(freeze_vit=False).double()
    wanted = [lavis_loss(model, rank) for rank in range(2)]
    ((wanted[0]["loss"] + wanted[1]["loss"]) / 2).backward()
    for rank in range(2):
        for name, value in wanted[rank].items():
            assert found[rank]["losses"][name].item() == pytest.approx(value.item(), abs=1e-7), name  # targets: float32
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(SHARED) <= set(grads) == set(found[0]["grads"])
    for name, grad in grads.items():
        torch.testing.assert_close(found[0]["grads"][name], grad, rtol=1e-5, atol=1e-7)  # targets are float32


def test_gathered_features_are_constants_unless_both_are_to_learn() -> None:
    torch.manual_seed(0)
    norms = {}
    for way in ("local", "both"):
        model = small_stage1(itc_gradient=way)
        model({"image": small_batch()["image"], "text_input": TEXTS[:3]})["loss_itc"].backward()
        norms[way] = model.net.text_projection.weight.grad.norm().item()
    assert norms["local"] != pytest.approx(norms["both"], rel=1e-2)
