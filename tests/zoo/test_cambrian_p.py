"""Cambrian-P: golden cases of the published code, its released folders, and the tiny model with camera tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tests.golden.synth import synth_video
from tests.golden.weights_cambrian import init_cambrian_
from tests.zoo.released import GOLDEN
from zoo import InputError
from zoo.checkpoints import official_parameters
from zoo.published.cambrian_p import OfficialCambrianP, camera_loss, load_cambrian_p
from zoo.published.cambrian_s import PUBLISHED_ID
from zoo.sequences.packing import IGNORED

HERE = GOLDEN / "cambrian_s"
REFUSED = {"prepend_tied"}  # camera tokens in front of the frames, as no model was released
CASES = sorted(path.stem for path in (HERE / "pose_model").glob("*.json") if path.stem not in REFUSED)
TRAIN = sorted(path.stem for path in (HERE / "pose_train").glob("*.json"))


def load_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((HERE / f"{name}.json").read_text()), load_file(HERE / f"{name}.safetensors")


def weights_of(meta: dict[str, Any]) -> dict[str, Tensor]:
    """The weights. Camera tokens are stored in bfloat16."""
    weights = {name: init_cambrian_(name, torch.empty(shape)) for name, shape in meta["param_names"].items()}
    tokens = {name: each.bfloat16().float() for name, each in weights.items() if name.endswith("camera_tokens")}
    return weights | tokens


def built(meta: dict[str, Any]) -> OfficialCambrianP:
    return load_cambrian_p(meta["config"] | {"vision_config": meta["vision_config"]}, weights_of(meta)).eval()


def videos_of(meta: dict[str, Any]) -> list[Tensor]:
    return [synth_video(*sizes) for _, *sizes in meta["media"]]


# ---- Golden cases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_inputs_logits_poses_and_answers_are_those_of_the_published_code(name: str) -> None:
    meta, t = load_case(f"pose_model/{name}")
    videos, ids, model = videos_of(meta), t["input_ids"][0], built(meta)
    has_tokens = "out_poses" in t
    with torch.no_grad():
        inputs = model.inputs_of(ids, videos, camera_tokens=has_tokens)
        states = model.states_of(ids, videos, camera_tokens=has_tokens)
    assert len(inputs) - len(ids) + len(videos) == meta["visual_tokens"]
    torch.testing.assert_close(inputs, t["out_embeds"], atol=4e-5, rtol=0)
    bound = 4e-5 * max(1, float(t["out_logits"].square().mean().sqrt()) / 2)
    torch.testing.assert_close(states.logits, t["out_logits"], atol=bound, rtol=0)
    if has_tokens:
        torch.testing.assert_close(states.poses, t["out_poses"], atol=3e-5, rtol=0)
        without = model.states_of(ids, videos, camera_tokens=False).logits  # the control
        assert (without[-1] - states.logits[-1]).abs().max() > 1e-3
    assert model.answer_of(ids, videos, max_new_tokens=8, camera_tokens=has_tokens) == t["out_generated"].tolist()


def expanded(ids: Tensor, labels: Tensor, visual: int, has_answer: bool) -> Tensor:
    """Labels of the decoder's sequence: none for the `visual` tokens, and without an answer none behind them."""
    place = int((ids == PUBLISHED_ID).nonzero())
    behind = labels[place + 1 :]
    behind = behind if has_answer else torch.full_like(behind, IGNORED)
    return torch.cat((labels[:place], labels.new_full((visual,), IGNORED), behind))


@pytest.mark.parametrize("name", TRAIN)
def test_losses_and_gradients_are_those_of_the_published_training(name: str) -> None:
    """Frames are stretched. Samples without poses have no camera tokens. The pose has the weight 0.2 * 5."""
    meta, t = load_case(f"pose_train/{name}")
    model, logits, labels, poses = built(meta), list[Tensor](), list[Tensor](), list[Tensor]()
    samples = zip(videos_of(meta), meta["bp_rec"], meta["bp_vqa"], strict=True)
    for row, (video, has_pose, has_answer) in enumerate(samples):
        length = int(t["attention_mask"][row].sum())
        ids = t["input_ids"][row, :length]
        states = model.states_of(ids, [video], camera_tokens=has_pose, padded=False)
        own = len(states.logits)
        torch.testing.assert_close(states.logits, t["out_logits"][row, :own], atol=4e-5, rtol=0)
        logits.append(states.logits[:-1])
        labels.append(expanded(ids, t["labels"][row, :length], own - length + 1, has_answer)[1:])
        poses += [] if states.poses is None else [states.poses]
    text = F.cross_entropy(torch.cat(logits), torch.cat(labels), ignore_index=IGNORED)
    torch.testing.assert_close(text[None], t["out_text_loss"], atol=1e-5 * float(text.detach()), rtol=0)
    loss = text
    if poses:
        found = camera_loss(torch.cat(poses, 1), t["world_to_camera"], t["K_px"], meta["image_size_hw"])
        loss = text + 0.2 * 5 * found["total"]
    torch.testing.assert_close(loss[None], t["out_loss"], atol=1e-5 * float(loss.detach()), rtol=0)
    loss.backward()
    gradients = {name: each.grad for name, each in official_parameters(model).items() if each.grad is not None}
    for key, value in t.items():
        if key.startswith("grad."):
            name = key.removeprefix("grad.")
            found_gradient = gradients.get(name, torch.zeros_like(value)).double()
            torch.testing.assert_close(found_gradient, value, atol=1e-4 * max(float(value.abs().max()), 1e-6), rtol=0)
    for key, norm in meta["grad_l2_norms_f32"].items():
        if norm:
            assert float(gradients[key].norm()) == pytest.approx(norm, rel=2e-3, abs=1e-6), key
