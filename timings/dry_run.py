"""Run a model of released size on a CPU: random weights in its layout, a real video, answers, and one LoRA step.

    python -m timings.dry_run --video clip.mp4 --processor Qwen2.5-VL-3B-Instruct [--model vg_llm] [--folder weights]

The command writes the tensors of a Spatial-MLLM v1.1 or a VG-LLM 4B, 5 billion parameters in bfloat16 with random
numbers, into a temporary folder, with tokenizer and processor files of the given folder. Then it loads them as a user
does, answers questions about four frames, and trains LoRA on the decoder for one step with gradient checkpointing. This
needs 12 GB of memory. The folder is removed at the end. `--tiny` writes a model of a thousandth of the size.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from datamodules.collate import TrainingCollate
from datamodules.inference import data_of, load_video
from datamodules.scenes import Question
from timings.measure import resident
from timings.random_weights import draw
from zoo import VGLLM, LearningRates, LoRA, PretrainedSpatialMLLM, PretrainedVGLLM, SpatialMLLM, SpatialVLM, VideoQATask
from zoo.backbones.pretrained import EmptyBackbone, known_config, qwen25_config
from zoo.checkpoints.export import official_tensors, released_config
from zoo.geometry import VGGT, VGGTEncoder
from zoo.published import spatial_mllm, vg_llm
from zoo.published.release import ReleasedGeometry
from zoo.sequences.batch import Batch
from zoo.tasks.base import parameter_groups

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
TINY_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
TINY_VGGT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_embed": "conv"}
SHARD = 2**30  # bytes
COPIED = ("chat_template.json", "generation_config.json", "merges.txt", "preprocessor_config.json")
COPIED += ("tokenizer_config.json", "vocab.json")
FRAMES, NEW_TOKENS = 4, 8
TEXTS = ("How many chair(s) are in this room?", "What is the size of this room (in square meters)?")


class Released(NamedTuple):
    """A released model.

    Attributes:
        loader: Loader of the released folder.
        task: The LightningModule.
        geometry: Returns the model's parts beside the backbone, by its config.json.
    """

    loader: type[Any]
    task: type[VideoQATask]
    geometry: Callable[[dict[str, Any]], ReleasedGeometry | None]


MODELS = {
    "spatial_mllm": Released(PretrainedSpatialMLLM, SpatialMLLM, spatial_mllm.geometry_of),
    "vg_llm": Released(PretrainedVGLLM, VGLLM, partial(vg_llm.geometry_of, names=())),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--processor", type=Path, required=True, help="a released Qwen2.5-VL; its weights are not read")
    parser.add_argument("--model", choices=MODELS, default="spatial_mllm")
    parser.add_argument("--folder", type=Path, help="for the weights, 10 GB; by default a temporary one")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    released = MODELS[options.model]
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        count, parameters = write_release(released, Path(folder), options.processor, options.tiny)
        found = {"tensors": count, "parameters": parameters, **run(released, folder, options.video)}
    print(json.dumps(found, indent=1))


def write_release(released: Released, folder: Path, processor: Path, is_tiny: bool) -> tuple[int, int]:
    """Write config, processor and random weights. Return the number of tensors and of parameters."""
    config: dict[str, Any] = dict(known_config(released.loader.released) or {})
    if is_tiny:
        config |= {**TINY, "vision_config": config["vision_config"] | TINY_VISION, "vggt_aggregator": TINY_VGGT}
    parts = released.geometry(config)
    assert parts is not None
    with torch.device("meta"):
        qwen = EmptyBackbone(released.loader, qwen25_config(config), torch.bfloat16, parts.layout)
        encoder = VGGTEncoder(VGGT(dict(parts.aggregator)), parts.layers)
        model = SpatialVLM(qwen, geometry=lambda: encoder, fusion=parts.fusion)
    shapes = {name: tensor.shape for name, tensor in official_tensors(model).items()}
    for name in COPIED:
        shutil.copy(processor / name, folder)
    (folder / "config.json").write_text(json.dumps(released_config(model, None)))
    weight_map = {}
    for number, shard in enumerate(shards(shapes)):
        file = f"model-{number:05}.safetensors"
        weights = {name: draw(torch.empty(shape, dtype=torch.bfloat16), name) for name, shape in shard.items()}
        save_file(weights, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return len(shapes), sum(map(math.prod, shapes.values()))


def shards(shapes: Mapping[str, torch.Size]) -> Iterator[dict[str, torch.Size]]:
    """Yield tensors grouped into files of limited size."""
    shard: dict[str, torch.Size] = {}
    for name, shape in shapes.items():
        if shard and 2 * (sum(map(math.prod, shard.values())) + math.prod(shape)) > SHARD:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def run(released: Released, folder: str, video: Path) -> dict[str, Any]:
    """Answer two questions and train one step. Return the results, seconds and peak memory."""
    # 1. Load the model as a user does. Untrained adapters change nothing.
    start = time.perf_counter()
    backbone = released.loader(folder, dtype="bfloat16")
    rates, adapters = LearningRates(decoder=1e-4, connector=None), LoRA(r=16)
    task = released.task(backbone=backbone, learning_rates=rates, lora=adapters, gradient_checkpointing=True)
    loaded = time.perf_counter()
    # 2. Answers.
    answers = task.eval().model.answer(video, TEXTS, num_frames=FRAMES, max_new_tokens=NEW_TOKENS)
    answered = time.perf_counter()
    # 3. A step.
    task.train()
    batch = training_batch(task, video)
    optimizer = task.optimizer(parameter_groups(task.named_parameters(), rates, task.part_of))
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.loss(batch)
    loss.backward()
    gradients = [p.grad.norm() for p in task.parameters() if p.grad is not None]
    optimizer.step()
    return {
        "answers": answers,
        "visual tokens": sum(scene.num_steps * scene.tokens_per_step for scene in batch.scenes),
        "loss": float(loss.detach()),
        "gradient": float(torch.stack(gradients).norm()),
        "adapters": len(gradients),
        "s to load": loaded - start,
        "s to answer": answered - loaded,
        "s per step": time.perf_counter() - answered,
        "GB at the peak": resident("VmHWM") / 1e9,
    }


def training_batch(task: VideoQATask, video: Path) -> Batch:
    """Return a batch with one question and its answer."""
    scene = load_video(task.model, data_of(task.model), video, num_frames=FRAMES)
    questions = (Question("0", "object_counting", TEXTS[0], "4"),)
    return TrainingCollate(task.model_spec(training=True))([replace(scene, questions=questions)])


if __name__ == "__main__":
    main()
