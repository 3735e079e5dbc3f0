"""Fused models as a whole: samples apart whatever a batch holds, the forms of stills, frozen geometry, positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tests.zoo import asking
from tests.zoo.released import build as build_case
from tests.zoo.released import load_case
from tests.zoo.showing import SAMPLES, batch, logits
from zoo import (
    VGLLM,
    CameraTokenFusion,
    ConcatSplitFusion,
    ConcatSplitMLLM,
    DeepFusion,
    InputError,
    PatchMergerFusion,
    Qwen25VL,
    SpatialMLLM,
    SpatialStack,
    SpatialVLM,
    StackFusion,
    TinyQwen25VL,
    TinyVGGT,
)
from zoo.media import batch_of_media
from zoo.sequences.layout import ExtraTokens
from zoo.tasks import VideoQATask
from zoo.tasks.models import _warn_of_layers


def tiny(kind: Callable[..., VideoQATask], **parts: Any) -> SpatialVLM:
    """A small model whose fusion says something."""
    model = kind(
        backbone=asking.tiny_backbone(), geometry=lambda: TinyVGGT(embed_dim=32, depth=4, num_heads=2), **parts
    ).model
    with torch.no_grad():
        for i, parameter in enumerate(model.fusion.parameters()):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return model


def on_the_token(width: int, channels: int) -> ConcatSplitFusion:
    return ConcatSplitFusion(width, channels, axis="token")


MODELS: dict[str, Callable[[], SpatialVLM]] = {
    "official": lambda: build_case(load_case("one_video")[0])[0],
    "concat on the channel": lambda: tiny(ConcatSplitMLLM),
    "concat on the token": lambda: tiny(ConcatSplitMLLM, fusion=on_the_token),
    "camera token": lambda: tiny(SpatialMLLM, fusion=CameraTokenFusion),
    "deep": lambda: tiny(SpatialMLLM, fusion=partial(DeepFusion, decoder_layers=[0])),
    "patch merger": lambda: tiny(VGLLM, fusion=partial(PatchMergerFusion, hidden=16)),
    "stack": lambda: tiny(SpatialStack, fusion=partial(StackFusion, decoder_layers=[0, 0], hidden=16)),
}


# 3D tokens added to 2D tokens, appended to them, and added after decoder layers: the others are slow tests
FEW = [
    pytest.param(name, marks=() if name in ("official", "concat on the token", "stack") else pytest.mark.slow)
    for name in MODELS
]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> SpatialVLM:
    return MODELS[request.param]()


@pytest.mark.parametrize(("depth", "remedy"), [(4, ""), (24, ': set --model.geometry.layers "[11, 17, 23]"')])
def test_layers_that_an_encoder_lacks_are_not_advised(depth: int, remedy: str) -> None:
    with pytest.warns(UserWarning, match="reads three layers") as said:
        _warn_of_layers(TinyVGGT(embed_dim=16, depth=depth, num_heads=2), (11, 17, 23), "it reads three layers")
    assert str(said[0].message) == f"it reads three layers, this model the last{remedy}"


# ---- a batch is its samples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_a_batch_is_its_samples(model: SpatialVLM, side: str) -> None:
    samples = list(SAMPLES.values())
    together = logits(model, batch(model, samples, side))
    for i, sample in enumerate(samples):
        (alone,) = logits(model, batch(model, [sample], first_seed=i))
        assert torch.allclose(together[i], alone, atol=3e-5), list(SAMPLES)[i]
    (other,) = logits(model, batch(model, samples[:1], first_seed=1))
    assert (other - together[0]).abs().max() > 0.05  # negative control: what is shown matters


@pytest.mark.parametrize("model", FEW, indirect=True)
def test_generation_of_a_batch_is_that_of_its_samples(model: SpatialVLM) -> None:
    samples = list(SAMPLES.values())
    together = model.generate_ids(**batch(model, samples), max_new_tokens=4)
    for i, sample in enumerate(samples):
        assert model.generate_ids(**batch(model, [sample], first_seed=i), max_new_tokens=4) == together[i : i + 1]


@pytest.mark.parametrize("model", FEW, indirect=True)
@pytest.mark.parametrize("sample", [pytest.param("stills", marks=pytest.mark.slow), "stills and videos"])
def test_stills_may_come_one_by_one_or_as_a_scene_once_or_twice_each(model: SpatialVLM, sample: str) -> None:
    given = batch(model, [SAMPLES[sample]] * 2)
    expected = logits(model, given)
    count = SAMPLES[sample].count(next(each for each in SAMPLES[sample] if each[0] == "i"))
    stills = [len(frames) == 2 * count and frames.shape[-1] == 56 for frames in given["frames"]]
    assert sum(stills) == 2  # a scene each
    pairs = list(zip(given["frames"], stills, strict=True))
    once = [frames[::2] if still else frames for frames, still in pairs]
    # an entry each comes in the order in which they are shown, a video between the stills included
    order = [kind for kind, *_ in SAMPLES[sample] if kind != "t"]
    doubled: list[torch.Tensor] = []
    for i in range(2):
        own = pairs[i * len(pairs) // 2 : (i + 1) * len(pairs) // 2]
        videos = iter([frames for frames, still in own if not still])
        parts = iter([part for frames, still in own if still for part in frames.split(2)])
        doubled += [next(videos if kind == "v" else parts) for kind in order]
    one_by_one = [frames[:1] if len(frames) == 2 and frames.shape[-1] == 56 else frames for frames in doubled]
    for form in (once, one_by_one, doubled):
        assert all(torch.equal(a, b) for a, b in zip(logits(model, given, frames=form), expected, strict=True))
    swapped = [frames.flip(0) if still else frames for frames, still in pairs]
    assert not torch.allclose(logits(model, given, frames=swapped)[0], expected[0], atol=1e-3)


def test_frames_of_a_wrong_number_size_or_range_are_errors() -> None:
    model = MODELS["concat on the channel"]()
    given = batch(model, [SAMPLES["two videos"]])
    first, second = given["frames"]
    for frames, why in (
        ([first], "1 entries of frames, and the sequences show 2 videos and images in 2 scenes"),
        ([first, second[:4]], "needs 6 frames, got 4"),
        ([first, second, second], "3 entries of frames"),
        ([first, 2 * second - 1], "floats in 0..1, or bytes: .*undo a normalization"),
        ([first, (255 * second).int()], "floats in 0..1, or bytes: divide by 255"),
        (None, "TinyVGGT needs the frames of each video"),
    ):
        with pytest.raises(InputError, match=why):
            logits(model, given, frames=frames)
    with pytest.raises(InputError, match="3D tokens of 2 x 2 patches a frame under 2D tokens of 2 x 4"):
        logits(model, given, frames=[first, second[..., :28]])
    stills = batch(model, [[("i", 4, 4), ("i", 2, 8), ("t", 2)]])
    with pytest.raises(InputError, match="images of a sequence are one scene and need one size"):
        logits(model, stills)


@pytest.mark.parametrize("model", FEW, indirect=True)
def test_time_may_be_a_list_a_tensor_or_left_out(model: SpatialVLM) -> None:
    given = batch(model, [SAMPLES["two videos"]])
    seconds = given["seconds_per_grid"]
    (expected,) = logits(model, given)
    assert torch.equal(logits(model, given, seconds_per_grid=torch.tensor(seconds))[0], expected)
    nominal = logits(model, given, seconds_per_grid=None)[0]
    assert torch.equal(logits(model, given, seconds_per_grid=[1.0, 1.0])[0], nominal)
    assert not torch.allclose(nominal, expected, atol=1e-3)


# ---- geometry --------------------------------------------------------------------------------------------------


def test_the_geometry_is_frozen_and_in_eval_even_while_training() -> None:
    fresh = SpatialMLLM(lambda: TinyVGGT(embed_dim=32, depth=4, num_heads=2), backbone=TinyQwen25VL(layers=1))
    fresh.train()
    assert not any(part.training for part in fresh.model.geometry.modules())
    assert fresh.model.fusion.training and fresh.model.backbone.decoder.training
    assert not any(parameter.requires_grad for parameter in fresh.model.geometry.parameters())


# ---- tokens of their own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("appended", [ExtraTokens.ALL, ExtraTokens.ONE])
def test_appended_tokens_share_positions_and_have_no_camera(appended: ExtraTokens) -> None:
    """Without them a sequence is as the plain model has it, the text after the video included."""
    model = MODELS["concat on the token" if appended is ExtraTokens.ALL else "camera token"]()
    plain = Qwen25VL(backbone=asking.tiny_backbone(layers=1)).model
    samples = list(SAMPLES.values())
    layouts = []
    for each in (model, plain):
        given = batch(each, samples)
        media: Any = {name: value for name, value in given.items() if name not in ("input_ids", "attention_mask")}
        made = batch_of_media(each.sequence_builder, given["input_ids"], given["attention_mask"], media).sequences
        assert made is not None
        layouts.append((given, made.position_ids, made.camera_index))
    (longer, positions, cameras), (shorter, expected, expected_cameras) = layouts
    config = model.backbone.vlm.config
    for row, sample in enumerate(samples):
        own, shared = [], []  # columns of what the plain model has too; (appended, the 2D token it goes with)
        column = int(longer["attention_mask"][row].argmax())
        for kind, *what in sample:
            if kind == "t":
                own += range(column, column + what[0])
                column += what[0]
                continue
            steps, view = (what[0] if kind == "v" else 1), what[-2] * what[-1] // 4
            own.append(column)
            column += 1
            for _ in range(steps):
                own += range(column, column + view)
                extra = range(view if appended is ExtraTokens.ALL else 1)
                shared += [(column + view + i, column + i) for i in extra]
                column += view + len(extra)
            own.append(column)
            column += 1
        assert column == longer["input_ids"].shape[1] and len(own) == int(shorter["attention_mask"][row].sum())
        real = shorter["attention_mask"][row].bool()
        assert torch.equal(positions[:, row, own], expected[:, row, real])
        assert torch.equal(cameras[row, own], expected_cameras[row, real])
        for extra, beside in shared:
            assert torch.equal(positions[:, row, extra], positions[:, row, beside]) and cameras[row, extra] == -1
            assert longer["input_ids"][row, extra] in (config.video_token_id, config.image_token_id)
        assert bool(shared) == (sample != SAMPLES["text"]) and (expected_cameras[row] >= 0).any() == bool(shared)


@pytest.mark.parametrize("encoding", [None, "PRoPE, ChannelRange"])
def test_appended_tokens_of_scenes_with_many_questions(encoding: str | None) -> None:
    """As the DataModule brings them: answers from a shared prefix are those of each question by itself."""
    parts: dict[str, Any] = {} if encoding is None else {"camera_encoding": encoding}
    fusion = asking.build("ConcatSplitFusion", fusion=on_the_token, **parts)
    asked = asking.batch(fusion, asking.scene("a"), asking.scene("b", steps=2, seed=1))
    assert [reply.ids for reply in asking.replies(fusion, asked)] == asking.one_by_one(fusion, asked)
    assert fusion.loss(asking.batch(fusion, asking.scene("a"), training=True)).isfinite()
    (ids, *_), video = asking.prompts_of(asked), fusion.model.backbone.placeholders.video
    ids[len(ids) - 1 - ids[::-1].index(video)] = 20  # a placeholder too few
    with pytest.raises(ValueError, match="fewer placeholder tokens"):
        fusion.model.sequence_builder.prompts([ids], [[0]], asked.scenes)
