"""A whole GeoVR in training, by the zoo's own step: positions, hidden states, losses and gradients are the official."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.golden.weights import init_, unit_noise
from zoo import Distillation, Objective, SpatialVLM, TeacherDepth, TeacherPose
from zoo.backbones.qwen_weights import EmptyQwenVL
from zoo.backbones.released_configs import qwen3_config
from zoo.cameras.teacher_targets import TeacherTargets
from zoo.checkpoints.from_tensors import _fill
from zoo.sequences.batch import Batch
from zoo.sequences.scene_inputs import SceneInputs

GOLDEN = Path(__file__).parents[2] / "golden/geovr/full"
HEADS = {"camera_head.": "TeacherPose.head.", "dpt_head.": "TeacherDepth.head."}
TOKEN = "model.camera_token.weight"


def ours(official: str) -> str:
    """The name of a parameter here."""
    for theirs, name in HEADS.items():
        if official.startswith(theirs):
            return f"objectives.{name}{official.removeprefix(theirs)}"
    if official.startswith("distill_head_list."):
        return official.replace("distill_head_list.", "objectives.Distillation.heads.")
    return "objectives.TeacherPose.token" if official == TOKEN else f"backbone.vlm.{official}"


@pytest.mark.parametrize("name", ["camera_only", pytest.param("distill_depth_no_tokens", marks=pytest.mark.slow)])
def test_a_training_step_is_the_official_one(name: str) -> None:
    described, tensors = json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")
    config = described["config"]
    objectives: list[Objective] = []
    if config["add_camera"]:
        objectives.append(TeacherPose())
    if config["add_depth"]:
        objectives += [TeacherDepth(indices=described["hidden_layers_depth"])]
    if config["distill"]:
        objectives += [Distillation(indices=described["hidden_layers_distill"])]
    qwen = EmptyQwenVL(qwen3_config(described["qwen"]), torch.float32)
    model = SpatialVLM(qwen, objectives=objectives, average="micro_batch_tokens", text_after_vision="max_hw")
    # 1. Weights.
    state = {key: init_(key, torch.empty(shape)) for key, shape in described["param_names"].items()}
    for key, shift in (("dpt_head.proj.bias", 0.5), ("camera_head.fc_fov.0.bias", 0.8)):
        if key in state:
            state[key] += shift
    stock = {key for key in state if key.startswith(("model.visual", "model.language_model", "lm_head"))}
    _fill(model, {key: state[key] for key in stock})
    own = {ours(key): tensor for key, tensor in state.items() if key not in stock}
    missing = model.load_state_dict(own, strict=False)
    assert not missing.unexpected_keys and not any("objectives" in key for key in missing.missing_keys)
    # 2. A training batch.
    scenes, first = [], 0
    grids = tensors["video_grid_thw"].tolist()
    pixels = unit_noise(f"{name}.pixel_values_videos", (sum(t * h * w for t, h, w in grids), 1536))
    patches = [side // 14 for side in described["teacher_image_hw"]]
    for b, (steps, height, width) in enumerate(grids):
        count = steps * height * width
        teacher = TeacherTargets(
            tokens=tuple(
                unit_noise(f"{name}.{b}.teacher.layer_{layer}", (steps, *patches, 1024)) for layer in (4, 11, 17, 23)
            )
            if config["distill"]
            else (),
            pose_enc=tensors.get(f"pose_{b}"),
            has_camera=torch.ones(steps, dtype=torch.bool),
            depth=tensors.get(f"depth_{b}"),
        )
        scenes.append(SceneInputs(pixels[first : first + count], (steps, height, width), teacher=teacher))
        first += count
    builder = model.training_sequence_builder
    ids, mask = tensors["expanded_input_ids"], tensors["expanded_attention_mask"].bool()
    index = [[b] for b in range(len(scenes))]
    sequences = builder.build(ids, mask, scenes, index, labels=tensors["expanded_labels"])
    batch = Batch(scenes, builder.vision(scenes), sequences, num_answers=[1] * len(scenes))
    # 3. What the step computes.
    assert sequences.position_ids is not None
    assert torch.equal(sequences.position_ids[:, mask], tensors["position_ids"][:, mask])
    found = model.train()(batch)
    expected, weights = described["losses_f64"], described["weights"]
    assert found["LanguageModeling"].item() == pytest.approx(expected["loss"], rel=2e-5)
    if config["add_camera"]:
        assert found["TeacherPose"].item() == pytest.approx(expected["camera_loss"], rel=2e-5)
    if config["distill"]:
        assert found["TeacherDepth"].item() == pytest.approx(expected["depth_loss"], rel=2e-5)
        assert found["Distillation"].item() == pytest.approx(expected["distill_loss"], rel=2e-5)
    assert weights["camera"] == TeacherPose().weight
    assert found["loss"].item() == pytest.approx(expected["total"], rel=2e-5)
    # 4. Its gradients.
    found["loss"].backward()
    norms = described["grad_l2_norms_f64"]
    parameters = dict(model.named_parameters())
    compared = {key: parameters[ours(key)].grad for key in norms if norms[key] and ours(key) in parameters}
    assert len(compared) > 50
    for key, gradient in compared.items():
        assert gradient is not None and gradient.norm().item() == pytest.approx(norms[key], rel=1e-3), key
