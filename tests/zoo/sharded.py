"""The same trainings by one process, by two with DDP, and by two with FSDP2.

`main` leaves the losses, gradients, checkpoints and answers of each run in `<folder>/<case>/<run>`, and what `export`
writes of one process and of FSDP2, where there is an official layout. A second run of FSDP2 resumes DDP's checkpoint
after the first step; a third, the control of those with bfloat16, reduces the gradients of each batch in bfloat16.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks import Checkpoint, MetricsCallback
from callbacks.checkpoint import CheckpointFiles
from commands.export import ExportingTrainer
from datamodules import Rooms, VideoQADataModule
from datamodules.resize import PixelBounds
from datamodules.scenes import Scene
from datamodules.sources.base import Split
from tests.conftest import ROOMS
from tests.processes import free_port
from zoo import (
    GTA,
    BaselineVLM,
    CameraPrediction,
    Compose,
    DeltaNetLayers,
    DepthPrediction,
    GeoThinker,
    GeoThinkerFusion,
    LearnedStrength,
    LoRA,
    MaskedViews,
    Objective,
    PRoPE,
    PRoPEMLLM,
    RayRoPE,
    SpatialMLLM,
    SpatialVLM,
    TinyQwen3VL,
    TinyQwen25VL,
    TinyQwen35,
    TinyVGGT,
    UnrotatedChannels,
)
from zoo.checkpoints import PretrainedSpatialMLLM, export_model, unofficial_parts
from zoo.fusions import AddFusion
from zoo.tasks import VideoQATask
from zoo.tasks.base import LearningRates
from zoo.tasks.fsdp2 import FSDP2Strategy
from zoo.weights.load import whole

RUNS = {"one": 1, "ddp": 2, "fsdp2": 2, "resumed": 2, "control": 2}  # processes
SHARDED = ("fsdp2", "resumed", "control")
SMALL: dict[str, Any] = {"layers": 2, "hidden_size": 64, "heads": 2, "key_value_heads": 1, "vision_hidden_size": 32}
EVERY = LearningRates(decoder=1e-2, connector=1e-2, vision=1e-2, geometry=1e-2, encoding=1e-2, objective=1e-2)
STEPS = 2
OLD, NEW = partial(TinyQwen25VL, **SMALL), partial(TinyQwen3VL, **SMALL)
OLD, NEW = partial(TinyQwen25VL, **SMALL), partial(TinyQwen3VL, **SMALL)
HYBRID = partial(TinyQwen35, **SMALL | {"layers": 6})  # two of full attention
VGGT = partial(TinyVGGT, embed_dim=32, depth=2, num_heads=2)
WITHIN_LAYERS = partial(GeoThinkerFusion, hidden=16, compress_beyond=None)


class Settings(NamedTuple):
    """Of a case; `accumulate` is the number of batches of each of two processes in an optimizer step."""

    runs: tuple[str, ...] = ("one", "ddp", "fsdp2", "resumed")
    precision: Any = "32-true"
    accumulate: int = 1
    batch_size: int = 1
    is_tested: bool = True


SETTINGS = {
    "small": Settings(("one", "fsdp2")),
    "every part": Settings(("one", "fsdp2", "resumed")),  # the other cases and "shapes" compare with DDP
    "every part, bfloat16": Settings(("one", "fsdp2", "control"), "bf16-mixed", accumulate=2, is_tested=False),
    "lora": Settings(tuple(RUNS), "bf16-mixed", accumulate=2),
    "within layers": Settings(("one", "fsdp2")),
    "text": Settings(("one", "ddp", "fsdp2"), is_tested=False),
    "shapes": Settings(("ddp", "fsdp2"), batch_size=2, is_tested=False),
}


def adamw(parameters: Any) -> Optimizer:
    return AdamW(parameters, eps=1e-2)  # else the smallest gradients decide on whole steps


def constant(optimizer: Optimizer, steps: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1.0)


def heads() -> list[Objective]:
    """Each process masks the same 2D tokens of a scene."""
    return [CameraPrediction(), DepthPrediction(layer=0), MaskedViews(mask_ratio=0.3)]


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
        "small": lambda: PRoPEMLLM(
            LearnedStrength(GTA(learn_scale=True)),
            backbone=OLD(layers=1, vision_layers=1),
            objectives=heads()[:1],
            **every,
        ),
        "every part": lambda: PRoPEMLLM(
            GTA(learn_scale=True), backbone=NEW(), geometry=VGGT, objectives=heads(), **every
        ),
        "every part, bfloat16": lambda: PRoPEMLLM(
            GTA(learn_scale=True), backbone=NEW(), geometry=VGGT, objectives=heads(), **every
        ),
        "shapes": lambda: SpatialMLLM(backbone=OLD(), geometry=VGGT, **frozen),
        "lora": lambda: BaselineVLM(backbone=OLD(dtype="bfloat16"), objectives=heads(), **mixed),
        "spatial": lambda: SpatialMLLM(backbone=OLD(), geometry=VGGT, **frozen),
        "within layers": lambda: GeoThinker(backbone=OLD(), geometry=VGGT, fusion=WITHIN_LAYERS, **every),
        "text": lambda: GeoThinker(backbone=NEW(), geometry=VGGT, fusion=WITHIN_LAYERS, **every),
        "hybrid": lambda: PRoPEMLLM(
            Compose([RayRoPE(), DeltaNetLayers(PRoPE(UnrotatedChannels(), "vo"))]), backbone=HYBRID(), **every
        ),
        "released, lora": lambda: SpatialMLLM(
            backbone=PretrainedSpatialMLLM(str(released)), objectives=heads()[1:], **mixed
        ),
    }


class Traffic(TorchDispatchMode):
    """Counts the collectives of FSDP2 and their bytes (of whole tensors), by operation and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, torch.dtype]] = Counter()
        self.bytes: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = {"_allgather_base_": "gather", "_reduce_scatter_base_": "reduce"}.get(func.overloadpacket.__name__)
        if func.namespace == "c10d" and operation:
            largest = max((each for each in args if isinstance(each, torch.Tensor)), key=torch.Tensor.numel)
            self.calls[operation, largest.dtype] += 1
            self.bytes[operation, largest.dtype] += largest.nbytes
        return func(*args, **(kwargs or {}))


class Record(Callback):
    """Losses of this process, whole gradients of each step, and the traffic of all."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.local = 0  # elements of the trained parameters that this process holds
        self.gathered: dict[str, torch.dtype] = {}  # parameters that are gathered for the whole step
        self.traffic = Traffic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.traffic.__enter__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.traffic.__exit__(None, None, None)
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self.gathered = {name: p.dtype for name, p in pl_module.named_parameters() if not isinstance(p, DTensor)}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        trained = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        self.gradients.append({name: whole(p.grad).clone() for name, p in trained.items() if p.grad is not None})
        self.local = sum(getattr(p, "_local_tensor", p).numel() for p in trained.values())


def run(name: str, folder: Path, rooms: str, case: str, released: Path, resumed: Path, rank: int) -> None:
    torch.manual_seed(rank)  # what is drawn without a seed of its own must be shared
    settings = SETTINGS.get(case, Settings())
    task, record = cases(released, name)[case](), Record()
    data = VideoQADataModule(
        (HalfText if case == "text" else Rooms)(scenes=ROOMS, root=rooms),
        num_frames=4,
        pixels=PixelBounds(784, 65536, legacy_folder_resize=False),
        question_types=["room_size_estimation", "object_counting"],
        batch_size=settings.batch_size,
        num_workers=0,
        seed=0,
    )
    batches = 2 * settings.accumulate // RUNS[name]  # of a process per step
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=RUNS[name],
        strategy={"one": "auto", "ddp": "ddp"}.get(name) or FSDP2Strategy(),
        precision=settings.precision,
        callbacks=[KeepFirst(), record, Checkpoint(every_n_train_steps=1), MetricsCallback()],
        accumulate_grad_batches=batches,
        max_steps=STEPS,
        val_check_interval=batches,
        limit_val_batches=1.0 if settings.is_tested else 0,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.strategy.checkpoint_io = CheckpointFiles()
    with changed(name, case, rank):
        trainer.fit(task, data, ckpt_path=resumed if name == "resumed" else None)
    if settings.is_tested and name in ("one", "ddp", "fsdp2"):
        trainer.test(task, data, verbose=False)
    kept = {name: getattr(record, name) for name in ("losses", "gradients", "local", "gathered")}
    kept |= {"calls": record.traffic.calls, "bytes": record.traffic.bytes, "class": type(task).__qualname__}
    torch.save(kept, folder / f"record.rank{rank}")


@contextmanager
def changed(name: str, case: str, rank: int) -> Iterator[None]:
    """The control reduces each batch in bfloat16; in `shapes`, each video is of another shape to the second process."""
    with ExitStack() as changes:
        if name == "control":
            policy = partial(MixedPrecisionPolicy, torch.bfloat16, torch.bfloat16, cast_forward_inputs=False)
            changes.enter_context(patch("zoo.tasks.fsdp2.MixedPrecisionPolicy", lambda *_, **__: policy()))
            changes.enter_context(patch.object(FSDP2Strategy, "block_backward_sync", nullcontext))
        if case == "shapes" and rank == 1:
            apart = patch("zoo.geometry.base.same_shape", lambda frames: [[i] for i in range(len(frames))])
            changes.enter_context(apart)
        yield


class HalfText(Rooms):
    """Every second scene of the training is plain text, so a process has batches without images."""

    def scenes(self, split: Split) -> list[Scene]:
        scenes = super().scenes(split)
        is_text = [split == "train" and number % 2 == 1 for number in range(len(scenes))]
        return [
            replace(scene, is_text=True, cameras=None, depth=None) if text else scene
            for scene, text in zip(scenes, is_text, strict=True)
        ]


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
        port = free_port()
        children = []
        for rank in range(processes):
            if not (child := os.fork()):
                if processes > 1:
                    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
                for case in (each for each in chosen if name in SETTINGS.get(each, Settings()).runs):
                    (folder / case / name).mkdir(parents=True, exist_ok=True)
                    before = "ddp" if "ddp" in SETTINGS.get(case, Settings()).runs else "fsdp2"
                    first = folder / case / before / "first" / "last.ckpt"
                    run(name, folder / case / name, rooms, case, released, first, rank)
                os._exit(0)
            children.append(child)
        while children:
            ended, status = os.wait()
            children.remove(ended)
            if status:  # the others would wait for it in a collective
                for child in children:
                    os.kill(child, signal.SIGKILL)
                sys.exit(f"{name} failed")
    for case, name in product((each for each in chosen if (folder / each / "one").exists()), ("one", "fsdp2")):
        task, written = cases(released)[case](), folder / case / name
        if not unofficial_parts(task.model):
            trainer = ExportingTrainer(logger=False, accelerator="cpu")
            trainer.export(task, str(written / "exported"), str(written / "checkpoints" / "last.ckpt"))
