"""python main.py export --out folder: write a run, or released weights, as a folder for others."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info

from commands.runs import run_of
from datamodules import VideoQADataModule
from datamodules.inference import READ_FROM_RUN
from zoo.configuration import complete_config, to_config
from zoo.errors import InputError
from zoo.tasks.base import Task
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.checkpoint import FROZEN, check_frozen, read_checkpoint
from zoo.weights.saved_models import config_of


class ExportingTrainer(Trainer):
    """A Trainer that also has the subcommand `export`."""

    def export(
        self,
        model: Task,
        out: str,
        ckpt_path: str | None = None,
        layout: Literal["auto", "official", "zoo"] = "auto",
        full: bool = False,
        dtype: Literal["float32", "bfloat16"] | None = None,
        weights_only: bool | None = None,
        datamodule: VideoQADataModule | None = None,
    ) -> None:
        """Write a folder in the official layout if the model has one, else for `SpatialVLM.from_pretrained`.

        Args:
            model: A video-language model.
            out: A new folder.
            ckpt_path: The run's checkpoint. null writes the model as it was built.
            layout: `official` has official names with LoRA merged, config and processor files, and can be read by the
                published code. `zoo` has the trained weights of any model, and the settings by which it reads videos.
                `auto` is official if nothing is lost.
            full: In the zoo's layout, also copy the frozen released weights.
            dtype: Type of official weights. null uses the type of the released weights from which the run started, else
                the model's.
            weights_only: Ignored, but present in a run's config: only weights are ever read.
            datamodule: Its settings are stored for `SpatialVLM.answer`.

        Raises:
            InputError: The model has no official layout, or the folder is not empty.
        """
        from zoo.checkpoints.export import export_model, unofficial_parts  # knows the published models

        if not isinstance(model, VideoQATask):
            raise InputError(f"{type(model).__name__} is no video-language model: only these are exported")
        if ckpt_path is not None:
            checkpoint = read_checkpoint(ckpt_path)
            check_frozen(checkpoint.get(FROZEN, {}), model.frozen_weights, ckpt_path)
            model.load_state_dict(checkpoint["state_dict"])
        reading = [] if datamodule is None else unofficial_reading(datamodule)
        left_out = ", ".join(unofficial_parts(model.model) + reading)
        if layout == "official" or (layout == "auto" and not left_out):
            export_model(model.model, Path(out), None if dtype is None else getattr(torch, dtype))
            beside = f", which has no {left_out}" if left_out else ""
            rank_zero_info(f"export: {out}, in the official layout{beside}")
        else:
            model.model.data_config = {} if datamodule is None else to_config(datamodule)
            run = None if ckpt_path is None else run_of(Path(ckpt_path))
            trained = self.precision if run is None else config_of(run)["trainer"]["precision"]
            model.model.precision = str(trained or "32-true")
            model.model.save_pretrained(out, full=full)
            why = f": the official layout has no {left_out}" if layout == "auto" else ""
            rank_zero_info(f"export: {out}, for SpatialVLM.from_pretrained{why}")


def unofficial_reading(data: VideoQADataModule) -> list[str]:
    """Return the options by which a model reads videos that differ from the defaults."""
    given, default = to_config(data)["init_args"], VideoQADataModule()

    def is_default(name: str) -> bool:
        own = getattr(data, name, given.get(name))
        return bool(complete_config(own) == complete_config(getattr(default, name, None)))

    return [f"--data.{name}" for name in READ_FROM_RUN if not is_default(name)]
