"""From frames to a batch as the official inference and training code has them: frames, pixels, grids, ids, labels."""

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
from transformers import AutoProcessor

from datamodules import chat_format as wording
from datamodules.dataset import SceneDataset
from datamodules.resize import PixelBounds
from datamodules.samplers import SceneView, UniformSampler
from datamodules.scenes import Question, RawQuestion, Scene
from datamodules.video import Video
from tests.datamodules.batches import labels_of, question_batch, sequences_of, training_batch
from tests.golden.synth import synth_video
from tests.zoo.asking import prompts_of
from zoo.backbones.qwen25_vl import tiny_preprocessor
from zoo.backbones.qwen_vl import QwenVLPreprocessor
from zoo.sequences.batch import Batch

GOLDEN = Path(os.environ.get("ZOO_GOLDEN", Path(__file__).parents[1] / "golden"))
TRAINING = PixelBounds(min_pixels=293216, max_pixels=324576, resize_backend="pillow")


def cases(group: str) -> list[str]:
    return sorted(path.stem for path in (GOLDEN / group).glob("*.safetensors"))


def load(group: str, case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((GOLDEN / f"{group}/{case}.json").read_text()), load_file(GOLDEN / f"{group}/{case}.safetensors")


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


def grids_of(batch: Batch) -> Tensor:
    return torch.tensor([scene.grid_thw for scene in batch.scenes])


def check_pixels(batch: Batch, t: dict[str, Tensor]) -> None:
    pixels = tiny_preprocessor().normalize(torch.cat([scene.pixel_values for scene in batch.scenes]))
    assert list(pixels.shape) == t["pixel_values_videos_shape"].tolist()
    rows = pixels[t["pixel_values_videos_row_index"]]
    assert torch.allclose(rows, t["pixel_values_videos_rows"], atol=2e-6, rtol=0)
    assert torch.allclose(pixels.double().mean(0), t["pixel_values_videos_column_mean"], atol=2e-6, rtol=0)
    assert not torch.allclose(rows.roll(1, 1), t["pixel_values_videos_rows"], atol=1e-2)  # negative control


def check_frames(frames: Tensor, t: dict[str, Tensor], number: int) -> None:
    name = f"video_tchw_{number}"
    assert list(frames.shape) == t[f"{name}_shape"].tolist()
    whole = t.get(f"{name}_u8")
    if whole is not None:
        assert torch.equal(frames, whole)
    else:
        assert torch.equal(frames[..., ::9, ::7], t[f"{name}_u8_strided"])


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
        check_frames(each.frames, t, number)
    batch = question_batch(processor, *loaded, requires_frames=True)
    assert torch.equal(grids_of(batch), t["video_grid_thw"])
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
def test_a_batch_of_the_official_training(case: str, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    meta, t = load("preprocess_train", case)
    (clip,) = meta["samples"]
    monkeypatch.setattr(wording, "user_text", lambda question, *_: clip["q"].removeprefix("<video>"))
    video = synth_video(clip["synth_seed"], clip["T"], clip["H"], clip["W"])
    data = meta["data_args"]
    wanted = round(clip["T"] / clip["fps"] / data["base_interval"])
    count = min(max(wanted, data["video_min_frames"]), data["video_max_frames"])
    chosen = torch.linspace(0, clip["T"] - 1, count).long().tolist()  # the script's own choice, the last one repeated
    chosen += chosen[-1:] * (count % 2)
    scenes = Synthetics([Synthetic(video[chosen], False)], [Question("0", "", "", clip["a"])], len(chosen), TRAINING)
    seconds = 2 / (data["video_frame_fps"] or count * clip["fps"] / clip["T"])  # nominal, or real
    loaded = replace(scenes[0], seconds_per_grid=seconds)
    check_frames(loaded.frames, t, 0)
    batch = training_batch(processor, loaded, seconds="clip")
    check_pixels(batch, t)
    sequences = sequences_of(batch)
    assert torch.equal(sequences.input_ids, t["input_ids"]) and torch.equal(labels_of(batch), t["labels"])
    assert torch.equal(grids_of(batch), t["video_grid_thw"])
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
