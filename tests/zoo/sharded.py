"""The same trainings by one process, by two with DDP, and by two with FSDP2.

`python -m tests.zoo.sharded <folder> <rooms> <cases>` leaves the losses, gradients, checkpoints and
answers of each run in `<folder>/<case>/<run>`, and what `export` writes of the first and the last but one, where there
is an official layout. A second run of FSDP2 resumes DDP's checkpoint after the first step.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from callbacks import Checkpoint, MetricsCallback, PredictionsCallback
from callbacks.checkpoint_io import CheckpointFiles
from commands.export import ExportingTrainer
from datamodules import Rooms, VideoQADataModule
from datamodules.resize import PixelBounds
from tests.conftest import ROOMS
from zoo import (
    GTA,
    BaselineVLM,
    CameraPrediction,
    ConcatSplitMLLM,
    DepthPrediction,
    LoRA,
    MaskedViews,
    Objective,
    PoseAxis,
    PRoPE,
    PRoPEMLLM,
    SpatialMLLM,
    SpatialVLM,
    TinyQwen3VL,
    TinyQwen25VL,
    TinyVGGT,
)
from zoo.checkpoints import PretrainedSpatialMLLM, export_model, unofficial_parts
from zoo.fusions import AddFusion
from zoo.tasks import VideoQATask
from zoo.tasks.fsdp2 import FSDP2Strategy
from zoo.tasks.optim import LearningRates
from zoo.weights.sharded_tensors import whole

RUNS = {"one": 1, "ddp": 2, "fsdp2": 2, "resumed": 2}  # processes
SHARDED = ("fsdp2", "resumed")
SMALL: dict[str, Any] = {"layers": 2, "hidden_size": 64, "heads": 2, "key_value_heads": 1, "vision_hidden_size": 32}
EVERY = LearningRates(decoder=1e-2, connector=1e-2, vision=1e-2, geometry=1e-2, encoding=1e-2, objective=1e-2)
STEPS = 2
OLD, NEW = partial(TinyQwen25VL, **SMALL), partial(TinyQwen3VL, **SMALL)
VGGT = partial(TinyVGGT, embed_dim=32, depth=2, num_heads=2)


def adamw(parameters: Any) -> Optimizer:
    return AdamW(parameters, eps=1e-2)  # else the smallest gradients decide on whole steps


def constant(optimizer: Optimizer, steps: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1.0)


def heads() -> list[Objective]:
    """No 2D token is masked: each process would mask others."""
    return [CameraPrediction(), DepthPrediction(layer=0), MaskedViews(mask_ratio=0.0)]


def cases(released: Path, run: str = "one") -> dict[str, Callable[[], VideoQATask]]:
    common: dict[str, Any] = {
        "defer_weights": run in SHARDED,
        "optimizer": adamw,
        "scheduler": constant,
        "max_new_tokens": 3,
        "allow_untrained": True,
    }
    every = {**common, "learning_rates": EVERY, "gradient_checkpointing": True}
    frozen = {**common, "learning_rates": LearningRates(decoder=1e-2, connector=1e-2)}
    mixed = {**frozen, "lora": LoRA(r=4)}
    return {
        "every part": lambda: PRoPEMLLM(
            GTA(learn_scale=True), backbone=NEW(), geometry=VGGT, objectives=heads(), **every
        ),
        "lora": lambda: BaselineVLM(backbone=OLD(dtype="bfloat16"), objectives=heads(), **mixed),
        "spatial": lambda: SpatialMLLM(backbone=OLD(), geometry=VGGT, **frozen),
        "spatial, Qwen3-VL": lambda: SpatialMLLM(backbone=NEW(), geometry=VGGT, **every),
        "concat": lambda: ConcatSplitMLLM(backbone=OLD(), geometry=VGGT, **every),
        "concat, Qwen3-VL": lambda: ConcatSplitMLLM(backbone=NEW(), geometry=VGGT, **frozen),
        "prope": lambda: PRoPEMLLM(PRoPE(), backbone=OLD(), **every),
        "pose axis": lambda: PRoPEMLLM(PoseAxis(), backbone=NEW(), **mixed),
        "baseline, Qwen3-VL": lambda: BaselineVLM(backbone=NEW(), **every),
        "released": lambda: SpatialMLLM(backbone=PretrainedSpatialMLLM(str(released), dtype="float32"), **frozen),
        "released, lora": lambda: SpatialMLLM(
            backbone=PretrainedSpatialMLLM(str(released)), objectives=heads()[1:], **mixed
        ),
    }


class Record(Callback):
    """Losses of this process, and whole gradients of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.local = 0  # elements of the trained parameters that this process holds

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        trained = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        self.gradients.append({name: whole(p.grad).clone() for name, p in trained.items() if p.grad is not None})
        self.local = sum(getattr(p, "_local_tensor", p).numel() for p in trained.values())


def run(name: str, folder: Path, rooms: str, build: Callable[[], VideoQATask], resumed: Path, rank: int) -> None:
    torch.manual_seed(rank)  # what is drawn without a seed of its own must be shared
    task, record = build(), Record()
    data = VideoQADataModule(
        Rooms(scenes=ROOMS, root=rooms),
        num_frames=4,
        pixels=PixelBounds(784, 65536, legacy_folder_resize=False),
        question_types=["room_size_estimation", "object_counting"],
        num_workers=0,
        seed=0,
    )
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=RUNS[name],
        strategy={"one": "auto", "ddp": "ddp"}.get(name) or FSDP2Strategy(),
        callbacks=[KeepFirst(), record, Checkpoint(every_n_train_steps=1), MetricsCallback(), PredictionsCallback()],
        accumulate_grad_batches=2 // RUNS[name],
        max_steps=STEPS,
        val_check_interval=2 // RUNS[name],
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.strategy.checkpoint_io = CheckpointFiles()
    trainer.fit(task, data, ckpt_path=resumed if name == "resumed" else None)
    if name != "resumed":
        trainer.test(task, data, verbose=False)
    kept = {"losses": record.losses, "gradients": record.gradients, "local": record.local}
    torch.save({**kept, "class": type(task).__qualname__}, folder / f"record.rank{rank}")


class KeepFirst(Callback):
    """Copies the files of the checkpoint after the first step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        if trainer.is_global_zero and trainer.global_step == 1 and folder.exists():
            shutil.copytree(folder, folder.parent / "first", dirs_exist_ok=True)


def main(folder: Path, rooms: str, chosen: list[str]) -> None:
    torch.set_num_threads(1)
    released = folder / "release"
    export_model(SpatialVLM(OLD(), geometry=VGGT, fusion=AddFusion), released, torch.bfloat16)
    for name, processes in RUNS.items():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(processes):
            if not (child := os.fork()):
                if processes > 1:
                    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
                for case in chosen:
                    (folder / case / name).mkdir(parents=True, exist_ok=True)
                    first = folder / case / "ddp" / "first" / "last.ckpt"
                    run(name, folder / case / name, rooms, cases(released, name)[case], first, rank)
                os._exit(0)
            children.append(child)
        while children:
            ended, status = os.wait()
            children.remove(ended)
            if status:  # the others would wait for it in a collective
                for child in children:
                    os.kill(child, signal.SIGKILL)
                sys.exit(f"{name} failed")
    for case, name in product(chosen, ("one", "fsdp2")):
        task, written = cases(released)[case](), folder / case / name
        if not unofficial_parts(task.model):
            trainer = ExportingTrainer(logger=False, accelerator="cpu")
            trainer.export(task, str(written / "exported"), str(written / "checkpoints" / "last.ckpt"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
