"""The host waits for the GPU at most as often as the docstring of `SpatialVLM.forward` says: never in most steps."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from callbacks import progress
from tests.tiny import MODELS_AND_FAMILIES, QUESTIONS, replies, tiny_batch, tiny_model, tiny_scene
from zoo import CameraPrediction, DepthPrediction, MaskedViews
from zoo.generation import Sampling
from zoo.geometry import TinyVGGT
from zoo.sequences.batch import Batch
from zoo.sequences.time_index import PathLengthIndex
from zoo.tasks import VideoQATask

ROOT = Path(__file__).parents[2]
READS = {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__"}
SIZES = {"nonzero", "unique", "unique_consecutive", "masked_select", "argwhere", "equal", "allclose", "bincount"}
INDEXES = {"__getitem__", "__setitem__"}


class Waits(TorchFunctionMode):
    """Counts the waits within, by their place in the project."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        is_mask = name in INDEXES and has_mask(args[1])
        if name in READS | SIZES or is_mask:
            self.found[f"{name} at {place()}"] += 1
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        """All waits."""
        return self.found.total()


def has_mask(index: Any) -> bool:
    if isinstance(index, Tensor):
        return index.dtype == torch.bool
    return isinstance(index, tuple) and any(isinstance(each, Tensor) and each.dtype == torch.bool for each in index)


def place() -> str:
    """The innermost line of the project outside this file, which caused the call."""
    frame = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and ".venv" not in file.parts and frame.f_code.co_name != "__torch_function__":
            return f"{file.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


# ---- models ----------------------------------------------------------------------------------------------------

VGGT: dict[str, Any] = {"geometry": lambda: TinyVGGT(embed_dim=32, depth=4, heads=("camera", "depth"))}
OBJECTIVES = [CameraPrediction(), DepthPrediction(), MaskedViews()]
MORE: dict[str, dict[str, Any]] = {
    "objectives": {"objectives": OBJECTIVES, "camera_source": "auto", **VGGT},
    "medoid": {"objectives": [CameraPrediction(reference="medoid", scale="rms")]},
    "pose index on predicted cameras": {"time_index": PathLengthIndex(), "camera_source": "predicted", **VGGT},
}


def task_of(name: str, family: str = "Qwen2.5-VL") -> VideoQATask:
    return tiny_model("plain" if name in MORE else name, family=family, **MORE.get(name, {})).train()


def waits_of(task: VideoQATask, batch: Batch) -> Waits:
    with Waits() as waits:
        task.model(batch)["loss"].backward()
    return waits


@pytest.mark.parametrize(("name", "family"), [*MODELS_AND_FAMILIES, *((name, "Qwen2.5-VL") for name in MORE)])
def test_a_training_step_waits_for_nothing(name: str, family: str) -> None:
    task = task_of(name, family)
    waits = waits_of(task, tiny_batch(task, training=True))
    assert waits.count == 0, waits.found


@pytest.mark.parametrize("name", ["plain", "prope.yaml"])
def test_packed_scenes_wait_for_nothing(name: str) -> None:
    task = task_of(name)
    assert waits_of(task, tiny_batch(task, training=True, pack_scenes=True)).found == {}


def test_a_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: each kind of wait, hidden in a part of the model, is counted with its place."""
    task = task_of("plain")
    batch, embed = tiny_batch(task, training=True), task.model.backbone.embed

    def waiting(ids: torch.Tensor) -> torch.Tensor:
        if bool((ids < 0).any()):
            return embed(ids)
        ids.amax().item()
        return embed(ids[ids >= 0].view_as(ids).cpu())

    monkeypatch.setattr(task.model.backbone, "embed", waiting)
    found = waits_of(task, batch).found
    assert sorted(place.split(" ")[0] for place in found) == ["__bool__", "__getitem__", "cpu", "item"]
    assert all("test_waits.py" in place for place in found)


@pytest.mark.parametrize(
    ("name", "penalty", "sampling"),
    [
        ("plain", 1.0, None),
        ("plain", 1.0, Sampling(1e-4, top_p=0.9, top_k=8, excluded=(1, 2))),
        ("prope.yaml", 1.0, None),
        ("pose index on predicted cameras", 1.0, None),
    ],
)
def test_an_evaluation_waits_once_per_token_of_the_answers(
    name: str, penalty: float, sampling: Sampling | None
) -> None:
    """Of all answers together, whatever the length of the video; some end before others, which are told on the host."""
    task = task_of(name).eval()
    task.repetition_penalty, task.sampling = penalty, sampling  # of a temperature at which it draws what is likely
    for steps, questions in ((2, 1), (6, 1), (2, len(QUESTIONS))):
        asked = tiny_batch(task, tiny_scene("a", QUESTIONS[:questions], steps=steps))
        task.model.backbone.stop_tokens = []
        task.model.backbone.stop_tokens = [replies(task, asked)[0].ids[2]]
        lengths = [len(reply.ids) for reply in replies(task, asked)]
        with Waits() as waits:
            task.predict_batch(asked)
        assert min(lengths) <= 3 and waits.count == max(lengths), waits.found


def test_a_fit_reads_no_loss_and_copies_no_number_between_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning copies a logged number to the device, and reads what a bar shows; either waits for the step before."""
    task = tiny_model("plain", optimizer=SGD, scheduler=lambda optimizer, steps: StepLR(optimizer, 3)).train()
    batches, logged = [tiny_batch(task, training=True) for _ in range(8)], []
    log = LightningModule.log

    def noting(self: LightningModule, name: str, value: Any, **options: Any) -> None:
        logged.append(value)
        log(self, name, value, **options)

    monkeypatch.setattr(LightningModule, "log", noting)
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "SECONDS", 1e9)  # the first is read in any case
    waits = Waits()

    class Steps(Callback):
        """Counts from the third step on."""

        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                waits.__enter__()

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == len(batches) - 1:
                waits.__exit__(None, None, None)

    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        callbacks=[progress.progress_bar(), Steps()],
        enable_model_summary=False,
        enable_checkpointing=False,
        gradient_clip_val=1.0,
        logger=False,
    )
    trainer.fit(task, DataLoader(batches, batch_size=None))
    assert not waits.found
    assert len(logged) > 2 * len(batches) and all(isinstance(value, torch.Tensor) for value in logged)
    assert all(name in trainer.callback_metrics for name in ("lr/decoder", "train/loss"))
