"""Pictures as VG-LLM and SpatialStack see them, against numbers from the published code."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import FrameCache, RandomFocalLength, VideoQADataModule
from datamodules.asking import batch_of_questions
from datamodules.scenes import RawQuestion
from datamodules.still_resize import FixedWidthStills, OriginalStills, compressed
from datamodules.wording import Wording
from tests.golden.synth import synth_video
from tests.zoo.fused_golden import MEAN_STD, load_case
from tests.zoo.released import GOLDEN
from zoo import (
    ChannelRange,
    GeometryCache,
    InputError,
    PatchMergerFusion,
    PRoPE,
    SpatialVLM,
    TinyQwen25VL,
    TinyQwen35,
    TinyVGGT,
)
from zoo.backbones.qwen3_5.tiny import tiny_preprocessor as tiny_qwen35
from zoo.backbones.qwen25_vl.tiny import tiny_preprocessor
from zoo.checkpoints import official_pictures
from zoo.geometry.base import SceneGeometry
from zoo.sequences.visual_grid import ExtraTokens

PICTURES = [
    *(("vg_llm", name, way) for name in ("images3_480x640", "images2_portrait_640x360") for way in ("eval", "train")),
    ("vg_llm", "video_97x131_of_10_frames", "eval"),
    *(
        ("spatial_stack", name, way)
        for name in ("images2_480x640", "images2_portrait_300x180")
        for way in ("eval", "train", "infer")
    ),
]
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
GEOMETRY = {"vg_llm": "vggt", "spatial_stack": "geometry"}


@pytest.mark.parametrize("model, name, way", PICTURES)
def test_pictures_are_the_published_ones(model: str, name: str, way: str) -> None:
    meta, t = load_case(f"{model}/preprocess/{name}")
    pictures = synth_video(meta["synth_seed"], meta["total_frames"], meta["height"], meta["width"])
    if "frame_indices" in meta:
        pictures = pictures[meta["frame_indices"]]
    if "JPEG" in str(meta["ways"][way] if "ways" in meta else meta["way"] * (way == "eval")) and "without" not in str(
        meta.get("way")
    ):
        pictures = compressed(pictures)
    frames, pixel_values, grid_thw = official_pictures(model, pictures, training=way == "train")
    geometry = t[f"{way}_{GEOMETRY[model]}_u8_strided"]
    assert ((frames * 255).round()[..., ::9, ::7] - geometry.float()).abs().max() <= 1
    assert torch.equal(grid_thw, t[f"{way}_image_grid_thw"])
    assert list(pixel_values.shape) == t[f"{way}_pixel_values_shape"].tolist()
    rows = t[f"{way}_pixel_values_rows_u8"]
    mean, std = (torch.tensor(each)[:, None, None] for each in MEAN_STD[rows.shape[-1]])
    level = (1 / 255 / std).max().item()  # one level of 255
    expected = ((rows / 255 - mean) / std)[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1)
    assert (pixel_values[t[f"{way}_pixel_values_row_index"]] - expected).abs().max() < 1.01 * level
    column = t[f"{way}_pixel_values_column_mean"]
    assert torch.allclose(pixel_values.double().mean(0), column, atol=0.05 * level)


def sizes(model: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / f"{model}/preprocess/sizes.json").read_text())["rows"]


def picture(row: dict[str, Any]) -> Tensor:
    return torch.zeros(1, 3, row["height"], row["width"], dtype=torch.uint8)


def test_sizes_are_the_published_ones_and_the_patches_lie_under_each_other() -> None:
    for row in sizes("vg_llm"):
        frames, whole = FixedWidthStills()(picture(row), 28)
        assert list(whole.shape[-2:]) == row["vggt"], row
        assert [side // 14 for side in frames.shape[-2:]] == row["train_grid_thw"][1:], row
    for row in sizes("spatial_stack"):
        for way, resize in (("train", FixedWidthStills()), ("eval", OriginalStills())):
            frames, whole = resize(picture(row), 32)
            assert list(whole.shape[-2:]) == row[f"{way}_geometry"], (way, row)
            assert [side // 16 for side in frames.shape[-2:]] == row[f"{way}_grid_thw"][1:], (way, row)
            assert [side // 16 for side in frames.shape[-2:]] == [side // 14 for side in whole.shape[-2:]]


@pytest.mark.parametrize(
    "family, grid, seen", [(TinyQwen25VL, (1, 28, 36), (392, 518)), (TinyQwen35, (1, 24, 32), (336, 448))]
)
def test_a_model_sees_them(family: Callable[..., Any], grid: tuple[int, ...], seen: tuple[int, int]) -> None:
    """The tower a crop, VGGT the whole picture, each still once; of frames in memory as of a video's."""
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, num_heads=2)
    model = SpatialVLM(family(layers=2, hidden_size=64, heads=2), vggt, fusion=partial(PatchMergerFusion, hidden=16))
    still_resize = {"class_path": "datamodules.FixedWidthStills"}
    model.data_config = {"init_args": {"frames_as": "image", "still_resize": still_resize}}
    sizes: list[Any] = []
    model.geometry.register_forward_pre_hook(lambda _, inputs: sizes.extend(f.shape for f in inputs[0]))  # type: ignore
    asked = batch_of_questions(model, synth_video(3, 3, 480, 640), ["How many?"], None, None, None)
    (scene,) = asked.scenes
    assert scene.grid_thw == (3, *grid[1:]) and scene.kind == "image"
    with torch.no_grad():
        (encoded,) = model.encode_scenes(asked)
    assert [tuple(size) for size in sizes] == [(3, 3, *seen)]
    assert encoded.visual.tokens.shape[:2] == (3, grid[1] * grid[2] // 4)


def test_what_does_not_go_with_them_is_refused(tmp_path: Path) -> None:
    stills = FixedWidthStills()
    others: list[dict[str, Any]] = [{"frame_cache": FrameCache(str(tmp_path))}, {"augmentation": RandomFocalLength()}]
    for other in others:
        with pytest.raises(InputError, match="still_resize has frames of two sizes"):
            VideoQADataModule(still_resize=stills, **other)
    backbone = TinyQwen35(layers=2, hidden_size=64, heads=2)
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, num_heads=2)
    cached = SpatialVLM(backbone, vggt, GeometryCache(str(tmp_path)), partial(PatchMergerFusion, hidden=16))
    cached.data_config = {"init_args": {"frames_as": "image", "still_resize": {"class_path": "FixedWidthStills"}}}
    with pytest.raises(InputError, match="patches of another size: leave --model.geometry_cache out"):
        batch_of_questions(cached, synth_video(3, 2, 48, 64), ["How many?"], None, None, None)
    by_cameras = SpatialVLM(TinyQwen25VL(layers=2, hidden_size=64, heads=2), camera_encoding=PRoPE(ChannelRange()))
    by_cameras.data_config = cached.data_config
    geometry = SceneGeometry(world_to_camera=torch.eye(4).repeat(2, 1, 1), K_normalized=torch.eye(3).repeat(2, 1, 1))
    with pytest.raises(InputError, match="FixedWidthStills may crop images: leave it out"):
        batch_of_questions(by_cameras, synth_video(3, 2, 48, 64), ["How many?"], geometry, None, None)


@pytest.mark.parametrize("model, preprocessor", [("vg_llm", tiny_preprocessor()), ("spatial_stack", tiny_qwen35())])
def test_training_texts_are_the_published_ones(model: str, preprocessor: Any) -> None:
    """SpatialStack's have an empty block of thoughts before each answer, which is not supervised; its template has no
    system turn, which the published training puts there.
    """
    for row in json.loads((GOLDEN / f"{model}/preprocess/training_text.json").read_text())["rows"]:
        said = [turn["value"] for turn in row["conversation"]]
        turns = list(zip(said[::2], said[1::2], strict=True))
        question = RawQuestion("0", "", *turns[0], later_turns=tuple(turns[1:]))
        images = [[{"type": "image"}] for _ in row["placeholders_per_image"]]
        texts = Wording(preprocessor).chat(question, images, with_answers=True)
        tokens = preprocessor.tokenize(texts, [(1, 2, 2 * n) for n in row["placeholders_per_image"]], ExtraTokens.NONE)
        decode = preprocessor.processor.tokenizer.decode
        expected = row["text"] if model == "vg_llm" else row["text"].removeprefix(SYSTEM)
        assert decode(tokens.input_ids, skip_special_tokens=False) == expected
        supervised = decode(tokens.input_ids[tokens.labels >= 0], skip_special_tokens=False)
        assert supervised == "".join(row["supervised_parts"])
