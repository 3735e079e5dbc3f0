"""What a number depends on beside the data: recorded in metrics.json, so that others can repeat the test."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from lightning import LightningModule, Trainer

from callbacks.results_folder import UNFINISHED, results_folder
from datamodules.resize import bounds_of_images
from zoo.configuration import to_config


def reproduction(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return the settings of a test that change its answers and are commonly left unsaid.

    Returns:
        "prompts" and "weights": digests of all prompts and of all weights, None without a `PredictionsCallback`;
        "precision"; of a `VideoQADataModule` "system_prompt", "prompt_prefix", "prompt_wording", "frames_as", "pixels"
        or "image_pixels" with "still_resize"; of a `VideoQATask` "time_index", "stop_tokens", "repetition_penalty",
        "sampling", "max_new_tokens".
    """
    data: Any = getattr(trainer, "datamodule", None)
    task: Any = pl_module
    file = results_folder(trainer) / UNFINISHED
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found = {name: settings.get(name) for name in ("prompts", "weights")}
    found["precision"] = trainer.precision
    if hasattr(data, "frames_as"):
        asked = data.source.benchmark
        found |= {"system_prompt": asked.system_prompt, "prompt_prefix": asked.prefix}
        found |= {"prompt_wording": asked.prompt_wording, "frames_as": data.frames_as}
        if data.frames_as == "video":
            found["pixels"] = asdict(data.pixels)
        else:
            found["still_resize"] = to_config(data.still_resize)
            found["image_pixels"] = asdict(bounds_of_images(data.image_pixels, data.spec.image_pixels))
    if hasattr(task, "repetition_penalty"):
        found |= {
            "time_index": to_config(task.model.time_index),
            "stop_tokens": task.model.backbone.stop_tokens,
            "repetition_penalty": task.repetition_penalty,
            "sampling": None if task.sampling is None else asdict(task.sampling),
            "max_new_tokens": task.max_new_tokens,
        }
    return found
