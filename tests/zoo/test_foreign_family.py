"""A published model whose family is none of the zoo's: one file declares it, and all else follows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from datamodules.collate import TrainingCollate
from datamodules.inference import batch_of_questions
from datamodules.scenes import RawQuestion
from tests.tiny import QUESTIONS, one_per_row, tiny_batch, tiny_scene
from tests.zoo.llava import (
    SIDE,
    PlusFusion,
    PretrainedLlava,
    PretrainedLlavaPlus,
    TinyLlava,
    official_logits,
    patches_of,
)
from zoo import GTA, SpatialVLM, TinyVGGT
from zoo.backbones import PretrainedQwen25VL
from zoo.backbones.base import find_loader
from zoo.checkpoints.export import export_model, official_parameters, official_tensors, unofficial_parts
from zoo.checkpoints.from_tensors import model_from_tensors
from zoo.errors import InputError
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.sequences.loaded_scene import LoadedScene
from zoo.tasks import VideoQATask
from zoo.weights.load import read_config

QUESTION = "How many chairs are there?"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the family, with a head that nothing reads."""
    folder = tmp_path_factory.mktemp("llava") / "release"
    export_model(SpatialVLM(TinyLlava()), folder)
    extra = {"model.next_frame_head.weight": torch.ones(2, 2)}
    save_file(load_file(folder / "model.safetensors") | extra, folder / "model.safetensors")
    return folder


def fused() -> SpatialVLM:
    """A model with a VGGT and a connector that is not zero."""
    model = SpatialVLM(TinyLlava(), geometry=partial(TinyVGGT, embed_dim=32, num_heads=2), fusion=PlusFusion)
    nn.init.normal_(model.fusion.connector.mlp[-1].weight)  # type: ignore[union-attr,arg-type]
    return model


def test_a_folder_of_a_foreign_family_is_loaded_and_exported_bit_for_bit(release: Path, tmp_path: Path) -> None:
    config, tensors = read_config(release), load_file(release / "model.safetensors")
    assert config["model_type"] == "llava_tiny" and config["architectures"] == ["LlavaTinyForCausalLM"]
    for prefix in (*PretrainedLlava.renamed, *PretrainedLlava.not_loaded):
        assert any(name.startswith(prefix) for name in tensors)
    model = SpatialVLM.from_pretrained(release)
    assert isinstance(model.loader, PretrainedLlava) and model.is_pretrained and unofficial_parts(model) == []
    export_model(model, tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert read_config(tmp_path / "again") == config
    with pytest.raises(InputError, match="--model.backbone PretrainedLlava for"):
        PretrainedQwen25VL(str(release)).load()


def test_it_answers_as_the_published_code_computes(release: Path) -> None:
    """Frames follow each other without a mark, at sequential positions. The control: another order of frames."""
    model = SpatialVLM.from_pretrained(release)
    frames = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.manual_seed(0))
    assert isinstance(model.answer(frames, QUESTION, max_new_tokens=4), str)
    image = model.backbone.placeholders.image
    ids = torch.tensor([[20, 21, *[image] * 12, 22, 23, 24]])
    grids = torch.tensor([[1, 4, 4]] * 3)
    given = {"pixel_values": patches_of(frames), "image_grid_thw": grids}
    logits = model.logits(ids, torch.ones_like(ids), **given)
    tensors = load_file(release / "model.safetensors")
    torch.testing.assert_close(logits, official_logits(tensors, ids, frames), atol=1e-5, rtol=0)
    assert (logits - official_logits(tensors, ids, frames.flip(0))).abs().max() > 1e-3
    for count, message in ((2, "more placeholder tokens"), (4, "3 images, but image_grid_thw has 4 rows")):
        pictures = frames[:1].expand(count, -1, -1, -1)
        given = {"pixel_values": patches_of(pictures), "image_grid_thw": grids[:1].expand(count, -1)}
        with pytest.raises(ValueError, match=message):
            model.logits(ids, torch.ones_like(ids), **given)


def test_its_images_reach_the_preprocessor_in_their_own_size(release: Path) -> None:
    model = SpatialVLM.from_pretrained(release)
    frames = torch.randint(0, 256, (2, 3, 45, 61), dtype=torch.uint8, generator=torch.manual_seed(3))
    batch = batch_of_questions(model, frames, [QUESTION], None, None, None)
    expected, grid = model.backbone.preprocessor.cut_patches(frames.repeat_interleave(2, 0))
    assert torch.equal(batch.scenes[0].pixel_values, expected) and batch.scenes[0].grid_thw == tuple(grid.tolist())
    prompt = batch.prompts[0].prefix
    assert prompt.position_ids is not None
    assert prompt.position_ids[0, 0].tolist() == list(range(prompt.input_ids.shape[1]))


def test_several_questions_about_a_scene_are_answered_as_each_alone(release: Path) -> None:
    model = SpatialVLM.from_pretrained(release)
    frames = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.manual_seed(1))
    texts = [QUESTION, "Which is nearer, the table or the sofa?"]
    assert model.answer(frames, texts, max_new_tokens=6) == [
        model.answer(frames, text, max_new_tokens=6) for text in texts
    ]


def test_questions_that_share_a_sequence_train_as_one_per_row_with_cameras_as_well() -> None:
    """The images of the scenes follow each other without a mark. The control: other cameras."""
    task = VideoQATask(backbone=TinyLlava(), camera_encoding=GTA())
    scenes = [
        replace(tiny_scene(name, QUESTIONS[:count], steps, seed), kind="image", frame_indices=tuple(range(2 * steps)))
        for name, count, steps, seed in (("a", 3, 2, 0), ("b", 1, 3, 1))
    ]
    packed, apart = tiny_batch(task, *scenes, training=True), one_per_row(task, *scenes)
    assert packed.sequences is not None and apart.sequences is not None
    assert len(packed.sequences.lengths) == 2 and len(apart.sequences.lengths) == 4
    loss = task.model(packed)["loss"]
    torch.testing.assert_close(loss, task.model(apart)["loss"], atol=1e-5, rtol=0)
    loss.backward()
    assert all(each.grad is not None for each in task.model.backbone.decoder.layers.parameters())
    others = [replace(each, geometry=tiny_scene("c", (), 3, 7).geometry[: len(each.frames)]) for each in scenes]
    assert (task.model(tiny_batch(task, *others, training=True))["loss"] - loss).abs() > 1e-4


def test_text_alone_trains_a_family_without_videos() -> None:
    """The vision encoder sees a blank image, from which nothing is learned."""
    task = VideoQATask(backbone=TinyLlava())
    batch = TrainingCollate(task.model_spec())([LoadedScene("text", (RawQuestion("t", "", "One and two?", "3"),))])
    assert not batch.failed and len(batch.scenes) == 1 and sum(batch.num_answers) == 1
    task.loss(batch).backward()
    gradients = [each.grad for name, each in task.named_parameters() if "vision_tower" in name and each.requires_grad]
    assert all(each is not None and not each.any() for each in gradients)


def test_a_geometry_encoder_and_a_fusion_on_a_foreign_family_go_both_ways(tmp_path: Path) -> None:
    made = fused()
    assert unofficial_parts(made) == []
    export_model(made, tmp_path / "plus")
    config, tensors = read_config(tmp_path / "plus"), load_file(tmp_path / "plus/model.safetensors")
    assert config["eyes_layer"] == -1 and config["architectures"] == ["LlavaPlusForCausalLM"]
    assert find_loader(config, tensors) is PretrainedLlavaPlus
    model = SpatialVLM.from_pretrained(tmp_path / "plus")
    assert isinstance(model.geometry, VGGTEncoder) and isinstance(model.fusion, PlusFusion) and model.is_pretrained
    before, now = made.state_dict(), model.state_dict()
    assert all(torch.equal(before[name], now[name]) for name in now)
    # from tensors in memory, for outside checks
    parts = PretrainedLlavaPlus(str(tmp_path / "plus")).released_geometry
    loaded = model_from_tensors(PretrainedLlavaPlus, config, parts, tensors)
    found = official_tensors(loaded)
    assert tensors.keys() - found.keys() == {name for name in tensors if "eyes.vggt.camera_head." in name}
    assert all(torch.equal(found[name], tensors[name]) for name in found)
    assert "adapter.mlp.0.weight" in official_parameters(loaded)
    frames = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.manual_seed(2))
    assert isinstance(model.answer(frames, QUESTION, max_new_tokens=2), str)
    with pytest.raises(InputError, match="--model.backbone PretrainedLlavaPlus"):
        PretrainedLlava(str(tmp_path / "plus")).load()


def test_a_plan_knows_the_sizes_of_a_foreign_family_without_a_download() -> None:
    with torch.device("meta"):
        model = SpatialVLM(PretrainedLlava("somewhere/llava-tiny"))
    expected = sum(each.numel() for each in SpatialVLM(TinyLlava()).parameters())
    assert sum(each.numel() for each in model.parameters()) == expected
