"""QLoRA: the decoder's linear layers in four bits, adapters in float32. bitsandbytes computes on the CPU here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cli import Run, weights
from tests.tiny import tiny_batch
from zoo import InputError, LearningRates, LoRA, PRoPE, RayEmbedding, SpatialVLM, TinyQwen25VL, VideoQATask
from zoo.backbones.lora import stored_bytes
from zoo.checkpoints import PretrainedQwen25VL
from zoo.checkpoints.export import export_model, official_tensors
from zoo.tasks.fsdp2 import FSDP2Strategy
from zoo.tasks.training_cost import total_bytes
from zoo.weights.load import is_quantized

bnb = pytest.importorskip("bitsandbytes")
QLORA = LoRA(r=4, quantization="nf4")
TINY: dict[str, Any] = dict(layers=2, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen2.5-VL as it is released, in bfloat16."""
    folder = tmp_path_factory.mktemp("released") / "qwen"
    export_model(SpatialVLM(TinyQwen25VL(**TINY, seed=0)), folder, torch.bfloat16)
    return folder


def task(release: Path, lora: LoRA | None = QLORA, later: bool = True) -> VideoQATask:
    """A training with a camera encoding and a view mixer."""
    torch.manual_seed(0)
    made = VideoQATask(
        backbone=PretrainedQwen25VL(str(release)),
        **{"lora": lora, "camera_encoding": PRoPE(), "view_mixer": RayEmbedding},
        learning_rates=LearningRates(decoder=1e-2),
        defer_weights=later,
    )
    if later:
        made.configure_model()
    return made


def test_an_export_without_adapters_imports_no_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"peft", *(each for each in sys.modules if each.startswith("peft."))}:
        monkeypatch.setitem(sys.modules, name, None)  # a None refuses the import
    assert official_tensors(SpatialVLM(TinyQwen25VL(**TINY)))
    with pytest.raises(ImportError):  # the control: adapters need it
        SpatialVLM(TinyQwen25VL(**TINY), lora=LoRA(r=4))


def test_adapters_without_four_bits_print_no_warning_of_bitsandbytes(caplog: pytest.LogCaptureFixture) -> None:
    SpatialVLM(TinyQwen25VL(**TINY), lora=LoRA(r=4))
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")
    logging.getLogger("bitsandbytes.another").warning("another warning")  # the control
    assert caplog.messages == ["another warning"]


def layers_of(model: nn.Module) -> dict[str, Any]:
    return {name: each for name, each in model.named_modules() if isinstance(each, bnb.nn.Linear4bit)}


def restored(layer: Any) -> Tensor:
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def tensors_of(weight: Any) -> Iterator[Tensor]:
    """What a weight in four bits consists of."""
    state = weight.quant_state
    yield from (weight.data, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


def train(model: VideoQATask, batch: Any, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        (loss := model.loss(batch)).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---- Weights


def test_the_linear_layers_of_the_decoder_and_nothing_else_are_in_four_bits(release: Path) -> None:
    model, whole = task(release).model, task(release, lora=None).model
    found, targets = layers_of(model), model.backbone.lora_targets
    assert len(found) == len(targets) * len(model.backbone.decoder.layers) > 0
    assert all(".language_model.layers." in name and name.split(".")[-2] in targets for name in found)
    original = dict(whole.named_parameters())
    for name, layer in found.items():
        exact = original[name.removesuffix(".base_layer") + ".weight"].float()
        assert layer.weight.dtype == torch.uint8 and layer.compute_dtype == torch.bfloat16
        assert 0 < (restored(layer).float() - exact).norm() / exact.norm() < 0.15
    assert not any(layers_of(whole))


def test_cameras_and_everything_that_trains_are_float32(release: Path) -> None:
    made = task(release)
    assert {each.dtype for each in made.parameters() if each.requires_grad} == {torch.float32}
    plain = task(release, LoRA(r=4))
    others = {name: each for name, each in plain.named_parameters() if ".base_layer." not in name}
    found = {name: each for name, each in made.named_parameters() if ".base_layer." not in name}
    assert {name: each.dtype for name, each in found.items()} == {name: each.dtype for name, each in others.items()}
    assert any("view_mixer" in name for name in found)


def test_weights_that_are_read_at_once_and_later_are_the_same(release: Path) -> None:
    at_once, later = task(release, later=False), task(release)
    for (name, one), (other, two) in zip(at_once.named_parameters(), later.named_parameters(), strict=True):
        assert name == other and torch.equal(one, two) and is_quantized(one) == is_quantized(two)
    one, two = ([t for each in layers_of(made).values() for t in tensors_of(each.weight)] for made in (at_once, later))
    assert len(one) == len(two) > 0 and all(map(torch.equal, one, two))


def test_plans_count_four_bits_and_their_scales(release: Path) -> None:
    made = task(release)
    with torch.device("meta"):
        planned = task(release, later=False)
    found = [each.weight for each in layers_of(made).values()]
    assert sum(map(stored_bytes, found)) == sum(each.nbytes for weight in found for each in tensors_of(weight))
    assert total_bytes(planned.parameters()) == total_bytes(made.parameters())
    with torch.device("meta"):  # the control, and the share of a large layer
        assert total_bytes(task(release, LoRA(r=4), later=False).parameters()) > total_bytes(made.parameters())
        large = bnb.nn.Linear4bit(4096, 4096, quant_type="nf4", device="meta").weight
    assert 0.51 < stored_bytes(large) / large.numel() < 0.52


# ---- Training


def test_a_training_moves_the_adapters_and_keeps_the_four_bits(release: Path) -> None:
    """Also after an evaluation, for which bitsandbytes would change the layout on some CPUs."""
    made = task(release)
    batch = tiny_batch(made, training=True)
    before = {name: each.detach().clone() for name, each in made.named_parameters()}
    made.eval()
    with torch.no_grad():
        made.loss(batch)
    made.train()
    losses = train(made, batch, 12)
    assert losses[-1] < losses[0] - 0.5
    changed = {name for name, each in made.named_parameters() if not torch.equal(each, before[name])}
    in_decoder = {name for name in changed if made.part_of(name) == "decoder"}
    assert in_decoder == {name for name in before if ".lora_" in name} and len(in_decoder) > 0
    assert all(each.weight.dtype == torch.uint8 for each in layers_of(made).values())


def test_gradients_are_those_of_a_decoder_with_the_same_weights_in_bfloat16(release: Path) -> None:
    made, plain = task(release), task(release, LoRA(r=4))
    original = dict(plain.named_parameters())
    for name, layer in layers_of(made).items():
        original[f"{name}.weight"].data = bnb.functional.dequantize_4bit(
            layer.weight.data, layer.weight.quant_state
        ).bfloat16()
    batch = tiny_batch(made, training=True)
    for each in (made, plain):
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in each.named_parameters():
                if ".lora_" in name:
                    parameter.normal_(std=0.05)
        each.loss(batch).backward()
    found = {name: each.grad for name, each in made.named_parameters() if ".lora_" in name and each.grad is not None}
    assert len(found) > 0
    expected = torch.cat([original[name].grad.flatten() for name in found])
    difference = torch.cat([each.flatten() for each in found.values()]) - expected
    assert difference.norm() / expected.norm() < 0.05
    assert (task(release, LoRA(r=4)).loss(batch) - plain.loss(batch)).abs() > 1e-3  # the control: unrounded weights


def test_a_checkpoint_holds_adapters_and_goes_on(release: Path) -> None:
    made = task(release)
    batch = tiny_batch(made, training=True)
    train(made, batch, 3)
    checkpoint: dict[str, Any] = {"state_dict": made.state_dict(), "global_step": 3}
    made.on_save_checkpoint(checkpoint)
    saved = checkpoint["state_dict"]
    assert all(".lora_" in name for name in saved if made.part_of(name) == "decoder") and saved
    again = task(release)
    assert again.loss(batch) != made.loss(batch)  # the control
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(saved)
    assert torch.equal(again.loss(batch), made.loss(batch))


@pytest.mark.slow
def test_a_run_is_resumed_tested_and_exported(run: Run, tmp_path: Path) -> None:
    export_model(SpatialVLM(TinyQwen25VL()), tmp_path / "released")
    words = [
        *("--config", "qwen25_vl.yaml", "--model.backbone", "PretrainedQwen25VL", "--model.lora.quantization", "nf4"),
        *("--model.backbone.path", str(tmp_path / "released"), "--trainer.limit_val_batches", "0"),
        *("--checkpoint.every_n_train_steps", "1"),
    ]
    run("fit", *words, "--trainer.max_steps", "4", "--trainer.default_root_dir", "whole")
    run("fit", *words, "--trainer.max_steps", "2", "--trainer.default_root_dir", "parts")
    run("fit", "--trainer.max_steps", "4", "--trainer.default_root_dir", "parts", "--ckpt_path", "last", *words)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not any(".base_layer." in name for name in whole) and any(".lora_" in name for name in whole)
    run("test", "--trainer.default_root_dir", "whole")
    exporting = ("export", "--ckpt_path", "whole/checkpoints/last.ckpt", "--layout", "official", "--out")
    with pytest.raises(SystemExit, match="export with --model.lora.quantization null"):
        run(*exporting, "refused", sized=False)
    run(*exporting, "merged", "--model.lora.quantization", "null", sized=False)
    merged = SpatialVLM(PretrainedQwen25VL(str(tmp_path / "merged")))
    before = dict(SpatialVLM(PretrainedQwen25VL(str(tmp_path / "released"))).named_parameters())
    moved = [name for name, each in merged.named_parameters() if not torch.equal(each, before[name])]
    assert any("q_proj" in name for name in moved)


# ---- Errors


def test_what_four_bits_cannot_do_is_an_error(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--model.lora.quantization is for released weights"):
        SpatialVLM(TinyQwen25VL(**TINY), lora=QLORA)
    with pytest.raises(InputError, match="fsdp2 does not shard weights in four bits"):
        FSDP2Strategy().connect(task(release))
    FSDP2Strategy().connect(task(release, LoRA(r=4)))  # the control
    quantized = SpatialVLM(PretrainedQwen25VL(str(release)), lora=QLORA)
    with pytest.raises(InputError, match="export with --model.lora.quantization null"):
        export_model(quantized, tmp_path / "out")
    monkeypatch.setattr("zoo.backbones.lora.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"quantization nf4 needs bitsandbytes.*spatial-vlm-zoo\[qlora\]"):
        LoRA(quantization="nf4")
    LoRA()


@pytest.mark.slow
def test_a_plan_does_not_offer_shards(run: Run) -> None:
    words = ("plan", "--config", "qwen25_vl.yaml", "--config", "scale_7b.yaml", "--gpus", "2", "--memory_gb", "24")
    plain, quantized = run(*words, sized=False), run(*words, "--model.lora.quantization", "nf4", sized=False)
    assert "fsdp2" in plain and "fsdp2" not in quantized
