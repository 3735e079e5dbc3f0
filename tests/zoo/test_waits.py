"""The host waits for the GPU at most as often as the docstring of `SpatialVLM.forward` says: never in most steps."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from callbacks import progress
from tests.zoo import asking
from tests.zoo.asking import MODELS, QUESTIONS, build, scene
from tests.zoo.waits import Waits
from zoo import CameraPrediction, DepthPrediction, MaskedViews
from zoo.generation import Sampling
from zoo.geometry import DatasetGeometry, TinyVGGT
from zoo.sequences.batch import Batch
from zoo.sequences.time_index import PathLengthIndex
from zoo.tasks import VideoQATask

VGGT: dict[str, Any] = {"geometry": lambda: TinyVGGT(embed_dim=32, depth=4, heads=("camera", "depth"))}
EVERY_MODEL: dict[str, dict[str, Any]] = {
    **{name: {} for name in MODELS},
    "objectives": {
        "objectives": [CameraPrediction(), DepthPrediction(), MaskedViews()],
        "camera_source": "auto",
        **VGGT,
    },
    "medoid": {"objectives": [CameraPrediction(reference="medoid", scale="rms")]},
    "scene unit": {"fusion": MODELS["AddFusion"]["fusion"], "geometry": lambda: DatasetGeometry(unit="scene")},
    "merged mean": {"camera_encoding": "PRoPE, ChannelRange", "merged_camera": "mean"},
    "pose index on predicted cameras": {"time_index": PathLengthIndex(), "camera_source": "predicted", **VGGT},
}


def task_of(name: str, family: str = "Qwen2.5-VL") -> VideoQATask:
    known = name if name in MODELS else "plain"
    return build(known, family=family, **EVERY_MODEL[name]).train()


def batch_of(task: VideoQATask, family: str = "Qwen2.5-VL", **packing: Any) -> Batch:
    scenes = [scene("a", QUESTIONS[1:4], family=family), scene("b", QUESTIONS[:1], steps=2, seed=1, family=family)]
    return asking.batch(task, *scenes, training=True, **packing)


def waits_of(task: VideoQATask, batch: Batch) -> Waits:
    with Waits() as waits:
        loss = task.model(batch)["loss"]
        loss.backward()
    return waits


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(name, family, marks=pytest.mark.slow if name in MODELS.keys() - asking.FAST[family] else ())
        for name, family in product(EVERY_MODEL, asking.BACKBONES)
    ],
)
def test_a_training_step_waits_for_nothing(name: str, family: str) -> None:
    task = task_of(name, family)
    waits = waits_of(task, batch_of(task, family))
    assert waits.count == 0, waits.found


@pytest.mark.parametrize("name", ["plain", "prope.yaml", "PRoPE, ChannelRange"])
def test_packed_scenes_wait_for_nothing(name: str) -> None:
    task = task_of(name)
    assert waits_of(task, batch_of(task, pack_scenes=True)).found == {}


def test_a_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: each kind of wait, hidden in a part of the model, is counted with its place."""
    task = task_of("plain")
    batch, embed = batch_of(task), task.model.backbone.embed

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
        ("plain", 1.05, None),
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
        asked = asking.batch(task, scene("a", QUESTIONS[:questions], steps=steps))
        task.model.backbone.stop_tokens = []
        task.model.backbone.stop_tokens = [asking.replies(task, asked)[0].ids[2]]
        lengths = [len(reply.ids) for reply in asking.replies(task, asked)]
        with Waits() as waits:
            task.predict_batch(asked)
        assert min(lengths) <= 3 and waits.count == max(lengths), waits.found


def test_tokens_are_drawn_as_by_multinomial_without_its_wait() -> None:
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    expected = torch.multinomial(logits.softmax(-1), 1)[:, 0]
    torch.manual_seed(1)
    assert torch.equal(Sampling()(logits)[0], expected)


def test_a_fit_reads_no_loss_and_copies_no_number_between_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning copies a logged number to the device, and reads what a bar shows; either waits for the step before."""
    task = build("plain", optimizer=SGD, scheduler=lambda optimizer, steps: StepLR(optimizer, 3)).train()
    batches, logged = [batch_of(task) for _ in range(8)], []
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
