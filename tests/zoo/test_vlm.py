"""SpatialVLM: equal to the stock model without camera parts, camera encodings that have an effect, checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from tests.zoo import asking
from zoo import (
    Cameras,
    ConstantIndex,
    InputError,
    LearningRates,
    LoRA,
    PRoPE,
    PRoPEMLLM,
    Qwen25VL,
    TemporalSection,
    TinyQwen25VL,
)
from zoo.backbones import Qwen25VLBackbone
from zoo.backbones.base import VisualTokens
from zoo.backbones.qwen_vl import TinyQwenVL
from zoo.model import SpatialVLM
from zoo.positions import mrope_position_ids
from zoo.sequences.loaded_scene import LoadedScene, VisionInputs
from zoo.sequences.packing import IGNORED
from zoo.tasks import VideoQATask

RATES = LearningRates(decoder=1e-3, connector=1e-3, vision=1e-3)
GRID = torch.tensor([[3, 4, 4], [2, 4, 6]])


def tiny(dtype: str = "float32", attn_implementation: str = "sdpa") -> TinyQwenVL:
    return asking.tiny_backbone(dtype=dtype, implementation=attn_implementation)


def model(encoding: PRoPE | None = None, **kwargs) -> VideoQATask:
    backbone = tiny(dtype=kwargs.pop("dtype", "float32"))
    return VideoQATask(backbone=backbone, camera_encoding=encoding, learning_rates=RATES, **kwargs)


def sequences(padding: str = "left") -> dict:
    """Two questions about videos of different lengths."""
    tokenizer = model_processor().tokenizer
    rows = []
    for grid, text in zip(GRID.tolist(), ("How many chair(s) are in this room?", "Options"), strict=True):
        video = "<|video_pad|>" * (grid[0] * grid[1] * grid[2] // 4)
        chat = f"<|im_start|>user\n<|vision_start|>{video}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
        rows.append(torch.tensor(tokenizer(chat)["input_ids"]))
    pad = {"batch_first": True, "padding_side": padding}
    ids = torch.nn.utils.rnn.pad_sequence(rows, padding_value=tokenizer.pad_token_id, **pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], **pad)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(int(GRID.prod(1).sum()), 1176, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values_videos": pixels, "video_grid_thw": GRID}


def model_processor():
    from zoo.backbones.qwen25_vl import tiny_processor

    return tiny_processor()


def cameras(seed: int | None = 1) -> Cameras:
    """One a grid step, three at the most; identities without a seed."""
    poses, intrinsics = torch.eye(4).repeat(2, 3, 1, 1), torch.eye(3).repeat(2, 3, 1, 1)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        skew = torch.randn(2, 3, 3, 3, generator=generator)
        poses[..., :3, :3] = torch.linalg.matrix_exp(skew - skew.mT)
        poses[..., :3, 3] = torch.randn(2, 3, 3, generator=generator)
        intrinsics[..., 0, 0] = 0.9
    return Cameras(poses, intrinsics)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_an_encoding_it_is_the_stock_model_bit_for_bit(attention: str) -> None:
    stock = tiny(attn_implementation=attention).stock_model()
    ours = Qwen25VL(backbone=tiny(attn_implementation=attention))
    batch = sequences()
    config = stock.config
    positions, _ = mrope_position_ids(
        batch["input_ids"],
        batch["attention_mask"],
        video_grid_thw=GRID,
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
    )
    assert torch.equal(stock(**batch, position_ids=positions).logits, ours.model.logits(**batch))
    with_cameras = ours.model.logits(**batch, cameras=cameras())
    assert torch.equal(ours.model.logits(**batch), with_cameras)  # the baseline takes no notice of cameras


@pytest.mark.parametrize("placement", [None, TemporalSection()])
def test_identity_cameras_change_nothing_and_others_do(placement: TemporalSection | None) -> None:
    time = ConstantIndex()
    stock, ours = model(time_index=time), model(PRoPE(placement), time_index=time)
    batch = sequences()
    reference = stock.model.logits(**batch)
    assert torch.equal(ours.model.logits(**batch), reference)
    assert torch.equal(ours.model.logits(**batch, cameras=cameras(None)), reference)
    real = batch["attention_mask"].bool()
    assert (ours.model.logits(**batch, cameras=cameras()) - reference)[real].abs().max() > 1e-3


VARIANTS: dict[str, dict] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "lora": {"lora": LoRA(r=4)},
    "checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_encoding_is_never_silently_off(variant: str) -> None:
    batch = sequences("right")
    ours = model(PRoPE(), **VARIANTS[variant])
    real = batch["attention_mask"].bool()
    gradients = []
    for each in (cameras(None), cameras()):
        logits = ours.model.logits(**batch, cameras=each)[real].float()
        logits.square().mean().backward()
        layer = ours.model.backbone.vlm.model.language_model.layers[0].self_attn.k_proj
        weight = layer.lora_B.default.weight if variant == "lora" else layer.weight
        gradients.append((logits.detach(), weight.grad.clone()))
        ours.zero_grad()
    (plain, plain_grad), (moved, moved_grad) = gradients
    assert (plain - moved).abs().max() > 1e-3
    assert not torch.allclose(plain_grad, moved_grad, rtol=1e-2, atol=0)


def test_checkpointing_gives_the_same_gradients_with_another_forward_in_between() -> None:
    batch = sequences("right")

    def gradients(ours: SpatialVLM, interleave: bool) -> dict[str, torch.Tensor]:
        loss = ours.model.logits(**batch, cameras=cameras()).square().mean()
        if interleave:  # other cameras in flight must not reach the recomputation
            with torch.no_grad():
                ours.model.logits(**batch, cameras=cameras(5))
        loss.backward()
        return {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}

    expected = gradients(model(PRoPE()), False)
    recomputed = gradients(model(PRoPE(), gradient_checkpointing=True), True)
    assert expected.keys() == recomputed.keys()
    assert all(torch.allclose(expected[name], recomputed[name], rtol=1e-4, atol=1e-7) for name in expected)


@pytest.mark.parametrize("encoding", [None, PRoPE()])
def test_generation_with_the_cache_equals_a_full_forward_each_step(encoding: PRoPE | None) -> None:
    ours = model(encoding)
    batch = sequences("left")
    given = {"cameras": cameras()} if encoding else {}
    answers = ours.model.generate_ids(**batch, **given, max_new_tokens=5)
    slow = dict(batch)
    with torch.no_grad():
        for _ in range(5):
            following = ours.model.logits(**slow, **given)[:, -1:].argmax(-1)
            slow["input_ids"] = torch.cat((slow["input_ids"], following), 1)
            slow["attention_mask"] = F.pad(slow["attention_mask"], (0, 1), value=1)
    eos = ours.model.backbone.vlm.config.text_config.eos_token_id
    for row, answer in zip(slow["input_ids"][:, -5:].tolist(), answers, strict=True):
        assert answer == (row[: row.index(eos) + 1] if eos in row else row)


def test_token_zero_may_end_an_answer() -> None:
    loader = tiny()
    loader.config.text_config.eos_token_id = 0
    assert loader.load().stop_tokens == [0]


def test_padding_on_the_left_changes_no_logit() -> None:
    ours = model(PRoPE())
    rows = []
    for side in ("left", "right"):
        batch = sequences(side)
        rows.append(ours.model.logits(**batch, cameras=cameras())[batch["attention_mask"].bool()])
    assert torch.allclose(rows[0], rows[1], atol=2e-5)


def scenes() -> list[LoadedScene]:
    """Three questions about one scene, and one about another."""
    return [asking.scene("one", asking.QUESTIONS[1:4]), asking.scene("two", asking.QUESTIONS[:1], steps=2, seed=1)]


def test_a_scene_is_encoded_once_however_many_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = model()
    calls: list[int] = []
    encode = Qwen25VLBackbone.encode_vision

    def counted(self: Qwen25VLBackbone, pixel_values: torch.Tensor, vision: VisionInputs) -> VisualTokens:
        calls.append(len(vision.lengths))
        return encode(self, pixel_values, vision)

    monkeypatch.setattr(Qwen25VLBackbone, "encode_vision", counted)
    one_by_one, together = (
        [record["prediction"] for record in ours.predict_batch(asking.batch(ours, *scenes(), at_once=at_once))]
        for at_once in (1, 8)
    )
    assert together == one_by_one and len(one_by_one) == 4 and calls == [2, 2]


def test_the_loss_is_that_of_the_full_logits() -> None:
    """Each question in a row of its own, with the labels that the tokenizer gives."""
    ours = model(PRoPE())
    apart = asking.one_per_row(ours, *scenes())
    assert apart.sequences is not None
    logits = asking.logits_of(ours, ours.model.decoder_inputs(ours.model.encode_scenes(apart), apart.sequences))
    losses, count = [], 0
    for found, row in zip(logits, asking.rows_of(ours, *scenes())[0], strict=True):
        labels = row.labels[1:]
        losses.append(F.cross_entropy(found[: len(labels)], labels))  # of a question, the mean over its answer
        count += int((labels != IGNORED).sum())
    assert count == len(apart.sequences.answer_ids) > 4
    for batch in (apart, asking.batch(ours, *scenes(), training=True)):
        assert torch.allclose(ours.loss(batch), torch.stack(losses).mean(), atol=1e-6)


def test_time_in_the_cameras_channels_is_an_error() -> None:
    with pytest.raises(InputError, match="--model.time_index ConstantIndex"):
        model(PRoPE(TemporalSection()))


@pytest.mark.parametrize("build", [lambda: model(PRoPE()), lambda: model(PRoPE(), lora=LoRA(r=4))])
def test_checkpoints_hold_what_no_file_restores_and_nothing_else_loads(
    build: Callable[[], VideoQATask], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = build()
    ours.model.backbone.vlm.model.visual.requires_grad_(False)
    checkpoint = {"state_dict": ours.state_dict()}
    ours.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == set(ours.state_dict())  # random weights are in no file
    monkeypatch.setattr(TinyQwen25VL, "released_path", "a folder")
    ours.on_save_checkpoint(checkpoint)
    saved = checkpoint["state_dict"]
    trained = {name for name, p in ours.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert set(saved) == trained and len(saved) < len(ours.state_dict())
    ours.load_state_dict(saved, strict=False)

    name = next(iter(saved))
    without = {key: value for key, value in saved.items() if key != name}
    with pytest.raises(InputError, match=f"missing.*{name}"):
        ours.load_state_dict(without, strict=False)
    with pytest.raises(InputError, match="unexpected.*surplus"):
        ours.load_state_dict(saved | {"surplus": torch.ones(1)}, strict=False)


def test_frozen_parts_stay_in_eval_mode_and_without_gradients() -> None:
    ours = PRoPEMLLM(PRoPE(), backbone=tiny(), fusion=None, learning_rates=LearningRates(vision=None))
    ours.train()
    assert not ours.model.backbone.vlm.model.visual.blocks[0].attn.qkv.training
    assert ours.model.backbone.vlm.model.language_model.layers[0].mlp.gate_proj.training
    assert ours.model.backbone.vlm.model.visual.merger.mlp[0].training  # the connector's, though it lies in the tower
    frozen = {name for name, p in ours.named_parameters() if not p.requires_grad}
    assert frozen and all(".visual." in name and ".merger." not in name for name in frozen)


def test_half_precision_weights_keep_exact_rope_frequencies() -> None:
    qwen = tiny(dtype="bfloat16").stock_model()
    assert qwen.lm_head.weight.dtype == torch.bfloat16
    frequencies = {name: b for name, b in qwen.named_buffers() if "inv_freq" in name}
    assert frequencies and all(b.dtype == torch.float32 for b in frequencies.values())


def test_rounding_the_whole_module_is_refused() -> None:
    from lightning import Trainer

    ours = model()
    ours.trainer = Trainer(precision="bf16-true", accelerator="cpu", logger=False)
    with pytest.raises(InputError, match="bf16-mixed"):
        ours.setup("fit")
