"""The gate on the attention's output: published numbers, both forms, and what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen3Config, Qwen3ForCausalLM

from tests.golden.weights import init_
from tests.tiny import difference, learned, one_by_one, replies, tiny_batch, tiny_model
from zoo import InputError, LoRA, OutputGate, PRoPE, Qwen35, SpatialVLM, TinyQwen35
from zoo.checkpoints import unofficial_parts

GOLDEN = Path(__file__).parents[1] / "golden" / "novel_view"
FORK = sorted((GOLDEN / "sdpa_gate_fork").glob("*.json"))
PAPER = sorted((GOLDEN / "sdpa_gate_paper").glob("*.json"))
CLOSE = 2e-5


def outputs_of(decoder: nn.Module, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the result of a call, and what enters the output projection of the first layer."""
    found: list[Tensor] = []
    layers: Any = decoder.layers
    handle = layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        result = run()
    handle.remove()
    return result, found[0]


@pytest.mark.parametrize("file", FORK, ids=lambda file: file.stem)
def test_the_forks_gate_is_its_own(file: Path) -> None:
    case, tensors = json.loads(file.read_text()), load_file(file.with_suffix(".safetensors"))
    shapes = {name: shape for name, shape in case["param_names"].items() if name.startswith("model.")}
    stored = {name.removeprefix("model."): init_(name, torch.empty(shape)) for name, shape in shapes.items()}
    gates = {name: stored.pop(name) for name in [*stored] if "sdpa_gate" in name}

    def decoder_with(gate: OutputGate | None) -> Any:
        stock = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**case["config"]["qwen"]))
        decoder: Any = stock.model.language_model
        decoder.load_state_dict(stored)
        if gate is not None:
            gate.install(decoder)
        return decoder

    def logits(decoder: Any) -> Tensor:
        return decoder(input_ids=tensors["input_ids"]).last_hidden_state @ stored["embed_tokens.weight"].T

    gate = OutputGate()
    gated = decoder_with(gate)
    for number, each in enumerate(gate.gates if case["opened"] else []):
        each.load_state_dict(
            {kind: gates[f"layers.{number}.self_attn.sdpa_gate.{kind}"] for kind in ("weight", "bias")}
        )
    found, entered = outputs_of(gated, lambda: logits(gated))
    assert (found - tensors["out_logits"]).abs().max() < CLOSE
    assert (entered - tensors["out_gated_0"].view_as(entered)).abs().max() < CLOSE
    plain = decoder_with(None)
    found, entered = outputs_of(plain, lambda: logits(plain))
    assert (entered - tensors["out_attention_0"].view_as(entered)).abs().max() < CLOSE
    assert (found - tensors["out_logits"]).abs().max() > 0.02  # the control


@pytest.mark.parametrize("file", PAPER, ids=lambda file: file.stem)
def test_the_papers_gate_is_its_own(file: Path) -> None:
    case, tensors = json.loads(file.read_text()), load_file(file.with_suffix(".safetensors"))
    sizes = {name: value for name, value in case["config"].items() if "gate" not in name and name != "use_qk_norm"}
    model: Any = Qwen3ForCausalLM(Qwen3Config(**sizes))
    gate = OutputGate("input", per="head" if case["gate"] == "head" else "channel", bias=None)
    gate.install(model.model)
    stored = {name: init_(name, torch.empty(shape)) for name, shape in case["param_names"].items()}
    groups, width = sizes["num_key_value_heads"], sizes["num_attention_heads"] * sizes["head_dim"]
    for number, each in enumerate(gate.gates):
        name = f"model.layers.{number}.self_attn.q_proj.weight"
        rows = stored[name].unflatten(0, (groups, -1))  # a group's queries, then its gates
        stored[name] = rows[:, : width // groups].flatten(0, 1)
        each.weight.data = rows[:, width // groups :].flatten(0, 1)
    model.load_state_dict(stored)
    found, entered = outputs_of(model.model, lambda: model(input_ids=tensors["input_ids"]).logits)
    assert (found - tensors["out_logits"]).abs().max() < CLOSE
    assert (entered - tensors["out_gated_0"]).abs().max() < CLOSE


GATES: list[dict[str, Any]] = [{}, {"reads": "input"}, {"per": "head"}, {"reads": "input", "per": "head", "bias": None}]


@pytest.mark.parametrize("options", GATES, ids=str)
@pytest.mark.parametrize("encoding", [None, PRoPE])
def test_open_gates_change_nothing_and_others_do(options: dict[str, Any], encoding: Any) -> None:
    def made(gate: OutputGate | None) -> Any:
        return tiny_model("plain", camera_encoding=None if encoding is None else encoding(), output_gate=gate).train()

    plain, gated = made(None), made(OutputGate(**options))
    expected = learned(plain, plain.loss(tiny_batch(plain, training=True)))
    for gate in gated.model.output_gate.gates:
        nn.init.zeros_(gate.weight)
        if gate.bias is not None:
            nn.init.constant_(gate.bias, 100.0)
    loss, gradients = learned(gated, gated.loss(tiny_batch(gated, training=True)))
    own = {name: each for name, each in gradients.items() if "output_gate" not in name}
    is_open = options.get("bias", 4.0) is not None  # otherwise half of the output is left
    assert (difference((loss, own), expected) < 1e-6) == is_open
    assert gradients.keys() - own.keys() and gated.part_of("model.output_gate.gates.0.weight") == "encoding"


def test_gates_read_their_layer_in_cached_answers_and_under_checkpointing_as_in_one_pass() -> None:
    gate = OutputGate("input", bias=None)
    task = tiny_model("plain", camera_encoding=PRoPE(), output_gate=gate)
    for each in gate.gates:
        nn.init.normal_(each.weight, generator=torch.Generator().manual_seed(0))
    asked = tiny_batch(task)
    assert [reply.ids for reply in replies(task, asked)] == one_by_one(task, asked)
    batch = tiny_batch(task.train(), training=True)
    expected = learned(task, task.loss(batch))
    task.model.backbone.enable_gradient_checkpointing()
    assert difference(learned(task, task.loss(batch)), expected) < 1e-6


def test_gates_survive_a_saved_model_and_train_beside_adapters(tmp_path: Path) -> None:
    ours: Any = SpatialVLM(output_gate=OutputGate(per="head"), lora=LoRA(r=2))
    assert all(each.requires_grad for each in ours.output_gate.parameters())
    ours.output_gate.gates[0].bias.data += 1
    ours.save_pretrained(tmp_path / "saved")
    read: Any = SpatialVLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(read.output_gate.gates[0].bias, ours.output_gate.gates[0].bias)
    assert unofficial_parts(ours) == ["OutputGate"]


def test_a_decoder_with_gates_of_its_own_is_refused() -> None:
    with pytest.raises(InputError, match="output_gate: this decoder's attention has"):
        Qwen35(backbone=TinyQwen35(), output_gate=OutputGate())
