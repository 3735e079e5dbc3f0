"""A first run on a GPU, rehearsed on the CPU: no mixed devices, no autocast of the CPU, few waits of the host."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import run_in_process
from tests.tiny import MODELS, NEW, QUESTIONS, tiny_batch, tiny_model, tiny_scene
from zoo import CameraPrediction, DepthPrediction, LoRA, MaskedViews
from zoo.backbones.base import Backbone
from zoo.backbones.vision import PatchEmbedding
from zoo.generation import answer_batch
from zoo.geometry import DatasetGeometry, TinyVGGT
from zoo.tasks.base import parameter_groups

Rehearsals = Callable[..., list[dict[str, Any]]]
TOKENS = {"answers": NEW, "answers alone, None": 2, "answers alone, 32-true": 2}  # the longest answers
IN_HEADS = re.compile(r"zoo/geometry/(layers|dpt|da3/heads)\.py")  # of depth, whose convolutions overlap
IN_ERRORS = ("zoo/objectives", "zoo/tasks/video_qa.py")  # an evaluation reads the errors of objectives once per scene
VGGT: dict[str, Any] = {"geometry": lambda: TinyVGGT(embed_dim=32, depth=4, heads=("camera", "depth"))}
OBJECTIVES = [CameraPrediction(), DepthPrediction(), MaskedViews()]
MORE: dict[str, dict[str, Any]] = {
    "objectives": {"objectives": OBJECTIVES, "camera_source": "auto", **VGGT},
    "prope.yaml, checkpointing, LoRA": {**MODELS["prope.yaml"], "gradient_checkpointing": True, "lora": LoRA(r=4)},
    "dataset geometry, scene unit": {**MODELS["AddFusion"], "geometry": lambda: DatasetGeometry(unit="scene")},
    "merged mean": {"camera_encoding": "PRoPE, ChannelRange", "merged_camera": "mean"},
    "pose index on predicted cameras": {**MODELS["PathLengthIndex"], "camera_source": "predicted", **VGGT},
    "repetition penalty": {"repetition_penalty": 1.05},
}
MANY = [
    *("plain", "prope.yaml", "CameraTokenFusion, append", "AttentionFusion", "StackFusion", "PoseALiBi", "PoseAxis"),
    "GeoThinkerFusion, compressed",
    *("DA3's tokens, points and cameras", "RayRoPE", "PRoPE, ExtraChannels", *MORE),
]


@pytest.fixture
def rehearsals(tmp_path: Path) -> Rehearsals:
    """Rehearses models in a process of its own, since `tests.pretended_gpu` replaces what torch says of devices."""

    def call(names: Sequence[str], family: str, packs: bool = False, plant: str | None = None) -> list[dict[str, Any]]:
        run_in_process(rehearse, tmp_path / "found", names, family, packs, plant, limit_s=1700)
        return json.loads((tmp_path / "found").read_text())

    return call


def rehearse(file: Path, names: Sequence[str], family: str, packs: bool, plant: str | None) -> None:
    warnings.filterwarnings("ignore")
    MODELS.update(MORE)
    file.write_text(json.dumps([{"model": f"{family} {n}", "parts": parts_of(n, family, packs, plant)} for n in names]))


def parts_of(name: str, family: str, packs: bool, plant: str | None) -> dict[str, dict[str, Any]]:
    """A training step and answers: by a task in bf16-mixed, by the model alone, and by it in float32."""
    from tests import pretended_gpu as pretend  # importing it makes torch report a GPU

    scenes = [
        tiny_scene("a", QUESTIONS[1:4], family=family),
        tiny_scene("b", QUESTIONS[:1], steps=2, seed=1, family=family),
    ]
    task = tiny_model(name, family=family).train()
    made = tiny_batch(task, *scenes, training=True, pack_scenes=packs)
    asked = tiny_batch(task.eval(), *scenes[:1])
    if plant == "convolution":
        for embedding in [part for part in task.modules() if isinstance(part, PatchEmbedding)]:
            embedding.__class__ = type(embedding).__bases__[1]  # the stock one
    elif plant == "stock attention":
        task.model.backbone.decoder.config._attn_implementation = "sdpa"
    elif plant is not None:
        plant_in(task.model.backbone, plant)
    task.train()
    found: dict[str, Any] = {}
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
        pretend.backward(loss)
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
    return {
        part: {
            "faults": [" ".join(key) for key in log.faults],
            "waits": {" ".join(key): count for key, count in log.syncs.items()},
            "attention": list(log.attention),
            "convolutions": list(log.convolutions),
        }
        for part, log in found.items()
    }


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


def check(found: list[dict[str, Any]]) -> None:
    for each in found:
        name, parts = each["model"], each["parts"]
        faults = {part: log["faults"] for part, log in parts.items() if log["faults"]}
        assert not faults, name
        waits = {part: parts[part]["waits"] for part in ("move", "loss", "backward", "step")}
        assert not any(waits.values()), (name, waits)
        for part, tokens in TOKENS.items():
            of_tokens = {at: n for at, n in parts[part]["waits"].items() if not any(file in at for file in IN_ERRORS)}
            assert sum(of_tokens.values()) <= tokens, (name, part, of_tokens)
        math = [kernel for log in parts.values() for kernel in log["attention"] if kernel.startswith("MATH")]
        assert not math, name
        own = [kernel for kernel in parts["answers alone, None"]["attention"] if "zoo/backbones" in kernel]
        assert own and all(": bfloat16, " in kernel for kernel in own), name  # heads of cameras are in float32
        convolutions = [at for log in parts.values() for at in log["convolutions"] if not IN_HEADS.search(at)]
        assert not convolutions, name


def test_a_step_and_answers_on_a_pretended_gpu(rehearsals: Rehearsals) -> None:
    check(rehearsals(["prope.yaml"], "Qwen2.5-VL"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("family", "packs"), [*product(("Qwen2.5-VL", "Qwen3-VL", "Qwen3.5"), [False]), ("Qwen2.5-VL", True)]
)
def test_many_models_on_a_pretended_gpu(family: str, packs: bool, rehearsals: Rehearsals) -> None:
    found = rehearsals(MANY, family, packs)
    assert len(found) == len(MANY)
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("plant", ["cpu", "autocast", "wait", "convolution", "stock attention"])
def test_a_planted_fault_is_found(plant: str, rehearsals: Rehearsals) -> None:
    """The control: a tensor and autocast of the CPU, a wait, stock convolution and attention, each with its place."""
    found = rehearsals(["plain"], "Qwen3-VL" if plant == "convolution" else "Qwen2.5-VL", plant=plant)
    parts = found[0]["parts"]
    here = "tests/zoo/test_rehearsal.py"
    if plant in ("cpu", "autocast"):
        assert any(here in fault for fault in parts["loss"]["faults"])
    elif plant == "wait":
        assert any(here in at for at in parts["loss"]["waits"])
        assert sum(parts["answers"]["waits"].values()) > TOKENS["answers"]
    elif plant == "convolution":
        assert parts["loss"]["convolutions"] and parts["answers"]["convolutions"]
    else:
        assert any(kernel.startswith("MATH") for kernel in parts["answers alone, 32-true"]["attention"])
    with pytest.raises(AssertionError):
        check(found)
