"""python main.py export --out folder: a run, or released weights, as a folder that official code reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info

from datamodules import VideoQADataModule
from zoo import InputError, SpatialVLM
from zoo.checkpoints import export_model
from zoo.trainable import Trainable

OFFICIAL = {"active_branches": "both", "temporal_merge": "concat"}  # how the official code fuses


class ExportingTrainer(Trainer):
    """A Trainer that also has the subcommand `export`."""

    def export(
        self,
        model: Trainable,
        out: str,
        ckpt_path: str | None = None,
        dtype: Literal["float32", "bfloat16"] | None = None,
        weights_only: bool | None = None,
        datamodule: VideoQADataModule | None = None,
    ) -> None:
        """Writes the model by official names, LoRA merged, with config and processor files.

        Args:
            model: a Qwen2.5-VL or a Spatial-MLLM.
            out: a new folder.
            ckpt_path: the run's checkpoint; none writes the model as it was built.
            dtype: of the weights; null is that of the released weights that the run started from, else the model's.
            weights_only: is not looked at, as a run's config has it: nothing but weights is ever read.
            datamodule: is not looked at.

        Raises:
            InputError: a model without an official layout, or a folder that holds something.
        """
        if not isinstance(model, SpatialVLM):
            raise InputError(f"{type(model).__name__} is no video-language model: only these are exported")
        if ckpt_path is not None:
            checkpoint = torch.load(ckpt_path, weights_only=True, map_location="cpu", mmap=True)
            model.load_state_dict(checkpoint["state_dict"])
        export_model(model, Path(out), None if dtype is None else getattr(torch, dtype))
        left_out = [type(model.camera_encoding).__name__] if model.camera_encoding is not None else []
        if model.fusion is not None:
            chosen = {name: getattr(model.fusion, name) for name in OFFICIAL}
            left_out += [f"{name}: {value}" for name, value in chosen.items() if value != OFFICIAL[name]]
        beside = f", without {', '.join(left_out)}, which is no weight" if left_out else ""
        rank_zero_info(f"export: {out}{beside}")
