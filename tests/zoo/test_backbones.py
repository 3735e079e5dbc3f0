"""The backbones: equal to the stock models, cameras in their decoders, generation, and DeepStack beside a fusion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tiny import (
    BACKBONES,
    QUESTIONS,
    RATES,
    logits_of,
    one_per_row,
    rows_of,
    tiny_backbone,
    tiny_batch,
    tiny_model,
    tiny_scene,
)
from tests.zoo import decoder, showing
from tests.zoo.decoder import Example, every_logit, logits
from tests.zoo.showing import SAMPLES
from tests.zoo.stock import SHOWN, compare_with_stock, greedy_as_stock
from tests.zoo.two_videos import GRID, cameras, sequences
from zoo import (
    GTA,
    AddFusion,
    CameraTokenFusion,
    Compose,
    ConstantIndex,
    DatasetGeometry,
    DeepFusion,
    DeltaNetLayers,
    Fusion,
    InputError,
    LoRA,
    PRoPE,
    Qwen3VL,
    Qwen25VL,
    TemporalSection,
    TinyQwen3VL,
    TinyQwen25VL,
    TinyVGGT,
    UnrotatedChannels,
)
from zoo.backbones import Qwen25VLBackbone
from zoo.backbones.base import VisualTokens
from zoo.backbones.decoder import replace_classes
from zoo.backbones.qwen_vl import TinyQwenVL
from zoo.encodings import CameraEncoding, ExtraChannels, HeadSubset
from zoo.encodings.base import EncodedCameras, ZeroChannels
from zoo.geometry.base import encoder_frames
from zoo.model import SpatialVLM
from zoo.positions import mrope_position_ids
from zoo.sequences.loaded_scene import LoadedScene, VisionInputs
from zoo.sequences.packing import IGNORED
from zoo.tasks import VideoQATask

SIZES = dict(hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)


def small(family: str, **options: Any) -> TinyQwenVL:
    """A backbone of new weights; Qwen3.5's last layer is full attention."""
    return BACKBONES[family](**{**SIZES, "layers": 4 if family == "Qwen3.5" else 3, **options})


def task_of(dtype: str = "float32", **parts: Any) -> VideoQATask:
    return VideoQATask(backbone=tiny_backbone(dtype=dtype), learning_rates=RATES, **parts)


# ---- the stock models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_an_encoding_it_is_the_stock_model_bit_for_bit(attention: str) -> None:
    stock = tiny_backbone(implementation=attention).stock_model()
    ours = Qwen25VL(backbone=tiny_backbone(implementation=attention))
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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("samples", [("a video",), (*SHOWN, "text")], ids=", ".join)
@pytest.mark.parametrize("family", ["Qwen3-VL", "Qwen3.5"])
def test_logits_and_gradients_are_the_stock_models(family: str, samples: tuple[str, ...], attention: str) -> None:
    """Left-padded, with videos, pictures, and both."""
    ours, gradients = compare_with_stock(small(family, attn_implementation=attention), samples, atol=5e-6)
    special = "deepstack_merger_list" if family == "Qwen3-VL" else "linear_attn.A_log"
    assert any(special in name for name in gradients)
    for name, parameter in ours.backbone.vlm.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
        else:
            assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("family", ["Qwen3-VL", "Qwen3.5"])
def test_greedy_answers_are_the_stock_models(family: str) -> None:
    assert len(greedy_as_stock(small(family), (*SHOWN, "text"))) > 2


# ---- cameras in the decoder ------------------------------------------------------------------------------------


def both_kinds() -> Compose:
    """An encoding for layers of full attention, and another for Gated DeltaNet."""
    values, rotations = PRoPE(UnrotatedChannels(), "vo"), GTA(UnrotatedChannels(), "qk", "rotation")
    return Compose([PRoPE(UnrotatedChannels()), DeltaNetLayers(Compose([values, rotations]))])


ENCODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5-VL": ("Qwen2.5-VL", {"camera_encoding": lambda: PRoPE()}),
    "Qwen2.5-VL, TemporalSection": (
        "Qwen2.5-VL",
        {"camera_encoding": lambda: PRoPE(TemporalSection()), "time_index": ConstantIndex()},
    ),
    "Qwen3-VL": ("Qwen3-VL", {"camera_encoding": lambda: PRoPE()}),
    "Qwen3.5": ("Qwen3.5", {"camera_encoding": both_kinds}),
}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options of the backbone and of the task
    "float32": ({}, {}),
    "bfloat16": ({"dtype": "bfloat16"}, {}),
    "lora": ({}, {"lora": LoRA(r=4)}),
    "checkpointing": ({}, {"gradient_checkpointing": True}),
}


@pytest.mark.parametrize(
    ("name", "variant"),
    [*((name, "float32") for name in ENCODINGS), *product(("Qwen2.5-VL", "Qwen3.5"), [*VARIANTS][1:])],
)
def test_identity_cameras_change_nothing_and_others_do(name: str, variant: str) -> None:
    family, parts = ENCODINGS[name]
    of_backbone, options = VARIANTS[variant]
    options = {"learning_rates": RATES, **{k: v for k, v in parts.items() if k != "camera_encoding"}, **options}

    def task(encoding: CameraEncoding | None, **others: Any) -> VideoQATask:
        torch.manual_seed(0)
        backbone = small(family, seed=0, **of_backbone)
        return VideoQATask(backbone=backbone, camera_encoding=encoding, **{**options, **others})

    stock, ours = task(None), task(parts["camera_encoding"]())
    given = showing.batch(ours.model, [SAMPLES["a video"], SAMPLES["two videos"]], side="right")
    real = given["attention_mask"].bool()
    identities, moving, others = (cameras(seed, views=4) for seed in (None, 1, 2))
    reference = stock.model.logits(**given)[real]
    assert torch.equal(ours.model.logits(**given, cameras=identities)[real], reference)
    moved = ours.model.logits(**given, cameras=moving)[real]
    assert (moved - reference).abs().max() > 1e-3
    left = showing.batch(ours.model, [SAMPLES["a video"], SAMPLES["two videos"]], side="left")
    if variant == "float32":
        found = ours.model.logits(**left, cameras=moving)[left["attention_mask"].bool()]
        torch.testing.assert_close(found, moved, rtol=0, atol=2e-5)
    if variant == "checkpointing":  # other cameras in flight do not reach the recomputation
        with torch.no_grad():
            ours.model.logits(**given, cameras=others)
    moved.float().square().mean().backward()
    trained = {name.split("layers.")[-1] for name, p in ours.named_parameters() if p.grad is not None and p.grad.any()}
    layers = ("0.linear_attn", "3.self_attn") if family == "Qwen3.5" else ("0.self_attn", "2.self_attn")
    assert all(any(layer in name for name in trained) for layer in layers)
    if variant == "checkpointing":
        whole = task(parts["camera_encoding"](), gradient_checkpointing=False)
        whole.model.logits(**given, cameras=moving)[real].float().square().mean().backward()
        for mine, other in zip(ours.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_stock_attention_would_be_silently_off() -> None:
    """Why it has to be installed: without it the encoding is swallowed without a word."""
    model, example = decoder.tiny_qwen(), Example()
    ignored = logits(model, example)
    assert torch.equal(ignored, logits(model, example, stock=True))
    replace_classes(model, Qwen25VLBackbone.hooked_classes)
    assert not torch.equal(ignored, logits(model, example))


@torch.no_grad()
def test_all_that_follows_a_view_knows_of_the_cameras() -> None:
    model, example = decoder.tiny_qwen(), Example()
    replace_classes(model, Qwen25VLBackbone.hooked_classes)
    moved = (every_logit(model, example) - every_logit(model, example, stock=True)).abs().amax(-1)
    seen = (example.index >= 0).cumsum(1) > 0
    assert (moved[example.attention_mask.bool() & seen] > 1e-3).all()


@torch.no_grad()
def test_an_encoding_of_other_tokens_is_an_error() -> None:
    model, example = decoder.tiny_qwen(), Example()
    replace_classes(model, Qwen25VLBackbone.hooked_classes)
    inputs = example.inputs(model)
    example.index, example.patch_centers = example.index[:, :-1], example.patch_centers[:, :-1]
    with pytest.raises(ValueError, match="camera encoding is of 18 tokens, not 19"):
        model(**inputs, camera_encoding=example.encoded())


@torch.no_grad()
@pytest.mark.parametrize("family", ["Qwen3-VL", "Qwen3.5"])
def test_cameras_act_behind_the_norms_of_queries_and_keys(family: str) -> None:
    """The norms would cancel the size of what comes before them."""
    layer = tiny_model("plain", family=family).model.backbone.decoder.layers[-1].self_attn
    seen: list[Any] = []

    class Recorded(EncodedCameras):
        def before_rope(self, q: Tensor, k: Tensor) -> Any:
            seen.extend((q, k))
            return q, k

    hidden = 3 * torch.randn(1, 5, layer.q_proj.in_features)
    heads, rope = (1, 5, -1, layer.head_dim), torch.ones(1, 5, layer.head_dim // (4 if family == "Qwen3.5" else 1))
    layer(hidden, camera_encoding=Recorded(), position_embeddings=(rope, 0 * rope), attention_mask=None)
    q, k = layer.project_queries(hidden)[0].view(heads), layer.k_proj(hidden).view(heads)
    assert torch.equal(seen[0], layer.q_norm(q)) and torch.equal(seen[1], layer.k_norm(k))
    assert not torch.allclose(seen[0], q, atol=0.1)


def test_heads_that_flash_attention_refuses_are_an_error() -> None:
    """Where the encoding is installed, or, if the width follows from the cameras, before the attention."""
    backbone = Qwen25VLBackbone(decoder.tiny_qwen(), None)
    backbone.decoder.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="heads of 264 channels.*attn_implementation sdpa"):
        backbone.install_encoding(HeadSubset(PRoPE(ExtraChannels(232)), [0]))
    backbone.install_encoding(PRoPE(ExtraChannels(224)))
    hidden, rope = torch.zeros(1, 2, 128), torch.zeros(1, 2, 32)
    with pytest.raises(InputError, match="heads of 264 channels"):
        backbone.decoder.layers[0].self_attn(
            hidden, camera_encoding=ZeroChannels(232), position_embeddings=(rope, rope)
        )


# ---- generation and losses -------------------------------------------------------------------------------------


def test_time_in_the_cameras_channels_is_an_error() -> None:
    with pytest.raises(InputError, match="--model.time_index ConstantIndex"):
        task_of(camera_encoding=PRoPE(TemporalSection()))


def scenes() -> list[LoadedScene]:
    """Three questions about one scene, and one about another."""
    return [tiny_scene("one", QUESTIONS[1:4]), tiny_scene("two", QUESTIONS[:1], steps=2, seed=1)]


def test_a_scene_is_encoded_once_however_many_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = task_of()
    calls: list[int] = []
    encode = Qwen25VLBackbone.encode_vision

    def counted(self: Qwen25VLBackbone, pixel_values: torch.Tensor, vision: VisionInputs) -> VisualTokens:
        calls.append(len(vision.lengths))
        return encode(self, pixel_values, vision)

    monkeypatch.setattr(Qwen25VLBackbone, "encode_vision", counted)
    one_by_one, together = (
        [record["prediction"] for record in ours.predict_batch(tiny_batch(ours, *scenes(), at_once=at_once))]
        for at_once in (1, 8)
    )
    assert together == one_by_one and len(one_by_one) == 4 and calls == [2, 2]


def test_the_loss_is_that_of_the_full_logits() -> None:
    """Each question in a row of its own, with the labels that the tokenizer gives."""
    ours = task_of(camera_encoding=PRoPE())
    apart = one_per_row(ours, *scenes())
    assert apart.sequences is not None
    logits = logits_of(ours, ours.model.decoder_inputs(ours.model.encode_scenes(apart), apart.sequences))
    losses, count = [], 0
    for found, row in zip(logits, rows_of(ours, *scenes())[0], strict=True):
        labels = row.labels[1:]
        losses.append(F.cross_entropy(found[: len(labels)], labels))  # of a question, the mean over its answer
        count += int((labels != IGNORED).sum())
    assert count == len(apart.sequences.answer_ids) > 4
    for batch in (apart, tiny_batch(ours, *scenes(), training=True)):
        assert torch.allclose(ours.loss(batch), torch.stack(losses).mean(), atol=1e-6)


def test_half_precision_weights_keep_exact_rope_frequencies() -> None:
    qwen = tiny_backbone(dtype="bfloat16").stock_model()
    assert qwen.lm_head.weight.dtype == torch.bfloat16
    frequencies = {name: b for name, b in qwen.named_buffers() if "inv_freq" in name}
    assert frequencies and all(b.dtype == torch.float32 for b in frequencies.values())


def test_rounding_the_whole_module_is_refused() -> None:
    from lightning import Trainer

    ours = task_of()
    ours.trainer = Trainer(precision="bf16-true", accelerator="cpu", logger=False)
    with pytest.raises(InputError, match="bf16-mixed"):
        ours.setup("fit")


# ---- DeepStack beside a fusion, and patches of 16 ----------------------------------------------------------------

DEEP = partial(DeepFusion, decoder_layers=[1])  # beside DeepStack's layers 0 and 1


def fused(kind: Callable[..., Fusion] = AddFusion, **switches: Any) -> SpatialVLM:
    """An untrained fusion adds nothing to the 2D tokens and their features."""
    torch.manual_seed(0)
    fusion = partial(kind, **switches)
    return SpatialVLM(
        small("Qwen3-VL", seed=0), geometry=lambda: TinyVGGT(embed_dim=32, depth=2, num_heads=2), fusion=fusion
    )


@pytest.mark.parametrize("kind", [AddFusion, DEEP], ids=["add", "deep"])
@torch.no_grad()
def test_features_for_the_first_layers_stay_those_of_the_2d_branch_or_are_left_out(kind: Callable[..., Fusion]) -> None:
    plain, kept, left_out = SpatialVLM(small("Qwen3-VL", seed=0)), fused(kind), fused(kind, deepstack=False)
    given = showing.batch(plain, [SAMPLES["stills and videos"], SAMPLES["a video"]])
    expected = showing.logits(plain, given)
    assert all(torch.equal(a, b) for a, b in zip(showing.logits(kept, given), expected, strict=True))
    without = showing.logits(left_out, given)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(without, expected, strict=True))
    for merger in plain.backbone.vlm.model.visual.deepstack_merger_list:  # features of zeros
        torch.nn.init.zeros_(merger.linear_fc2.weight)
        torch.nn.init.zeros_(merger.linear_fc2.bias)
    for a, b in zip(showing.logits(plain, given), without, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [AddFusion, DEEP], ids=["add", "deep"])
@torch.no_grad()
def test_without_the_2d_branch_its_pixels_reach_no_layer(kind: Callable[..., Fusion]) -> None:
    for branch, moves in (("3d", False), ("both", True), ("2d", True)):
        model = fused(kind, active_branches=branch)
        given = showing.batch(model, [SAMPLES["a video"]])
        before, after = (
            showing.logits(model, given, pixel_values_videos=pixels)[0]
            for pixels in (given["pixel_values_videos"], given["pixel_values_videos"].flip(0))
        )
        assert torch.equal(before, after) != moves, branch


def test_what_serves_features_that_are_left_out_is_not_trained() -> None:
    name = "model.backbone.vlm.model.visual.deepstack_merger_list.0.linear_fc1.weight"
    for switches, trains in (({}, True), ({"deepstack": False}, False), ({"active_branches": "3d"}, False)):
        task = VideoQATask(
            backbone=small(
                "Qwen3-VL",
            ),
            geometry=lambda: TinyVGGT(embed_dim=32, depth=2, num_heads=2),
            fusion=partial(AddFusion, **switches),
            learning_rates=RATES,
        )
        assert dict(task.named_parameters())[name].requires_grad == trains
        assert task.part_of(name) == "connector"


def test_appended_tokens_have_no_such_features() -> None:
    features = torch.randn(2, 3, 6, 8)
    fitted = CameraTokenFusion(8, 4).fit_deepstack(features, 7)
    assert torch.equal(fitted[:, :, :6], features) and not fitted[:, :, 6:].any()
    assert CameraTokenFusion(8, 4, deepstack=False).fit_deepstack(features, 7).shape == (0, 3, 7, 8)


def frames_of(model: SpatialVLM, frames: Tensor) -> Tensor:
    assert model.geometry is not None
    return encoder_frames(frames, model.backbone.patch_size, model.geometry.patch_size)


def test_an_encoder_with_patches_of_its_own_gets_resampled_frames() -> None:
    model = fused()
    frames = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
    small = frames_of(model, frames)
    assert small.shape == (2, 3, 56, 84) and 0 <= small.min() < small.max() <= 1
    same = SpatialVLM(geometry=TinyVGGT, fusion=AddFusion)  # on Qwen2.5-VL, of 14 as well
    assert torch.equal(frames_of(same, frames), frames / 255)


def test_the_datasets_rays_are_those_of_patches_of_16() -> None:
    task = tiny_model("prope.yaml", family="Qwen3-VL")
    shown = tiny_batch(task, tiny_scene("a", family="Qwen3-VL")).scenes[0]
    (found,) = task.model.geometry([shown.frames.float() / 255], [shown.geometry])
    assert found.patches.shape[:3] == (6, 4, 6) and found.patches.shape[1:3] == tuple(shown.grid_thw[1:])
    shown.geometry.depth = None  # in the size of the frames
    (other,) = DatasetGeometry(depth=False)([torch.zeros(6, 3, 56, 84)], [shown.geometry])
    assert torch.equal(found.patches, other.patches)  # the same grid of rays, whatever the size of its patches


def test_a_baseline_with_a_backbone_of_another_family_is_an_error() -> None:
    for baseline, backbone in ((Qwen3VL, TinyQwen25VL), (Qwen25VL, TinyQwen3VL)):
        with pytest.raises(InputError, match=f"{baseline.__name__} with the backbone {backbone.__name__}"):
            baseline(backbone=backbone())
    assert isinstance(Qwen3VL().model.loader, TinyQwen3VL)
