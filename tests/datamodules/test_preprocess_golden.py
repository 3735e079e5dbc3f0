"""From frames to a batch as the official inference and training code has them: sizes, pixels, grids, ids, labels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from transformers import AutoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as stock_resize

from datamodules.dataset import SceneDataset
from datamodules.resize import FOLDER_MAX_TOKENS, FOLDER_MIN_TOKENS, TOKEN_PX, PixelBounds, resize_frames, smart_resize
from datamodules.samplers import SceneView, UniformSampler
from datamodules.scenes import Question, RawQuestion, Scene
from datamodules.video import Video
from tests.datamodules.batches import labels_of, question_batch, sequences_of, training_batch
from tests.golden.synth import synth_video
from tests.tiny import prompts_of
from zoo.backbones.qwen25_vl import tiny_preprocessor
from zoo.backbones.qwen_vl import QwenVLPreprocessor
from zoo.sequences.batch import Batch

GOLDEN = Path(os.environ.get("ZOO_GOLDEN", Path(__file__).parents[1] / "golden"))
TRAINING = PixelBounds(min_pixels=293216, max_pixels=324576, resize_backend="pillow")


def load(group: str, case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((GOLDEN / f"{group}/{case}.json").read_text()), load_file(GOLDEN / f"{group}/{case}.safetensors")


def test_sizes_of_the_official_inference_of_the_training_script_and_of_folders() -> None:
    side = 2 * TOKEN_PX
    folder = {"factor": side, "min_pixels": FOLDER_MIN_TOKENS * side**2, "max_pixels": FOLDER_MAX_TOKENS * side**2}
    for row in json.loads((GOLDEN / "preprocess/tables.json").read_text())["smart_resize"]:
        height, width = row["h"], row["w"]
        for num_frames in (2, 16, 32, 128, 768):
            assert list(PixelBounds().frame_size(height, width, num_frames)) == row[f"infer_n{num_frames}"], row
        assert list(smart_resize(height, width, **folder)) == row["folder_first_pass_factor56"]
        if min(height, width) >= 28:  # the training script refuses less
            assert list(smart_resize(height, width, min_pixels=293216, max_pixels=324576)) == row["train"]
    with pytest.raises(ValueError, match="10 x 2010 pixels can't be resized"):
        smart_resize(2010, 10, min_pixels=3136, max_pixels=602112)


def test_sizes_in_tokens_of_32_pixels_are_the_processors() -> None:
    """Qwen3-VL's, by the stock function; a frame of a folder is first rounded to multiples of two tokens."""
    bounds = PixelBounds(min_pixels=131072, max_pixels=786432)
    for height, width in [(480, 640), (1080, 1920), (333, 250), (64, 64)]:
        expected = stock_resize(height, width, factor=32, min_pixels=131072, max_pixels=786432)
        assert bounds.frame_size(height, width, 16, token_px=32) == tuple(expected)
    frames = torch.zeros(2, 3, 480, 640, dtype=torch.uint8)
    first = stock_resize(480, 640, factor=64)
    twice = resize_frames(frames, bounds, is_folder=True, token_px=32).shape[2:]
    assert tuple(twice) == tuple(stock_resize(*first, factor=32, min_pixels=131072, max_pixels=786432)) == (512, 640)
    assert resize_frames(frames, bounds, token_px=32).shape[2:] == (480, 640)


@pytest.mark.parametrize("name", ["odd_97x131", "portrait_640x360", "folder_odd_333x250"])
def test_pixels_of_the_official_inference(name: str) -> None:
    meta, tensors = load("preprocess", name)
    clip = meta["videos"][0]
    frames = synth_video(clip["synth_seed"], clip["total_frames"], clip["height"], clip["width"])
    frames = frames[meta["frame_indices"][0]]
    resized, expected = resize_frames(frames, is_folder="folder" in meta["source"]), tensors["video_tchw_0_u8_strided"]
    assert list(resized.shape) == tensors["video_tchw_0_shape"].tolist() and resized.dtype == torch.uint8
    assert torch.equal(resized[..., ::9, ::7], expected)
    direct = F.resize(frames, list(resized.shape[2:]), interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert not torch.equal(direct[..., ::9, ::7], expected)  # negative control: the kernel for bytes


def chosen_in_training(meta: dict[str, Any]) -> tuple[Tensor, int]:
    """The frames of a case's video and their number by the script's own choice; an odd number repeats the last."""
    clip, data = meta["samples"][0], meta["data_args"]
    wanted = round(clip["T"] / clip["fps"] / data["base_interval"])
    count = min(max(wanted, data["video_min_frames"]), data["video_max_frames"])
    chosen = torch.linspace(0, clip["T"] - 1, count).long().tolist()
    chosen += chosen[-1:] * (count % 2)
    return synth_video(clip["synth_seed"], clip["T"], clip["H"], clip["W"])[chosen], count


@pytest.mark.parametrize("name", ["video_small_up", "odd_frames_real_fps", "batch_video_and_text"])
def test_pixels_of_the_official_training(name: str) -> None:
    meta, tensors = load("preprocess_train", name)
    (frames, _), expected = chosen_in_training(meta), tensors["video_tchw_0_u8_strided"]
    resized = resize_frames(frames, TRAINING)
    assert list(resized.shape) == tensors["video_tchw_0_shape"].tolist()
    assert torch.equal(resized[..., ::9, ::7], expected)
    other = resize_frames(frames, PixelBounds(min_pixels=293216, max_pixels=324576))
    assert not torch.equal(other[..., ::9, ::7], expected)  # negative control: the other kernel


def test_a_folder_is_resized_twice_unless_switched_off_and_a_long_clip_in_pieces() -> None:
    frames = synth_video(1, 2, 480, 640)
    assert resize_frames(frames).shape[2:] == (476, 644)
    assert resize_frames(frames, is_folder=True).shape[2:] == (504, 616)
    once = resize_frames(frames, PixelBounds(legacy_folder_resize=False), is_folder=True)
    assert torch.equal(once, resize_frames(frames))
    tiny = synth_video(3, 19, 56, 56)
    assert torch.equal(resize_frames(tiny, PixelBounds(min_pixels=56 * 56, max_pixels=56 * 56)), tiny)
    assert torch.equal(resize_frames(tiny), torch.cat([resize_frames(frame[None]) for frame in tiny]))


def cases(group: str) -> list[str]:
    return sorted(path.stem for path in (GOLDEN / group).glob("*.safetensors"))


class Synthetic(Video):
    """A video that needs no decoder."""

    def __init__(self, frames: Tensor, is_folder: bool) -> None:
        self.frames, self.is_folder = frames, is_folder
        self.num_frames, _, self.height, self.width = frames.shape
        self.times_s = [i / 30 for i in range(self.num_frames)]

    def read(self, indices: Sequence[int]) -> Tensor:
        return self.frames[list(indices)]


class Synthetics(SceneDataset):
    """Scenes of such videos."""

    def __init__(self, videos: Sequence[Synthetic], questions: Sequence[Question], frames: int, bounds: PixelBounds):
        scenes = [Scene(f"s/{i}", Path(f"{i}.mp4"), (question,)) for i, question in enumerate(questions)]
        super().__init__(scenes, UniformSampler(), frames, bounds)
        self.videos = videos

    def open(self, index: int) -> SceneView:
        return SceneView(self.videos[index], name=self.scenes[index].name, times_s=self.videos[index].times_s)


@pytest.fixture(scope="module")
def processor(realdata: Path) -> Any:
    return QwenVLPreprocessor(AutoProcessor.from_pretrained(realdata / "qwen2.5-vl"))


def check_pixels(batch: Batch, t: dict[str, Tensor]) -> None:
    assert torch.equal(torch.tensor([scene.grid_thw for scene in batch.scenes]), t["video_grid_thw"])
    pixels = tiny_preprocessor().normalize(torch.cat([scene.pixel_values for scene in batch.scenes]))
    assert list(pixels.shape) == t["pixel_values_videos_shape"].tolist()
    rows = pixels[t["pixel_values_videos_row_index"]]
    assert torch.allclose(rows, t["pixel_values_videos_rows"], atol=2e-6, rtol=0)
    assert torch.allclose(pixels.double().mean(0), t["pixel_values_videos_column_mean"], atol=2e-6, rtol=0)
    assert not torch.allclose(rows.roll(1, 1), t["pixel_values_videos_rows"], atol=1e-2)  # negative control


@pytest.mark.parametrize("case", cases("preprocess"))
def test_a_batch_of_the_official_inference(case: str, processor: Any) -> None:
    meta, t = load("preprocess", case)
    questions = [
        Question(str(i), row["question_type"], row["question"], row["ground_truth"], tuple(row.get("options") or ()))
        for i, row in enumerate(meta["questions"])
    ]
    videos = [
        Synthetic(synth_video(v["synth_seed"], v["total_frames"], v["height"], v["width"]), "folder" in meta["source"])
        for v in meta["videos"]
    ]
    scenes = Synthetics(videos, questions, 2 * round(meta["nframes"] / 2), PixelBounds())
    loaded = [scenes[i] for i in range(len(scenes))]
    assert [list(each.frame_indices) for each in loaded] == meta["frame_indices"]
    for number, each in enumerate(loaded):
        whole = t.get(f"video_tchw_{number}_u8")
        strided = each.frames[..., ::9, ::7] if whole is None else each.frames
        assert torch.equal(strided, t[f"video_tchw_{number}_u8_strided"] if whole is None else whole)
    batch = question_batch(processor, *loaded, requires_frames=True)
    official = zip(t["input_ids"], t["attention_mask"].bool(), strict=True)  # padded
    assert prompts_of(batch) == [ids[mask].tolist() for ids, mask in official]
    check_pixels(batch, t)
    assert all(
        torch.equal(frames, each.frames) for frames, each in zip((s.frames for s in batch.scenes), loaded, strict=True)
    )


def of_training(case: str) -> bool:
    """Whether a case has one video; its stills and texts have no scenes here."""
    return [sample["kind"] for sample in load("preprocess_train", case)[0]["samples"]] == ["video"]


@pytest.mark.parametrize("case", [case for case in cases("preprocess_train") if of_training(case)])
def test_a_batch_of_the_official_training(case: str, processor: Any) -> None:
    meta, t = load("preprocess_train", case)
    (clip,), (frames, count) = meta["samples"], chosen_in_training(meta)
    asked = RawQuestion("0", "", clip["q"], clip["a"])
    scenes = Synthetics([Synthetic(frames, False)], [asked], len(frames), TRAINING)
    seconds = 2 / (meta["data_args"]["video_frame_fps"] or count * clip["fps"] / clip["T"])  # nominal, or real
    batch = training_batch(processor, replace(scenes[0], seconds_per_grid=seconds), seconds="clip")
    check_pixels(batch, t)
    sequences = sequences_of(batch)
    assert torch.equal(sequences.input_ids, t["input_ids"]) and torch.equal(labels_of(batch), t["labels"])
    assert sequences.lengths == t["attention_mask"].sum(1).tolist()
    assert torch.equal(sequences.position_ids, t["position_ids"])


def test_images_of_the_official_training(processor: Any, tmp_path: Path) -> None:
    """From image files to ids, labels and patches, by the source, the dataset and the collation."""
    meta, t = load("preprocess_train", "images3")
    (sample,) = meta["samples"]
    files = tuple(tmp_path / f"{i}.png" for i in range(sample["n"]))
    for i, file in enumerate(files):
        (picture,) = synth_video(sample["synth_seed"] + 100 * i, 1, sample["H"], sample["W"])
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)
    scene = Scene("s", files[0], (RawQuestion("0", "", sample["q"], sample["a"]),), images=files)
    loaded = SceneDataset([scene], UniformSampler(), 16, TRAINING, image_bounds=TRAINING)[0]
    assert loaded.error is None and torch.equal(loaded.frames[..., ::9, ::7], t["image_tchw_0_u8_strided"])
    batch = training_batch(processor, loaded)
    assert torch.equal(sequences_of(batch).input_ids, t["input_ids"]) and torch.equal(labels_of(batch), t["labels"])
    (inputs,) = batch.scenes
    assert inputs.media_grids == [tuple(grid) for grid in t["image_grid_thw"].tolist()] and inputs.kind == "image"
    rows = tiny_preprocessor().normalize(inputs.pixel_values)[t["pixel_values_row_index"]]
    assert torch.allclose(rows, t["pixel_values_rows"], atol=2e-6, rtol=0)
    assert not torch.allclose(rows.roll(1, 1), t["pixel_values_rows"], atol=1e-2)  # negative control
