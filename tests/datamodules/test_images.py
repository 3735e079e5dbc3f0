"""Frames as images: the inputs of the stock processor for the same images, one camera each, in every path.

With `FixedWidthStills` a model sees pictures as VG-LLM and SpatialStack do, with numbers from the published code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import Duplicate, FrameCache, PixelBounds, RandomFocalLength, Rooms, UniformSampler, VideoQADataModule
from datamodules.chat_format import LABELS, ChatFormat, media_of
from datamodules.collate import QuestionCollate
from datamodules.dataset import SceneDataset
from datamodules.inference import batch_of_questions
from datamodules.resize import FixedWidthStills, OriginalStills, compressed
from datamodules.scenes import Question, RawQuestion
from datamodules.video import Video
from tests.conftest import ROOMS
from tests.datamodules.batches import sequences_of
from tests.golden.synth import synth_video
from tests.tiny import one_by_one, one_per_row, prompts_of, replies, tiny_batch, tiny_model
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
    TinyQwen3VL,
    TinyQwen25VL,
    TinyQwen35,
    TinyVGGT,
)
from zoo.backbones import tiny_preprocessor
from zoo.backbones.qwen3_5 import tiny_preprocessor as tiny_qwen35
from zoo.benchmarks.base import FRAMES_PREFIX
from zoo.benchmarks.vsibench import VSIBench
from zoo.cameras.poses import intrinsics_in_pixels, normalize_intrinsics
from zoo.checkpoints import official_pictures
from zoo.geometry.base import ScaleSource, SceneGeometry
from zoo.geometry.vggt import cameras_to_pose_encoding
from zoo.model_spec import ModelSpec
from zoo.scene_encoding import encode_geometry
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import FrameRules, LoadedScene

QUESTION = "How large is this room?"


def loaded(rooms_root: Path, frames_as: str, requirements: ModelSpec, frames: int = 5, **more: Any) -> Any:
    scenes = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("test")
    scenes = [replace(scenes[0], questions=(Question("0", "", QUESTION, "20"), Question("1", "", "Why?", "4")))]
    bounds = PixelBounds(784, 65536, legacy_folder_resize=False)
    sampler = more.pop("sampler", UniformSampler())
    return SceneDataset(scenes, sampler, frames, bounds, requirements, frames_as=frames_as, **more)[0]


@pytest.mark.parametrize(
    ("loader", "frames_as"),
    [
        (TinyQwen25VL, "image"),
        (TinyQwen3VL, "labeled_image"),
        pytest.param(TinyQwen35, "labeled_image", marks=pytest.mark.slow),
    ],
)
def test_inputs_are_those_of_the_stock_processor(loader: type, frames_as: str, rooms_root: Path) -> None:
    model = SpatialVLM(loader())
    backbone = model.backbone
    needs = ModelSpec(frames=FrameRules(backbone.patch_size, backbone.image_pixels))
    scene = loaded(rooms_root, frames_as, needs)
    assert scene.error is None and scene.num_images == 5 and len(scene.frame_indices) == 10
    made = QuestionCollate(model.model_spec())([scene])

    (video, *_) = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("test")
    stills = list(Video(video.video).read(scene.frame_indices[::2]))
    content: list[dict[str, Any]] = []
    for number, _ in enumerate(stills, start=1):
        label = [{"type": "text", "text": f"Frame-{number}: "}], [{"type": "text", "text": "\n"}]
        before, after = label if frames_as == "labeled_image" else ([], [])
        content += [*before, {"type": "image"}, *after]
    asked = made.records[0]["prompt"].rpartition(QUESTION)[2].partition("<|im_end|>")[0]
    content.append({"type": "text", "text": QUESTION + asked})
    processor = backbone.preprocessor.processor
    options = dict(backbone.preprocessor.template_options)
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False, **options
    )
    stock = processor(text=[chat], images=stills, return_tensors="pt")
    assert prompts_of(made)[0] == stock["input_ids"][0].tolist()
    (inputs,) = made.scenes
    assert inputs.media_grids == [tuple(grid) for grid in stock["image_grid_thw"].tolist()]
    pixels = backbone.preprocessor.normalize(inputs.pixel_values)
    assert torch.allclose(pixels, stock["pixel_values"], atol=2e-2)  # one level of 255
    assert not torch.allclose(pixels.roll(1, 0), stock["pixel_values"], atol=2e-2)  # the control


@pytest.mark.filterwarnings("error")  # a short video, as VG-LLM and SpatialStack evaluate, repeats no frame
def test_each_image_has_the_camera_of_its_frame_and_no_frame_is_merged(rooms_root: Path) -> None:
    needs = ModelSpec(requires_cameras=True)
    stills = loaded(rooms_root, "image", needs, frame_pairing=Duplicate())  # pairings are for videos
    video = loaded(rooms_root, "video", needs, frames=10)
    assert stills.frame_indices[::2] == stills.frame_indices[1::2] == (0, 12, 24, 35, 47)  # of 48
    poses = stills.geometry.world_to_camera
    assert torch.equal(poses[::2], poses[1::2])
    assert not torch.equal(video.geometry.world_to_camera[::2], video.geometry.world_to_camera[1::2])  # the control
    few = loaded(rooms_root, "image", ModelSpec(), frames=5, sampler=UniformSampler(candidates=3))
    assert few.num_images == 3 and few.frame_indices == (0, 0, 23, 23, 47, 47)
    every = loaded(rooms_root, "image", ModelSpec(), frames=100)
    assert every.frame_indices[::2] == tuple(range(48)) and every.num_images == 48


def test_the_mark_of_a_video_is_where_its_stills_are(rooms_root: Path) -> None:
    scene = loaded(rooms_root, "image", ModelSpec())
    raw = RawQuestion("0", "", "Look: <video>\nWhat is it?", "a room")
    prompt, _ = ChatFormat(tiny_preprocessor()).chat(raw, media_of(scene), with_answers=True)
    assert prompt.index("Look: ") < prompt.index("<|image_pad|>") < prompt.index("What is it?")
    assert prompt.count("<|image_pad|>") == 5


def test_answers_and_packed_questions_agree_with_one_by_one(rooms_root: Path) -> None:
    task = tiny_model("PRoPE, ChannelRange")
    scene = loaded(rooms_root, "labeled_image", task.model_spec())
    asked = tiny_batch(task, scene)
    assert [reply.ids for reply in replies(task, asked)] == one_by_one(task, asked)
    packed, alone = tiny_batch(task, scene, training=True), one_per_row(task, scene)
    assert [len(sequences_of(each)) for each in (packed, alone)] == [1, 2]
    assert torch.allclose(task.loss(packed).detach(), task.loss(alone).detach(), rtol=1e-5)


def test_answer_shows_frames_as_the_model_was_trained() -> None:
    frames, model = torch.rand(3, 3, 56, 84), tiny_model("plain").model
    as_video = model.answer(frames, QUESTION)
    model.data_config = {"init_args": {"frames_as": "image"}}
    assert model.answer(frames, QUESTION) != as_video
    model.data_config = {"init_args": {"frames_as": "labeled_image"}}
    made = batch_of_questions(model, frames, [QUESTION], None, None, None)
    assert made.scenes[0].kind == "image"
    assert all(f"Frame-{number}: <" in made.records[0]["prompt"] for number in (1, 2, 3))


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
    stated = str(meta["ways"][way] if "ways" in meta else meta["way"] * (way == "eval"))
    if "JPEG" in stated and "without" not in str(meta.get("way")):
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


def model_of(family: Callable[..., Any], geometry: Any, *cache: GeometryCache, **more: Any) -> SpatialVLM:
    """A tiny model that sees pictures at a width of 518."""
    backbone, fusion = family(layers=2, hidden_size=64, heads=2), partial(PatchMergerFusion, hidden=16)
    model = SpatialVLM(backbone, geometry, *cache, **({"fusion": fusion} | more))
    still_resize = {"class_path": "datamodules.FixedWidthStills"}
    model.data_config = {"init_args": {"frames_as": "image", "still_resize": still_resize}}
    return model


def asked_about(model: SpatialVLM, pictures: Tensor, geometry: SceneGeometry | None = None) -> Any:
    """A batch of one question about pictures in memory."""
    return batch_of_questions(model, pictures, ["How many?"], geometry, None, None)


VGGT = partial(TinyVGGT, embed_dim=32, depth=2, num_heads=2)


@pytest.mark.parametrize(
    "family, grid, seen", [(TinyQwen25VL, (1, 28, 36), (392, 518)), (TinyQwen35, (1, 24, 32), (336, 448))]
)
def test_a_model_sees_them(family: Callable[..., Any], grid: tuple[int, ...], seen: tuple[int, int]) -> None:
    """The vision encoder sees a crop, VGGT the whole picture, each once; of frames in memory as of a video's."""
    model, sizes = model_of(family, VGGT), []
    model.geometry.register_forward_pre_hook(lambda _, inputs: sizes.extend(f.shape for f in inputs[0]))  # type: ignore
    asked = asked_about(model, synth_video(3, 3, 480, 640))
    (scene,) = asked.scenes
    assert scene.grid_thw == (3, *grid[1:]) and scene.kind == "image"
    with torch.no_grad():
        (encoded,) = model.encode_scenes(asked)
    assert [tuple(size) for size in sizes] == [(3, 3, *seen)]
    assert encoded.visual.tokens.shape[:2] == (3, grid[1] * grid[2] // 4)


def test_what_does_not_go_with_them_is_refused(tmp_path: Path) -> None:
    cached = model_of(TinyQwen35, VGGT, GeometryCache(str(tmp_path)))
    with pytest.raises(InputError, match="patches of another size: leave --model.geometry_cache and"):
        asked_about(cached, synth_video(3, 2, 48, 64))
    with pytest.raises(InputError, match="600 x 20 pixels has no row of tokens at a width of 518"):
        FixedWidthStills()(torch.zeros(1, 3, 20, 600, dtype=torch.uint8), 28)


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
    ],
)
def test_cameras_and_depth_are_those_of_what_the_vision_encoder_sees(
    family: Callable[..., Any], side: int, size: tuple[int, int]
) -> None:
    """The rows of a picture, as its brightness and its depth; an encoder without patches of its own sees the crop."""
    model, (height, width) = model_of(family, DatasetGeometry), size
    rows = torch.arange(height, dtype=torch.float32)[None, :, None].expand(2, -1, width)
    K_px = torch.tensor([[40.0, 0.0, 20.0], [0.0, 50.0, 30.0], [0.0, 0.0, 1.0]], dtype=torch.float64).repeat(2, 1, 1)
    geometry = SceneGeometry(
        world_to_camera=torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        K_normalized=normalize_intrinsics(K_px, width, height),
        depth=rows + 1,
    )
    pictures = (3 * rows[:, None]).expand(-1, 3, -1, -1).to(torch.uint8)
    asked = asked_about(model, pictures, geometry)
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


@pytest.mark.parametrize(("family", "size"), [(TinyQwen25VL, (48, 64)), (TinyQwen35, (64, 48))])
def test_an_encoder_is_given_the_cameras_of_the_frames_that_it_sees(
    family: Callable[..., Any], size: tuple[int, int]
) -> None:
    """A point has one pixel of the picture for VGGT and for the vision encoder; the control: each has K of its own."""
    model = model_of(family, VGGT)
    K_px = torch.tensor([[40.0, 0.0, 20.0], [0.0, 50.0, 30.0], [0.0, 0.0, 1.0]], dtype=torch.float64).repeat(2, 1, 1)
    poses, K = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1), normalize_intrinsics(K_px, *reversed(size))
    geometry = SceneGeometry(world_to_camera=poses, K_normalized=K)
    seen: list[Any] = []
    model.geometry.register_forward_pre_hook(lambda _, inputs: seen.extend(zip(*inputs, strict=True)))  # type: ignore
    with torch.no_grad():
        asked = asked_about(model, synth_video(3, 2, *size), geometry)
        model.encode_scenes(asked)
    (scene,) = asked.scenes
    ((_, given),) = seen
    assert scene.geometry is not None and (part := scene.vision_window) is not None
    in_tower = intrinsics_in_pixels(scene.geometry.K_normalized[::2], part.columns, part.rows)
    in_encoder = intrinsics_in_pixels(given.K_normalized, part.width, part.height)
    in_encoder[:, :2, 2] -= torch.tensor([part.left, part.top])
    torch.testing.assert_close(in_encoder, in_tower)
    assert (given.K_normalized - scene.geometry.K_normalized[::2]).abs().max() > 0.005


@pytest.mark.parametrize(
    "family, height, width, seen, patches, tokens",
    [  # rows of the picture in a width of 518: first and number of those that VGGT and the vision encoder see
        (TinyQwen25VL, 480, 640, ((0, 392), (0, 392)), (28, 37), False),
        pytest.param(TinyQwen25VL, 640, 360, ((203, 518), (203, 504)), (37, 37), True, marks=pytest.mark.slow),
        (TinyQwen35, 480, 640, ((0, 392), (0, 384)), (24, 32), True),
        pytest.param(TinyQwen35, 640, 360, ((0, 924), (203, 512)), (32, 32), False, marks=pytest.mark.slow),
    ],
)
def test_predicted_cameras_are_those_of_what_the_vision_encoder_sees(
    family: Callable[..., Any], height: int, width: int, seen: Any, patches: tuple[int, int], tokens: bool
) -> None:
    """VGGT sees a row and a column of patches more, or the whole picture on the vision encoder's grid."""
    vggt = VGGT(heads=["camera", "depth"])
    vggt.enable_head("depth")
    model = model_of(family, lambda: vggt)
    scenes = asked_about(model, synth_video(3, 2, height, width)).scenes
    frames, (_, *grid) = scenes[0].frames, scenes[0].grid_thw
    with torch.no_grad():
        (own,) = vggt([frames[::2] / 255], [None], tokens=True, cameras=True)
        (found,) = encode_geometry(
            vggt, scenes, replace(model.frame_rules, stills_once=True), tokens=tokens, cameras=True
        )
    assert own.K_normalized is not None and found.K_normalized is not None and found.world_to_camera is not None
    (first, rows), (top, kept) = seen
    in_pixels = intrinsics_in_pixels(own.K_normalized, 518, rows)
    in_pixels[:, 1, 2] -= top - first
    expected = normalize_intrinsics(in_pixels, grid[1] * model.backbone.patch_size, kept)
    torch.testing.assert_close(found.K_normalized[::2], expected)
    assert (expected - own.K_normalized).abs().max() > 0.005  # the control: as VGGT predicts them
    torch.testing.assert_close(found.world_to_camera[::2], own.world_to_camera)
    # depth: of the same rows, on the vision encoder's grid
    assert own.depth is not None and found.depth is not None and own.patches is not None
    assert found.depth.shape[-2:] == (14 * grid[0], 14 * grid[1])
    row = int((top - first + (14 * 10 + 0.5) * kept / (14 * grid[0])) * own.depth.shape[1] / rows)
    assert torch.equal(found.depth[0, 14 * 10, :14], own.depth[0, row, :14])
    # 3D tokens stay under the patches of the same row and column
    assert own.patches.shape[1:3] == patches and (found.patches is not None) == tokens
    assert found.patches is None or torch.equal(found.patches[::2], own.patches[:, : grid[0], : grid[1]])


@pytest.mark.parametrize(
    "family, height, width",
    [pytest.param(TinyQwen25VL, 640, 360, marks=pytest.mark.slow), (TinyQwen35, 640, 360)],
)
def test_a_teacher_shows_what_the_vision_encoder_sees(
    family: Callable[..., Any], height: int, width: int, tmp_path: Path
) -> None:
    """As the geometry of a model does; the scale is that of all that the teacher sees."""

    class Whole(ScaleSource):
        def meters_per_unit(self, scene: SceneGeometry, frames: Tensor, given: SceneGeometry | None) -> float:
            assert scene.depth is not None and scene.depth.shape[-2:] == frames.shape[-2:]
            return 2.0

    vggt = partial(VGGT, heads=["camera", "depth"], seed=0)
    model = model_of(family, vggt)
    scenes, patch_size = asked_about(model, synth_video(3, 2, height, width)).scenes, model.backbone.patch_size
    encoder, teacher = vggt(), Teacher(vggt, scale=Whole)
    encoder.enable_head("depth")
    with torch.no_grad():
        (expected,) = encode_geometry(
            encoder, scenes, FrameRules(patch_size, stills_once=True), tokens=True, cameras=True
        )
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
    if patch_size != 14:  # tokens are learned only under the same patches
        with pytest.raises(InputError, match="Distillation"):
            Teacher(vggt)(scenes, patch_size)
        return
    for cache in (None, GeometryCache(str(tmp_path))):
        (learned,) = Teacher(vggt, cache)(scenes, patch_size)
        torch.testing.assert_close(learned.tokens[0].float(), expected.patches[::2], atol=0.02, rtol=0.02)


def test_predicted_cameras_are_the_same_when_a_data_worker_has_read_them(tmp_path: Path) -> None:
    """Cameras alone, whose entry has no 3D tokens that would tell its size."""
    parts: dict[str, Any] = {"fusion": None, "camera_encoding": PRoPE(), "camera_source": "predicted"}
    model = model_of(TinyQwen25VL, VGGT, GeometryCache(str(tmp_path)), **parts)
    cameras = []
    for is_read in (False, True):
        asked = asked_about(model, synth_video(3, 2, 480, 640))
        assert (asked.scenes[0].cached_geometry is not None) == is_read
        with torch.no_grad():
            (encoded,) = model.encode_scenes(asked)
        cameras.append(encoded.cameras.K_normalized)
    assert torch.equal(*cameras)
    stored = asked.scenes[0].cached_geometry.K_normalized
    torch.testing.assert_close(cameras[0][:, 0, 0], stored[::2, 0, 0] * 518 / 504)
