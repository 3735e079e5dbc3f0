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

from datamodules import FrameCache, RandomFocalLength, Rooms, VideoQADataModule
from datamodules.chat_format import LABELS, ChatFormat, media_of
from datamodules.inference import batch_of_questions
from datamodules.resize import FixedWidthStills, OriginalStills, compressed
from datamodules.scenes import Question, RawQuestion
from tests.cases import each_once
from tests.conftest import ROOMS
from tests.golden.synth import synth_video
from tests.zoo.fused_golden import MEAN_STD, load_case
from tests.zoo.released import GOLDEN
from zoo import (
    DatasetGeometry,
    GeometryCache,
    InputError,
    PatchMergerFusion,
    PRoPE,
    SpatialVLM,
    Teacher,
    TinyQwen25VL,
    TinyQwen35,
    TinyVGGT,
)
from zoo.backbones.qwen3_5 import tiny_preprocessor as tiny_qwen35
from zoo.backbones.qwen25_vl import tiny_preprocessor
from zoo.benchmarks.base import FRAMES_PREFIX
from zoo.benchmarks.vsibench import VSIBench
from zoo.cameras.poses import intrinsics_in_pixels, normalize_intrinsics
from zoo.checkpoints import official_pictures
from zoo.geometry import CachedGeometry
from zoo.geometry.base import ScaleSource, SceneGeometry
from zoo.geometry.vggt import cameras_to_pose_encoding
from zoo.scene_encoding import encode_geometry
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import LoadedScene

PICTURES = [
    *(("vg_llm", name, way) for name in ("images3_480x640", "images2_portrait_640x360") for way in ("eval", "train")),
    ("vg_llm", "video_97x131_of_10_frames", "eval"),
    *(
        ("spatial_stack", name, way)
        for name in ("images2_480x640", "images2_portrait_300x180")
        for way in ("eval", "train", "infer")
    ),
]
ASKED = VSIBench().with_prompt(FRAMES_PREFIX, system_prompt="You are a helpful assistant.")  # of both protocols
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
        frames, whole, *_ = FixedWidthStills()(picture(row), 28)
        assert list(whole.shape[-2:]) == row["vggt"], row
        assert [side // 14 for side in frames.shape[-2:]] == row["train_grid_thw"][1:], row
    for row in sizes("spatial_stack"):
        for way, resize in (("train", FixedWidthStills()), ("eval", OriginalStills())):
            frames, whole, *_ = resize(picture(row), 32)
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
    backbone = TinyQwen35(layers=2, hidden_size=64, heads=2)
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, num_heads=2)
    cached = SpatialVLM(backbone, vggt, GeometryCache(str(tmp_path)), partial(PatchMergerFusion, hidden=16))
    cached.data_config = {"init_args": {"frames_as": "image", "still_resize": {"class_path": "FixedWidthStills"}}}
    with pytest.raises(InputError, match="patches of another size: leave --model.geometry_cache and"):
        batch_of_questions(cached, synth_video(3, 2, 48, 64), ["How many?"], None, None, None)
    with pytest.raises(InputError, match="600 x 20 pixels has no row of tokens at a width of 518: crop it"):
        stills(torch.zeros(1, 3, 20, 600, dtype=torch.uint8), 28)


def test_options_of_a_run_that_was_trained_on_videos_change_nothing_in_its_test(
    rooms_root: Path, tmp_path: Path
) -> None:
    """A frame cache keeps none of these frames, and an augmentation is of the training alone."""
    shown = dict(num_frames=4, frames_as="image", still_resize=FixedWidthStills())
    others = dict(frame_cache=FrameCache(str(tmp_path / "cache")), augmentation=RandomFocalLength())
    found = []
    for options in (shown, {**shown, **others}):
        data = VideoQADataModule(Rooms(scenes=ROOMS, root=str(rooms_root)), **options)  # type: ignore[arg-type]
        found.append(data.dataset(data.source.scenes("test"))[0])
    assert found[0].error is None and torch.equal(found[0].frames, found[1].frames)
    assert not [*tmp_path.rglob("*.safetensors")]


@pytest.mark.parametrize("model, preprocessor", [("vg_llm", tiny_preprocessor()), ("spatial_stack", tiny_qwen35())])
def test_training_texts_are_the_published_ones(model: str, preprocessor: Any) -> None:
    """SpatialStack's have an empty block of thoughts before each answer, which is not supervised."""
    for row in json.loads((GOLDEN / f"{model}/preprocess/training_text.json").read_text())["rows"]:
        said = [turn["value"] for turn in row["conversation"]]
        turns = list(zip(said[::2], said[1::2], strict=True))
        question = RawQuestion("0", "", *turns[0], later_turns=tuple(turns[1:]))
        images = [[{"type": "image"}] for _ in row["placeholders_per_image"]]
        texts = ChatFormat(preprocessor, ASKED).chat(question, images, with_answers=True)
        tokens = preprocessor.tokenize(texts, [(1, 2, 2 * n) for n in row["placeholders_per_image"]], ExtraTokens.NONE)
        decode = preprocessor.processor.tokenizer.decode
        assert decode(tokens.input_ids, skip_special_tokens=False) == row["text"]
        supervised = decode(tokens.input_ids[tokens.labels >= 0], skip_special_tokens=False)
        assert supervised == "".join(row["supervised_parts"])


@pytest.mark.parametrize("case", ["images3_480x640", "video_97x131_of_10_frames", "images2_portrait_640x360"])
def test_prompts_of_an_evaluation_are_the_published_ones(case: str) -> None:
    meta, _ = load_case(f"vg_llm/preprocess/{case}")
    pad = f"<|image_pad|>x{meta['eval_placeholders_per_image']}"
    asked = Question("0", "object_counting", "How many chairs are in the room?")
    labels = LABELS["indexed_image"] if meta.get("add_frame_index") else None
    indices = tuple(range(2 * meta["eval_text"].count(pad)))
    scene = LoadedScene("a", (asked,), kind="image", is_one_medium=True, frame_indices=indices, labels=labels)
    (prompt,) = ChatFormat(tiny_preprocessor(), ASKED).chat(asked, media_of(scene))
    assert prompt == meta["eval_text"].replace(pad, "<|image_pad|>")


@pytest.mark.parametrize(
    ("family", "side", "size"),
    [
        (TinyQwen25VL, 504, (64, 48)),
        (TinyQwen35, 512, (48, 64)),
        pytest.param(TinyQwen25VL, 504, (48, 64), marks=pytest.mark.slow),
        pytest.param(TinyQwen35, 512, (64, 48), marks=pytest.mark.slow),
    ],
)
def test_cameras_and_depth_are_those_of_what_the_tower_sees(
    family: Callable[..., Any], side: int, size: tuple[int, int]
) -> None:
    """The rows of a picture, as its brightness and its depth; an encoder without patches of its own sees the crop."""
    model = SpatialVLM(
        family(layers=2, hidden_size=64, heads=2), DatasetGeometry, fusion=partial(PatchMergerFusion, hidden=16)
    )
    model.data_config = {"init_args": {"frames_as": "image", "still_resize": {"class_path": "FixedWidthStills"}}}
    height, width = size
    rows = torch.arange(height, dtype=torch.float32)[None, :, None].expand(2, -1, width)
    K_px = torch.tensor([[40.0, 0.0, 20.0], [0.0, 50.0, 30.0], [0.0, 0.0, 1.0]], dtype=torch.float64).repeat(2, 1, 1)
    geometry = SceneGeometry(
        world_to_camera=torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        K_normalized=normalize_intrinsics(K_px, width, height),
        depth=rows + 1,
    )
    pictures = (3 * rows[:, None]).expand(-1, 3, -1, -1).to(torch.uint8)
    asked = batch_of_questions(model, pictures, ["How many?"], geometry, None, None)
    (scene,) = asked.scenes
    assert scene.frames is not None and scene.geometry is not None and scene.geometry.depth is not None
    assert scene.frames.shape[-2:] == scene.geometry.depth.shape[-2:]
    shown = scene.frames[:, 0].float() / 3
    assert (shown - (scene.geometry.depth - 1)).abs().max() < 1.1  # nearest and cubic neighbors
    scaled = round(height * 518 / width / 14) * 14
    top = max(0, scaled - 518) // 2
    in_pixels = intrinsics_in_pixels(normalize_intrinsics(K_px, width, height), 518, scaled)
    in_pixels[:, 1, 2] -= top
    expected = normalize_intrinsics(in_pixels, side, scene.frames.shape[-2])
    assert scene.frames.shape[-1] == side and (top > 0) == (height > width)
    torch.testing.assert_close(scene.geometry.K_normalized[::2], expected)
    with torch.no_grad():
        (encoded,) = model.encode_scenes(asked)
    assert encoded.visual.tokens.isfinite().all()


@pytest.mark.parametrize(("family", "size"), each_once([TinyQwen25VL, TinyQwen35], [(64, 48), (48, 64)]))
def test_an_encoder_is_given_the_cameras_of_the_frames_that_it_sees(
    family: Callable[..., Any], size: tuple[int, int]
) -> None:
    """A point has one pixel of the picture in VGGT's frames and in the tower's; the control: each has K of its own."""
    vggt = TinyVGGT(embed_dim=32, depth=2, num_heads=2)
    model = SpatialVLM(
        family(layers=2, hidden_size=64, heads=2), lambda: vggt, fusion=partial(PatchMergerFusion, hidden=16)
    )
    model.data_config = {"init_args": {"frames_as": "image", "still_resize": {"class_path": "FixedWidthStills"}}}
    K_px = torch.tensor([[40.0, 0.0, 20.0], [0.0, 50.0, 30.0], [0.0, 0.0, 1.0]], dtype=torch.float64).repeat(2, 1, 1)
    poses, K = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1), normalize_intrinsics(K_px, *reversed(size))
    geometry = SceneGeometry(world_to_camera=poses, K_normalized=K)
    seen: list[Any] = []
    model.geometry.register_forward_pre_hook(lambda _, inputs: seen.extend(zip(*inputs, strict=True)))  # type: ignore
    with torch.no_grad():
        (scene,) = (asked := batch_of_questions(model, synth_video(3, 2, *size), ["?"], geometry, None, None)).scenes
        model.encode_scenes(asked)
    ((_, given),) = seen
    assert scene.geometry is not None and (part := scene.vision_window) is not None
    in_tower = intrinsics_in_pixels(scene.geometry.K_normalized[::2], part.columns, part.rows)
    in_encoder = intrinsics_in_pixels(given.K_normalized, part.width, part.height)
    in_encoder[:, :2, 2] -= torch.tensor([part.left, part.top])
    torch.testing.assert_close(in_encoder, in_tower)
    assert (given.K_normalized - scene.geometry.K_normalized[::2]).abs().max() > 0.005


def shown_stills(model: SpatialVLM, height: int, width: int, **data: Any) -> Any:
    """A batch about frames in memory, as stills of width 518."""
    still_resize = {"class_path": "datamodules.FixedWidthStills"}
    model.data_config = {"init_args": {"frames_as": "image", "still_resize": still_resize, **data}}
    return batch_of_questions(model, synth_video(3, 2, height, width), ["How many?"], None, None, None)


@pytest.mark.parametrize(
    "family, height, width, seen, patches, tokens",
    [  # rows of the picture in a width of 518: first and number of those that VGGT sees, and that the tower does
        pytest.param(*case, tokens, marks=() if tokens == (number in (1, 2)) else pytest.mark.slow)
        for tokens in (True, False)
        for number, case in enumerate(
            [
                (TinyQwen25VL, 480, 640, ((0, 392), (0, 392)), (28, 37)),
                (TinyQwen25VL, 640, 360, ((203, 518), (203, 504)), (37, 37)),
                (TinyQwen35, 480, 640, ((0, 392), (0, 384)), (24, 32)),
                (TinyQwen35, 640, 360, ((0, 924), (203, 512)), (32, 32)),
            ]
        )
    ],
)
def test_predicted_cameras_are_those_of_what_the_tower_sees(
    family: Callable[..., Any], height: int, width: int, seen: Any, patches: tuple[int, int], tokens: bool
) -> None:
    """VGGT sees a row and a column of patches more, or the whole original picture on the tower's grid."""
    vggt = TinyVGGT(embed_dim=32, depth=2, num_heads=2, heads=["camera", "depth"])
    vggt.enable_head("depth")
    model = SpatialVLM(
        family(layers=2, hidden_size=64, heads=2), lambda: vggt, fusion=partial(PatchMergerFusion, hidden=16)
    )
    scenes = shown_stills(model, height, width).scenes
    frames, (_, *grid) = scenes[0].frames, scenes[0].grid_thw
    with torch.no_grad():
        (own,) = vggt([frames[::2] / 255], [None], tokens=True, cameras=True)
        (found,) = encode_geometry(
            vggt, scenes, model.backbone.patch_size, tokens=tokens, cameras=True, stills_once=True
        )
    assert own.K_normalized is not None and found.K_normalized is not None and found.world_to_camera is not None
    (first, rows), (top, kept) = seen
    in_pixels = intrinsics_in_pixels(own.K_normalized, 518, rows)
    in_pixels[:, 1, 2] -= top - first
    expected = normalize_intrinsics(in_pixels, grid[1] * model.backbone.patch_size, kept)
    torch.testing.assert_close(found.K_normalized[::2], expected)
    assert (expected - own.K_normalized).abs().max() > 0.005  # the control: as VGGT predicts them
    torch.testing.assert_close(found.world_to_camera[::2], own.world_to_camera)
    # depth: of the same rows, on the tower's grid
    assert own.depth is not None and found.depth is not None and own.patches is not None
    assert found.depth.shape[-2:] == (14 * grid[0], 14 * grid[1])
    row = int((top - first + (14 * 10 + 0.5) * kept / (14 * grid[0])) * own.depth.shape[1] / rows)
    assert torch.equal(found.depth[0, 14 * 10, :14], own.depth[0, row, :14])
    # 3D tokens stay under the patches of the same row and column
    assert own.patches.shape[1:3] == patches and (found.patches is not None) == tokens
    assert found.patches is None or torch.equal(found.patches[::2], own.patches[:, : grid[0], : grid[1]])


@pytest.mark.parametrize(
    "family, height, width",
    [
        pytest.param(TinyQwen25VL, 480, 640, marks=pytest.mark.slow),
        (TinyQwen25VL, 640, 360),
        (TinyQwen35, 640, 360),
    ],
)
def test_a_teacher_shows_what_the_tower_sees(
    family: Callable[..., Any], height: int, width: int, tmp_path: Path
) -> None:
    """As the geometry of a model does; the scale is that of all that the teacher sees."""

    class Whole(ScaleSource):
        def meters_per_unit(self, scene: SceneGeometry, frames: Tensor, given: SceneGeometry | None) -> float:
            assert scene.depth is not None and scene.depth.shape[-2:] == frames.shape[-2:]
            return 2.0

    vggt = partial(TinyVGGT, embed_dim=32, depth=2, num_heads=2, heads=["camera", "depth"], seed=0)
    model = SpatialVLM(family(layers=2, hidden_size=64, heads=2), vggt, fusion=partial(PatchMergerFusion, hidden=16))
    scenes, patch_size = shown_stills(model, height, width).scenes, model.backbone.patch_size
    encoder, teacher = vggt(), Teacher(vggt, scale=Whole)
    encoder.enable_head("depth")
    with torch.no_grad():
        (expected,) = encode_geometry(encoder, scenes, patch_size, tokens=True, cameras=True, stills_once=True)
    teacher.targets = frozenset({"pose_enc", "depth", "meters_per_unit"})
    (found,) = teacher(scenes, patch_size)
    assert found is not None and found.depth is not None and found.meters_per_unit == 2 and not found.tokens
    assert expected is not None and expected.depth is not None and expected.patches is not None
    torch.testing.assert_close(found.depth, expected.depth[::2])
    poses, K, _ = expected[::2].cameras()
    size = rows, columns = found.depth.shape[-2:]
    torch.testing.assert_close(
        found.pose_enc, cameras_to_pose_encoding(poses, intrinsics_in_pixels(K, columns, rows), size).float()
    )
    # tokens, and a cache: of a tower with patches of the teacher's size alone
    if patch_size == 14:
        for cache in (None, GeometryCache(str(tmp_path))):
            (learned,) = Teacher(vggt, cache)(scenes, patch_size)
            assert learned is not None
            torch.testing.assert_close(learned.tokens[0].float(), expected.patches[::2], atol=0.02, rtol=0.02)
        return
    with pytest.raises(InputError, match="Distillation learns tokens of what the vision encoder sees"):
        Teacher(vggt)(scenes, patch_size)
    cached = CachedGeometry(vggt, GeometryCache(str(tmp_path)))
    cached.match_patches(patch_size)
    for read in (
        lambda: Teacher(vggt, GeometryCache(str(tmp_path)))(scenes, patch_size),
        lambda: encode_geometry(cached, scenes, patch_size, tokens=True, cameras=True),
    ):
        with pytest.raises(InputError, match="patches of another size: leave .* --model.teacher.cache out"):
            read()


def test_predicted_cameras_are_the_same_when_a_data_worker_has_read_them(tmp_path: Path) -> None:
    """Cameras alone, whose entry has no 3D tokens that would tell its size."""
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, num_heads=2)
    model = SpatialVLM(
        TinyQwen25VL(layers=2, hidden_size=64, heads=2),
        vggt,
        GeometryCache(str(tmp_path)),
        camera_encoding=PRoPE(),
        camera_source="predicted",
    )
    cameras = []
    for is_read in (False, True):
        asked = shown_stills(model, 480, 640)
        assert (asked.scenes[0].cached_geometry is not None) == is_read
        with torch.no_grad():
            (encoded,) = model.encode_scenes(asked)
        cameras.append(encoded.cameras.K_normalized)
    assert torch.equal(*cameras)
    stored = asked.scenes[0].cached_geometry.K_normalized
    torch.testing.assert_close(cameras[0][:, 0, 0], stored[::2, 0, 0] * 518 / 504)
