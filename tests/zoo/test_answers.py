"""Answers of a model in Python, in the precision of its run; an evaluation in which all scenes fail alike stops."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import main
from datamodules.inference import answer_chats, data_of, load_frames
from tests.datamodules.clips import numbered_frame, write_video
from tests.poses import random_poses
from tests.tiny import QUESTIONS as ASKED
from tests.tiny import tiny_batch, tiny_model, tiny_scene
from tests.zoo.made_models import QUESTIONS, SIZES, model_of
from zoo import InputError, MaskedViews, PointRoPE, SpatialVLM, TinyQwen25VL
from zoo.backbones.decoder import grouped_sdpa
from zoo.geometry import SceneGeometry
from zoo.precision import answer_precision
from zoo.tasks import VideoQATask
from zoo.tasks.video_qa import FirstScenes


def test_answers_about_a_file_and_its_frames(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", [numbered_frame(i, 56, 112) for i in range(8)])
    answer = partial(model_of("plain").answer, max_new_tokens=4)
    several = answer(video, QUESTIONS, num_frames=4)
    assert len(several) == 2
    assert several == [answer(video, question, num_frames=4) for question in QUESTIONS]
    frames = torch.randint(0, 256, (4, 3, 56, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    asked = answer(frames, QUESTIONS[0])
    assert isinstance(asked, str)
    assert answer(frames / 255, QUESTIONS[0]) == asked
    assert isinstance(answer(frames[:3], QUESTIONS[0]), str)  # an odd number
    with pytest.raises(FileNotFoundError, match="nothing.mp4"):
        answer(tmp_path / "nothing.mp4", QUESTIONS[0])


def test_answers_by_cameras(rooms_root: Path, tmp_path: Path) -> None:
    answer = partial(model_of("PRoPE").answer, max_new_tokens=4)
    video = next(rooms_root.glob("*/rooms/test_*.mp4"))
    assert isinstance(answer(video, QUESTIONS[0], num_frames=4), str)
    bare = tmp_path / "bare.mp4"
    bare.write_bytes(video.read_bytes())
    with pytest.raises(InputError, match="camera"):
        answer(bare, QUESTIONS[0], num_frames=4)
    cameras = video.with_suffix(".cameras.json")
    given = answer(bare, QUESTIONS[0], num_frames=4, cameras=cameras)
    assert given == answer(video, QUESTIONS[0], num_frames=4)
    with pytest.raises(InputError, match="needs cameras"):
        answer(torch.zeros(4, 3, 56, 56), QUESTIONS[0])


def test_frames_in_memory_may_have_cameras_and_depth() -> None:
    model = SpatialVLM(TinyQwen25VL(**SIZES), camera_encoding=PointRoPE())
    answer = partial(model.answer, max_new_tokens=4)
    frames, poses = torch.rand(5, 3, 56, 84), random_poses(5).float()
    shown = SceneGeometry(world_to_camera=poses, K_normalized=torch.eye(3).repeat(5, 1, 1), depth=torch.rand(5, 20, 30))
    loaded = load_frames(model, data_of(model), frames, None, as_images=False, geometry=shown)
    assert loaded.frames is not None and loaded.geometry is not None and loaded.geometry.depth is not None
    assert torch.equal(loaded.geometry.world_to_camera, poses[[0, 1, 2, 3, 4, 4]])  # an even number of frames
    assert loaded.geometry.depth.shape[1:] == loaded.frames.shape[2:]
    assert isinstance(answer(frames, QUESTIONS[0], cameras=shown), str)
    nothing = (("has_camera", torch.zeros(5).bool(), "cameras"), ("depth", torch.zeros(5, 20, 30), "depth"))
    for name, empty, lacking in nothing:  # none is valid
        without = SceneGeometry(**{**shown.present(), name: empty})
        with pytest.raises(InputError, match=f"needs {lacking}"):
            answer(frames, QUESTIONS[0], cameras=without)
    for wrong, why in ((shown[:4], "4 world_to_camera for 5 frames"), (None, "SceneGeometry"), ("a.json", "no file")):
        with pytest.raises(InputError, match=why):
            answer(frames, QUESTIONS[0], cameras=wrong)
    with pytest.raises(InputError, match="to 255: give bytes, or floats in 0..1"):
        answer(255 * frames / frames.max(), QUESTIONS[0], cameras=shown)
    with pytest.raises(InputError, match="all are shown"):
        answer(frames, QUESTIONS[0], cameras=shown, num_frames=4)


def test_answers_between_two_steps_of_a_training_are_those_of_eval_mode() -> None:
    model = SpatialVLM(TinyQwen25VL(**SIZES), objectives=[MaskedViews(mask_ratio=1.0)])
    frames, seen = torch.rand(4, 3, 56, 84), []
    model.backbone.lm_head.register_forward_hook(lambda *_: seen.append(model.objectives.training))
    model.backbone.vlm.model.visual.eval()  # a part that is frozen
    modes = [module.training for module in model.modules()]
    model.train(False)
    expected = model.answer(frames, QUESTIONS, max_new_tokens=4)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    assert model.answer(frames, QUESTIONS, max_new_tokens=4) == expected and seen and not any(seen)
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2


# ---- precision -------------------------------------------------------------------------------------------------

FRAMES = tiny_scene("a").frames
CPU = torch.device("cpu")
QUIET: dict[str, Any] = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def types_of(model: SpatialVLM, ask: Callable[[], object]) -> set[torch.dtype]:
    """The dtypes of the decoder's and the vision tower's attention."""
    found: set[torch.dtype] = set()
    parts = model.backbone.decoder.layers[0].self_attn.q_proj, model.backbone.vlm.model.visual.blocks[0].attn.qkv
    hooks = [part.register_forward_hook(lambda *call: found.add(call[2].dtype)) for part in parts]
    ask()
    for hook in hooks:
        hook.remove()
    return found


def ways(task: VideoQATask) -> dict[str, Callable[[], object]]:
    asked = tiny_batch(task, tiny_scene("a", ASKED[:2]))
    chat = [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}]
    return {
        "answer": lambda: task.model.answer(FRAMES, "Which?", max_new_tokens=2),
        "chats": lambda: answer_chats(task.model, [], [chat], max_new_tokens=2),
        "predict_batch": lambda: task.predict_batch(asked),
    }


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)], ids=["bf16", "float32"]
)
def test_all_ways_answer_in_the_precision_of_the_run(precision: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    task = tiny_model()
    asked, predicted = tiny_batch(task, tiny_scene("a", ASKED[:2])), []

    def predict() -> None:
        predicted.extend(Trainer(precision=precision, **QUIET).predict(task, DataLoader([asked], None))[0])  # type: ignore[index]

    assert types_of(task.model, predict) == {dtype}
    for name, ask in ways(task).items():
        assert types_of(task.model, ask) == {dtype}, name
    assert [each["prediction"] for each in predicted] == [each["prediction"] for each in task.predict_batch(asked)]
    task.model.save_pretrained(tmp_path / "saved")
    saved = SpatialVLM.from_pretrained(tmp_path / "saved")
    assert types_of(saved, lambda: saved.answer(FRAMES, "Which?", max_new_tokens=2)) == {dtype}


def test_without_a_run_the_device_decides() -> None:
    """On a GPU bfloat16, see tests/zoo/test_rehearsal.py."""
    task = tiny_model()
    for name, ask in ways(task).items():
        assert types_of(task.model, ask) == {torch.float32}, name
        with torch.autocast("cpu", torch.bfloat16):  # the caller's own stays
            assert types_of(task.model, ask) == {torch.bfloat16}, name
    task.model.precision = "32-true"
    with torch.autocast("cpu", torch.bfloat16), answer_precision(CPU, "32-true"):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("is_gpu", [False, True], ids=["on a CPU", "as on a GPU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_grouped_attention_is_transformers_sdpa(
    dtype: torch.dtype, is_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdpa, calls = nn.functional.scaled_dot_product_attention, []

    def spy(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((q.shape[1], args[0].shape[1], kwargs["enable_gqa"]))
        return sdpa(q, *args, **kwargs)

    for with_mask, length, grouped in product((False, True), (1, 5, 90), (1, 2, 4)):
        if not with_mask and length == 5:
            continue  # causal attention has as many queries as keys, or one
        generator = torch.Generator().manual_seed(0)
        keys = 90 if not with_mask and length > 1 else 120
        query = torch.randn(1, length, 4, 16, generator=generator).transpose(1, 2).to(dtype)
        key, value = (torch.randn(1, grouped, keys, 16, generator=generator).to(dtype) for _ in range(2))
        mask = torch.rand(1, 1, length, keys, generator=generator) < 0.7 if with_mask else None
        module: Any = SimpleNamespace(num_key_value_groups=4 // grouped, is_causal=True)
        with torch.set_grad_enabled(is_gpu), monkeypatch.context() as patch:  # with gradients a CPU does as a GPU
            expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
            calls.clear()
            patch.setattr(nn.functional, "scaled_dot_product_attention", spy)
            found, _ = grouped_sdpa(module, query, key, value, mask, scaling=0.3)
        ((heads, key_heads, is_grouped),) = calls
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        if (dtype == torch.float32 or with_mask) if is_gpu else length == 1:
            assert not is_grouped and heads == key_heads  # no math kernel
            assert key_heads == (4 if length == 90 else grouped)  # and no copies of a long prefix for each token
        elif grouped < 4:
            assert is_grouped and key_heads == grouped


# ---- the first scenes of an evaluation -------------------------------------------------------------------------

DEVICE = "Expected all tensors to be on the same device"


def records(scene: str, *errors: str | None) -> list[dict[str, Any]]:
    return [{"scene": scene, "error": error} for error in errors]


def test_three_alike_stop() -> None:
    watched, fault = FirstScenes(), RuntimeError(DEVICE)
    for scene in "ab":
        watched.check(records(scene, DEVICE, DEVICE), fault)
    with pytest.raises(RuntimeError, match=f"first 3 scenes.*{DEVICE}") as stopped:
        watched.check(records("c", DEVICE), fault)
    assert stopped.value.__cause__ is fault and not isinstance(stopped.value, InputError)


@pytest.mark.parametrize(
    "scenes",
    [
        [("a", DEVICE), ("b", None), ("c", DEVICE), ("d", DEVICE), ("e", DEVICE)],  # one was answered
        [("a", DEVICE), ("b", DEVICE), ("c", "no memory")],  # not alike
        [("a", DEVICE), ("a", DEVICE), ("a", DEVICE), ("b", None)],  # one scene, in three batches
        [("a", DEVICE), ("b", DEVICE)],  # only two
    ],
)
def test_other_faults_are_recorded_alone(scenes: list[tuple[str, str | None]]) -> None:
    watched = FirstScenes()
    for scene, error in scenes:
        watched.check(records(scene, error), RuntimeError(DEVICE))


BROKEN = f"""
from zoo import PRoPE


class Broken(PRoPE):
    seen = 0

    def encode(self, *args, **kwargs):
        Broken.seen += 1
        if Broken.seen > FAILING:
            return super().encode(*args, **kwargs)
        raise RuntimeError("{DEVICE}")
"""


def words_of(rooms_root: Path, folder: Path, processes: int) -> list[str]:
    """Of a test of three scenes."""
    return [
        *("test", "--config", "prope.yaml", "--config", "data_rooms.yaml"),
        *("--model.allow_untrained", "true", "--trainer.accelerator", "cpu"),
        *("--model.camera_encoding", "broken.Broken", "--data.source.scenes", "[6,2,3]", "--data.num_frames", "4"),
        *("--data.source.root", str(rooms_root), "--data.batch_size", "1", "--data.question_types", "null"),
        *("--trainer.devices", str(processes), "--trainer.strategy", "ddp" if processes > 1 else "auto"),
        *("--model.backbone.layers", "2", "--model.backbone.hidden_size", "64", "--model.backbone.heads", "2"),
        *("--model.backbone.key_value_heads", "1", "--trainer.default_root_dir", str(folder)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_main_stops(processes: int, tmp_path: Path, rooms_root: Path) -> None:
    """One process sees all scenes, two see too few each, and stop at the end."""
    (tmp_path / "broken.py").write_text(BROKEN.replace("FAILING", str(10**6)))
    repository = Path(main.__file__).parent
    environment = {key: value for key, value in os.environ.items() if key != "ZOO_RUN"}
    environment |= {"OMP_NUM_THREADS": "1"}  # broken.py is found in the current folder
    command = [sys.executable, str(repository / "main.py"), *words_of(rooms_root, tmp_path / "run", processes)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode != 0 and not (tmp_path / "run/metrics.json").exists()
    assert DEVICE in done.stderr and ("failed alike" in done.stderr or "all" in done.stderr)
