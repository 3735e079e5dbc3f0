"""Cambrian-P: golden cases of the published code, its released folders, and the tiny model with camera tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from datamodules.collate import TrainingCollate
from tests.golden.synth import synth_video
from tests.golden.weights_cambrian import init_cambrian_
from tests.tiny import QUESTIONS, one_per_row, tiny_batch, tiny_scene
from tests.zoo.released import GOLDEN
from zoo import InputError, SpatialVLM
from zoo.cameras import SceneGeometry
from zoo.checkpoints import official_parameters
from zoo.checkpoints.export import export_model, official_tensors, unofficial_parts
from zoo.published.cambrian_p import (
    CambrianP,
    OfficialCambrianP,
    PosePrediction,
    PretrainedCambrianP,
    TinyCambrianP,
    camera_loss,
    load_cambrian_p,
)
from zoo.published.cambrian_s import PUBLISHED_ID, PretrainedCambrianS, TinyCambrianS
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.packing import IGNORED
from zoo.weights.load import read_config

HERE = GOLDEN / "cambrian_s"
SMALL: dict[str, Any] = dict(layers=2, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)
HEAD: dict[str, Any] = dict(dim=32, trunk_depth=1)
QUESTION = "How many chairs are there?"
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
        kind = meta["config"]["rec_camera_loss_type"]
        found = camera_loss(torch.cat(poses, 1), t["world_to_camera"], t["K_px"], meta["image_size_hw"], kind=kind)
        loss = text + 0.2 * 5 * found["total"]
    torch.testing.assert_close(loss[None], t["out_loss"], atol=1e-5 * float(loss.detach()), rtol=0)
    loss.backward()
    gradients = {name: each.grad for name, each in official_parameters(model).items() if each.grad is not None}
    for key, value in t.items():
        if key.startswith("grad."):
            name = key.removeprefix("grad.")
            own_gradient = gradients[name].double() if name in gradients else torch.zeros_like(value)
            torch.testing.assert_close(own_gradient, value, atol=1e-4 * float(value.abs().max()), rtol=0)
    for key, norm in meta["grad_l2_norms_f32"].items():
        if norm:
            assert float(gradients[key].norm()) == pytest.approx(norm, rel=2e-3, abs=1e-6), key


@pytest.mark.parametrize("setting", [{"camera_tokens_place": "prepend_to_frame"}, {"mm_newline_position": "frame"}])
def test_variants_that_were_not_released_are_refused(setting: dict[str, Any]) -> None:
    meta, _ = load_case("pose_model/append_640x480")
    meta["config"] |= setting
    with pytest.raises(InputError, match=f"{next(iter(setting))} .* in the config: only"):
        built(meta)


def test_a_missing_tensor_is_named_and_names_of_cambrian_s_are_read() -> None:
    meta, t = load_case("pose_model/append_640x480")
    config, weights = meta["config"] | {"vision_config": meta["vision_config"]}, weights_of(meta)
    ids, videos = t["input_ids"][0], videos_of(meta)
    of_s = {
        name.replace("model.vision_tower.", "model.vision_tower_aux_list.0."): each for name, each in weights.items()
    }
    with torch.no_grad():
        same = [
            load_cambrian_p(config, each).eval().states_of(ids, videos, camera_tokens=True) for each in (weights, of_s)
        ]
    assert torch.equal(same[0].logits, same[1].logits)
    for name in (
        "model.rec_head.camera_tokens",
        "model.rec_head.camera_head.pose_branch.fc2.bias",
        "model.norm.weight",
    ):
        with pytest.raises(InputError, match=f"1 missing: {name}"):
            load_cambrian_p(config, {key: each for key, each in weights.items() if key != name})


# ---- The tiny model --------------------------------------------------------------------------------------------------


def tiny(**options: Any) -> CambrianP:
    return CambrianP(TinyCambrianP(**SMALL), objectives=[PosePrediction(**{**HEAD, **options})])


def still(name: str, questions: int, steps: int, seed: int) -> Any:
    """A scene whose frames are images, with cameras."""
    scene = tiny_scene(name, QUESTIONS[:questions], steps, seed)
    return replace(scene, kind="image", frame_indices=tuple(range(2 * steps)))


def test_questions_that_share_a_sequence_train_as_one_per_row() -> None:
    """The control: other cameras change the pose loss, and not the answers' loss."""
    task, scenes = tiny(), [still("a", 3, 2, 0), still("b", 1, 3, 1)]
    assert task.model.extra_tokens == ExtraTokens(per_row=1, per_view=1)
    packed, apart = tiny_batch(task, *scenes, training=True), one_per_row(task, *scenes)
    losses, others = task.model(packed), task.model(apart)
    assert losses.keys() == others.keys() >= {"PosePrediction", "LanguageModeling"}
    for name, value in losses.items():
        torch.testing.assert_close(value, others[name], atol=1e-5, rtol=1e-5)
    moved = [replace(each, geometry=tiny_scene("c", (), 3, 7).geometry[: len(each.frames)]) for each in scenes]
    changed = task.model(tiny_batch(task, *moved, training=True))
    assert (changed["PosePrediction"] - losses["PosePrediction"]).abs() > 1e-2
    assert torch.equal(changed["LanguageModeling"], losses["LanguageModeling"])


def test_camera_tokens_are_in_tests_or_in_training_alone() -> None:
    """Both ways answer without cameras. Without tokens a test is that of a model which never had them."""
    always, training = tiny(), tiny(token="training")
    training.model.load_state_dict(always.model.state_dict())
    plain = SpatialVLM(TinyCambrianP(**SMALL)).eval()
    plain.load_state_dict({name: each for name, each in always.model.state_dict().items() if "objectives" not in name})
    frames = torch.randint(0, 256, (3, 3, 45, 61), dtype=torch.uint8, generator=torch.manual_seed(0))
    counts = []
    for model in (always.model.eval(), training.model.eval(), plain):
        scene = tiny_batch(model, still("a", 1, 3, 0)).scenes[0]  # type: ignore[arg-type]
        counts.append(scene.num_tokens(model.extra_tokens))
    assert counts[0] - 3 == counts[1] == counts[2]
    answers = [model.answer(frames, QUESTION, max_new_tokens=4) for model in (training.model, plain)]
    assert answers[0] == answers[1]
    assert isinstance(always.model.answer(frames, QUESTION, max_new_tokens=4), str)
    losses = [
        model.train()(TrainingCollate(model.model_spec(training=True))([still("a", 2, 2, 0)]))
        for model in (always.model, training.model)
    ]
    assert torch.equal(losses[0]["loss"], losses[1]["loss"])


def test_the_default_head_is_small_beside_a_tiny_backbone_alone() -> None:
    with torch.device("meta"):
        backbones = (None, TinyCambrianP(**SMALL), PretrainedCambrianP("nyu-visionx/Cambrian-P-7B"))
        heads = [CambrianP(each).model.objectives["PosePrediction"].head for each in backbones]
    assert [head.projector.out_features for head in heads] == [64, 64, 2048]


# ---- Released folders ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cambrian_p") / "release"
    export_model(tiny().model, folder)
    return folder


def test_a_folder_is_loaded_and_exported_bit_for_bit(release: Path, tmp_path: Path) -> None:
    config, tensors = read_config(release), load_file(release / "model.safetensors")
    assert config["model_type"] == "llava_qwen" and config["architectures"] == ["LlavaQwenForCausalLM"]
    assert config["rec_embed_dim"] == HEAD["dim"] and config["camera_tokens_place"] == "append_to_frame"
    assert {"model.rec_head.camera_tokens", "model.rec_head.projector_list.0.0.weight"} <= tensors.keys()
    model = SpatialVLM.from_pretrained(release, backbone=PretrainedCambrianP(str(release), dtype="float32"))
    assert isinstance(model.loader, PretrainedCambrianP) and model.is_pretrained and unofficial_parts(model) == []
    assert torch.equal(
        model.objectives["PosePrediction"].token.to(torch.float32), tensors["model.rec_head.camera_tokens"]
    )
    export_model(model, tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert read_config(tmp_path / "again") == config


def test_without_the_objective_a_folder_has_neither_head_nor_tokens(release: Path, tmp_path: Path) -> None:
    """As in the published evaluation, whose code drops both."""
    model = SpatialVLM(PretrainedCambrianP(str(release), dtype="float32"))
    assert model.is_pretrained and model.extra_tokens == ExtraTokens(per_row=1)
    export_model(model, tmp_path / "plain")
    assert not [name for name in load_file(tmp_path / "plain/model.safetensors") if "rec_head" in name]
    assert "load_rec_model" not in read_config(tmp_path / "plain")


def test_training_starts_from_a_folder_of_cambrian_s(tmp_path: Path) -> None:
    """The head and the tokens are new. The control: Cambrian-S's class does not read Cambrian-P's folders."""
    stage_3 = SpatialVLM(TinyCambrianS(**SMALL))
    export_model(stage_3, tmp_path / "s")
    task = CambrianP(PretrainedCambrianP(str(tmp_path / "s"), dtype="float32"), objectives=[PosePrediction(**HEAD)])
    own, theirs = task.model.backbone.state_dict(), stage_3.backbone.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    assert not task.model.is_pretrained
    export_model(task.model, tmp_path / "p")
    with pytest.raises(InputError, match="is a Cambrian-P: take --model.backbone PretrainedCambrianP"):
        SpatialVLM(PretrainedCambrianS(str(tmp_path / "p")))


@pytest.mark.parametrize("prefix", ["model.vision_tower.", "model.vision_tower_aux_list.0."])
def test_the_vision_encoder_may_be_that_of_siglip2(tmp_path: Path, prefix: str) -> None:
    """Of a folder of Cambrian-P and of Cambrian-S. The control: without the option."""
    built = tiny().model if prefix == "model.vision_tower." else SpatialVLM(TinyCambrianS(**SMALL))
    export_model(built, tmp_path / "release")
    tensors = load_file(tmp_path / "release/model.safetensors")
    prefix += "vision_tower.vision_model."
    vision = {name for name in tensors if name.startswith(prefix)}
    (tmp_path / "siglip2").mkdir()
    siglip = {name.replace(prefix, "vision_model."): 2 * tensors[name] for name in vision}
    save_file(siglip, tmp_path / "siglip2/model.safetensors")
    for folder, factor in ((str(tmp_path / "siglip2"), 2), (None, 1)):
        loader = PretrainedCambrianP(
            str(tmp_path / "release"), dtype="float32", vision_path=folder, supervises_marks=True
        )
        model = SpatialVLM(loader)
        found = official_tensors(model)
        assert len(vision) > 10 and model.backbone.preprocessor.supervises_marks
        for name in vision:
            own = name.replace(prefix, "model.vision_tower.vision_tower.vision_model.")
            assert torch.equal(found[own], factor * tensors[name]), name


def test_names_and_shapes_are_those_of_the_manifest() -> None:
    manifest = json.loads((HERE / "manifests/cambrian_p_7b.json").read_text())
    with torch.device("meta"):
        model = SpatialVLM(PretrainedCambrianP("nyu-visionx/Cambrian-P-7B"), objectives=[PosePrediction()])
    own = official_tensors(model)
    assert {name: list(each.shape) for name, each in own.items()} == manifest["tensors"]
    assert model.is_pretrained


# ---- Pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(640, 480), (360, 640), (64, 64), (337, 336)])
def test_the_rays_of_cells_are_those_of_the_square(width: int, height: int) -> None:
    """Margins lie outside of the image. Of a stretched frame, the cells are those of the image."""
    preprocessor = TinyCambrianP(image_size=112, frame_tokens=64).load().preprocessor
    frames = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    K = torch.tensor([[[0.9, 0.0, 0.02], [0.0, 1.2, -0.01], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    longer = max(width, height)
    for squares, sides in (("padded", (longer, longer)), ("stretched", (width, height))):
        preprocessor.squares = squares
        pixels, grid = preprocessor.cut_patches(frames)
        assert grid.tolist() == [1, 16, 16] and pixels.unflatten(1, (3, 112, 112)).any() == (sides != (width, height))
        shown = preprocessor.shown_window(height, width).crop(SceneGeometry(K_normalized=K)).K_normalized
        for axis, (own, side) in enumerate(zip((width, height), sides, strict=True)):
            left = ((torch.arange(8, dtype=torch.float64) + 0.5) / 8 * side - (side - own) // 2) / own - 0.5
            expected = (left - K[0, axis, 2]) / K[0, axis, axis]
            found = ((torch.arange(8, dtype=torch.float64) + 0.5) / 8 - 0.5 - shown[0, axis, 2]) / shown[0, axis, axis]
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
