"""Runs tiny models on a pretended GPU and prints what a real one would refuse or wait for, as JSON.

    python -m tests.rehearsal --only plain prope.yaml --family Qwen3-VL
    python -m tests.rehearsal --plant cpu        # the control: a tensor that stays on the CPU, or see `PLANTS`

A process of its own, since `tests.pretended_gpu` replaces what torch says of devices.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from tests import pretended_gpu as pretend
from tests.zoo import asking
from tests.zoo.asking import MODELS, QUESTIONS, build, scene
from zoo import CameraPrediction, DepthPrediction, LoRA, MaskedViews
from zoo.backbones.base import Backbone
from zoo.backbones.vision import PatchEmbedding
from zoo.generation import answer_batch
from zoo.geometry import DatasetGeometry, TinyVGGT
from zoo.tasks.base import parameter_groups

VGGT: dict[str, Any] = {"geometry": lambda: TinyVGGT(embed_dim=32, depth=4, heads=("camera", "depth"))}
MORE: dict[str, dict[str, Any]] = {
    "objectives": {
        "objectives": [CameraPrediction(), DepthPrediction(), MaskedViews()],
        "camera_source": "auto",
        **VGGT,
    },
    "objectives, medoid": {"objectives": [CameraPrediction(reference="medoid", scale="rms")]},
    "LoRA": {"lora": LoRA(r=4)},
    "prope.yaml, checkpointing, LoRA": {**MODELS["prope.yaml"], "gradient_checkpointing": True, "lora": LoRA(r=4)},
    "dataset geometry, scene unit": {**MODELS["AddFusion"], "geometry": lambda: DatasetGeometry(unit="scene")},
    "merged mean": {"camera_encoding": "PRoPE, ChannelRange", "merged_camera": "mean"},
    "pose index on predicted cameras": {**MODELS["PathLengthIndex"], "camera_source": "predicted", **VGGT},
    "repetition penalty": {"repetition_penalty": 1.05},
}
PLANTS = ("cpu", "autocast", "wait", "convolution", "stock attention")
Parts = dict[str, pretend.Log]


def rehearse(name: str, family: str, packs: bool, plant: str | None) -> Parts:
    """A training step and answers, by part: by a task in bf16-mixed, by the model alone, and by it in float32."""
    scenes = [scene("a", QUESTIONS[1:4], family=family), scene("b", QUESTIONS[:1], steps=2, seed=1, family=family)]
    task = build(name, family=family).train()
    made = asking.batch(task, *scenes, training=True, pack_scenes=packs)
    asked = asking.batch(task.eval(), *scenes[:1])
    if plant == "convolution":
        for embedding in [part for part in task.modules() if isinstance(part, PatchEmbedding)]:
            embedding.__class__ = type(embedding).__bases__[1]  # the stock one
    elif plant == "stock attention":
        task.model.backbone.decoder.config._attn_implementation = "sdpa"
    elif plant is not None:
        plant_in(task.model.backbone, plant)
    task.train()
    found: Parts = {}
    with pretend.on_pretended_cuda():
        task.to("cuda:0")
        left = [n for n, t in [*task.named_parameters(), *task.named_buffers()] if not pretend.claims(t)]
        optimizer = task.optimizer(parameter_groups(task.named_parameters(), task.learning_rates, task.part_of))
        found["move"] = pretend.fresh()
        batch = made.to(pretend.CUDA, non_blocking=True)
        found["loss"] = pretend.fresh()
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = task.loss(batch)
        found["backward"] = pretend.fresh()
        pretend._backward(loss)
        found["step"] = pretend.fresh()
        optimizer.step()
        task.eval()
        question = asked.to(pretend.CUDA, non_blocking=True)
        found["answers"] = pretend.fresh()
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            records = task.predict_batch(question)
        for precision in (None, "32-true"):
            found[f"answers alone, {precision}"] = pretend.fresh()
            task.model.precision = precision
            with torch.inference_mode():
                answer_batch(task.model, question, 2)
        pretend.fresh()
    assert not any(record["error"] for record in records), records
    for parameter in left:
        found["move"].faults[f"stays on the CPU: {parameter}", ""] += 1
    return found


def plant_in(backbone: Backbone, what: str) -> None:
    """Plant a tensor or autocast of the CPU in the embedding, or a wait in each pass of the decoder."""
    embed, decode, offset = backbone.embed, backbone.decode, torch.zeros(1, 1, 1)

    def faulty(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False) if what == "autocast" else nullcontext():
            return embed(ids) + offset if what == "cpu" else embed(ids)

    def waiting(*arguments: Any, **options: Any) -> Any:
        output = decode(*arguments, **options)
        output.last_hidden_state.amax().item()
        return output

    if what == "wait":
        backbone.decode = waiting  # type: ignore[method-assign]
    else:
        backbone.embed = faulty  # type: ignore[method-assign]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--family", nargs="+")
    parser.add_argument("--packs", action="store_true")
    parser.add_argument("--plant", choices=PLANTS)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    MODELS.update(MORE)
    for family in options.family or (asking.MASKED_FAMILIES if options.packs else asking.BACKBONES):
        for name in options.only or MODELS:
            parts = rehearse(name, family, options.packs, options.plant)
            found = {
                part: {
                    "faults": [" ".join(key) for key in log.faults],
                    "waits": {" ".join(key): count for key, count in log.syncs.items()},
                    "attention": dict(log.attention),
                    "convolutions": list(log.convolutions),
                    "kernels": log.kernels,
                }
                for part, log in parts.items()
            }
            print(json.dumps({"model": name, "family": family, "parts": found}), flush=True)


if __name__ == "__main__":
    main()
