"""Qwen3.5: equal to the stock model and to the golden case of its plain form; released names, folders, prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from tests.golden.weights_qwen35 import init35_
from tests.zoo import showing
from tests.zoo.released import GOLDEN, loss_of
from tests.zoo.showing import SAMPLES
from tests.zoo.stock import SHOWN, compare_with_stock, greedy_as_stock
from zoo import InputError, LoRA, PretrainedQwen3VL, PretrainedQwen35, SpatialVLM, TinyQwen3VL, TinyQwen35
from zoo.backbones.qwen3_5 import Qwen35Preprocessor, tiny_preprocessor, tiny_processor
from zoo.backbones.qwen_vl import QwenVLPreprocessor
from zoo.checkpoints import export_model, load_qwen3_5, official_tensors
from zoo.sequences.layout import ExtraTokens
from zoo.weights.load import read_config

MANIFESTS = Path(__file__).parents[1] / "golden/manifests"
SIZES = dict(layers=4, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)


def tiny(**options: Any) -> TinyQwen35:
    """Three layers of Gated DeltaNet and one of full attention."""
    return TinyQwen35(**SIZES | options)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("samples", [("a video",), (*SHOWN, "text")], ids=", ".join)
def test_logits_and_gradients_are_the_stock_models(samples: tuple[str, ...], attention: str) -> None:
    """Left-padded, with videos, pictures, and both."""
    ours, gradients = compare_with_stock(tiny(attn_implementation=attention), samples, atol=5e-6)
    assert {"linear_attn.A_log", "self_attn.q_proj.weight"} <= {name.split(".", 4)[-1] for name in gradients}
    for name, parameter in ours.backbone.vlm.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients.get(name), rtol=1e-4, atol=1e-6, msg=name)


def test_greedy_answers_are_the_stock_models() -> None:
    assert len(greedy_as_stock(tiny(), (*SHOWN, "text"))) > 3


def test_the_golden_case_of_transformers_5_3() -> None:
    """Its torch kernels loop where those of 5.24 solve a triangular system."""
    path = GOLDEN / "spatial_stack/qwen3_5/geometry_off"
    meta, t = json.loads(path.with_suffix(".json").read_text()), load_file(path.with_suffix(".safetensors"))
    weights = {name: init35_(name, torch.empty(shape)) for name, shape in meta["param_names"].items()}
    model = load_qwen3_5(meta["config"]["qwen"], weights)
    patches = (t["pixel_values_u8"].float() / 255 - 0.5) / 0.5
    given = {
        "pixel_values": patches[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1),
        "image_grid_thw": t["image_grid_thw"],
    }
    logits = model.logits(t["input_ids"], t["attention_mask"], **given)
    torch.testing.assert_close(logits, t["out_logits"], rtol=0, atol=2e-4)
    assert abs(loss_of(logits, t["labels"]).item() - meta["loss"]) < 1e-4
    answers = model.generate_ids(t["input_ids"], t["attention_mask"], **given, max_new_tokens=8)
    assert answers == t["out_generated"].tolist()


@pytest.mark.parametrize(
    "size", ["4b", *(pytest.param(each, marks=pytest.mark.slow) for each in ("0.8b", "2b", "9b", "27b"))]
)
def test_every_tensor_of_a_released_model_has_its_place(size: str) -> None:
    """By manifests of the stock model; the tensors of the prediction of several tokens are not read."""
    manifest = json.loads((MANIFESTS / f"qwen3_5_{size}.json").read_text())
    with torch.device("meta"):
        every = manifest["tensors"] | manifest["mtp_not_loaded"]
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in every.items()}
        model = load_qwen3_5(manifest["config"], tensors)  # raises for anything missing, unexpected or misshapen
        written = {name: list(tensor.shape) for name, tensor in official_tensors(model).items()}
        assert written == manifest["tensors"]
        by_its_name = PretrainedQwen35(f"Qwen/Qwen3.5-{size.upper()}").load()  # of a plan, without a download
        assert sum(p.numel() for p in by_its_name.vlm.parameters()) == manifest["num_parameters"]
        # the end of a text by the config, and of a turn, which the tokenizer has and neither of them
        assert model.backbone.stop_tokens == by_its_name.stop_tokens == [248044, 248046]
        del tensors["model.language_model.layers.0.linear_attn.A_log"]
        with pytest.raises(InputError, match="this Qwen3.5: 1 missing: model.language_model.layers.0.linear_attn.A"):
            load_qwen3_5(manifest["config"], tensors)
    head = model.backbone.head_layout
    assert head.dim == 256 and [len(head.frequencies(axis)) for axis in range(3)] == [11, 11, 10]
    assert head.pairs(head.frequencies(1)) == [*range(1, 32, 3), *range(33, 64, 3)]


def test_a_folder_goes_out_and_comes_back(tmp_path: Path) -> None:
    """Into the stock model, and into ours, by path and by `from_pretrained`; exported again it is the same."""
    model, folder = SpatialVLM(tiny()), tmp_path / "out"
    export_model(model, folder)
    tensors = load_file(folder / "model.safetensors") | {"mtp.norm.weight": torch.ones(64)}  # as a release holds
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stock, report = Qwen3_5ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(stock.parameters(), model.backbone.vlm.parameters(), strict=True))
    given = showing.batch(model, [SAMPLES["stills and videos"]])
    expected = showing.logits(model, given)[0]
    found = SpatialVLM(PretrainedQwen35(str(folder), dtype="float32"))
    assert torch.equal(showing.logits(found, given)[0], expected)
    from_config = load_qwen3_5(Qwen3_5Config.from_pretrained(folder).to_dict(), tensors)
    assert torch.equal(showing.logits(from_config, given)[0], expected)
    assert isinstance(SpatialVLM.from_pretrained(folder).loader, PretrainedQwen35)
    export_model(found, tmp_path / "twice")
    assert load_file(tmp_path / "twice/model.safetensors").keys() == tensors.keys()
    for path in folder.glob("*.json"):
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes(), path.name


def test_adapters_of_both_kinds_of_layers_are_merged_into_the_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SpatialVLM(tiny(), lora=LoRA(r=2))
    given = showing.batch(model, [SAMPLES["a video"]])
    before = showing.logits(model, given)[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.03)
    export_model(model, tmp_path)
    found = SpatialVLM(PretrainedQwen35(str(tmp_path), dtype="float32"))
    torch.testing.assert_close(showing.logits(found, given)[0], showing.logits(model, given)[0], rtol=0, atol=1e-4)
    assert (showing.logits(found, given)[0] - before).abs().max() > 1e-3  # the control


def test_folders_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for name, loader in (("qwen3", TinyQwen3VL(**SIZES | {"layers": 1})), ("qwen35", tiny(layers=1))):
        export_model(SpatialVLM(loader), tmp_path / name)
    config = tmp_path / "qwen35/config.json"
    for load, message in (
        (lambda: PretrainedQwen35(str(tmp_path / "qwen3")).load(), "is a Qwen3-VL: take .* PretrainedQwen3VL"),
        (lambda: PretrainedQwen3VL(str(tmp_path / "qwen35")).load(), "is a Qwen3.5: take .* PretrainedQwen35"),
    ):
        with pytest.raises(InputError, match=message):
            load()
    before = read_config(config.parent)
    rope = before["text_config"]["rope_parameters"] | {"mrope_section": [6, 6, 4]}
    for changes, message in (
        ({"model_type": "qwen3_5_moe"}, "is a Qwen3.5-MoE, which is not supported"),
        ({"text_config": before["text_config"] | {"rope_parameters": rope}}, "mrope_section .* the 16 frequencies"),
    ):
        config.write_text(json.dumps(before | changes))
        with pytest.raises(InputError, match=message):
            SpatialVLM.from_pretrained(config.parent)


def test_prompts_and_training_texts_have_an_empty_block_of_thoughts() -> None:
    """As SpatialStack trains, whose text is golden; an answer ends with the turn."""
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is left of the sofa? "}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "A lamp."},
        {"role": "user", "content": "And right of it?"},
        {"role": "assistant", "content": "B. table"},
    ]
    ours, image = tiny_preprocessor(), "<|vision_start|><|image_pad|><|vision_end|>"
    texts = ours.texts(messages)
    assert texts == [
        f"<|im_start|>user\n{image * 2}What is left of the sofa?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n",
        "A lamp.<|im_end|>\n",
        "<|im_start|>user\nAnd right of it?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "B. table<|im_end|>\n",
    ]
    messages[1] = {"role": "assistant", "content": "\n<think>\nThe lamp?\n</think>\n\nA lamp. \n"}
    assert ours.texts(messages) == [texts[0], "<think>\nThe lamp?\n</think>\n\nA lamp.<|im_end|>\n", *texts[2:]]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="writes earlier turns of a chat"):
        patch.setattr(Qwen35Preprocessor, "history", QwenVLPreprocessor.history)
        ours.texts(messages)
    prompt = ours.tokenize(texts[:1], [(1, 2, 4), (1, 2, 2)], ExtraTokens.NONE).input_ids.tolist()
    assert prompt.count(tiny_processor().image_token_id) == 3
    with pytest.raises(InputError, match="^Qwen3.5 writes the time"):
        ours.tokenize([texts[0].replace("image", "video")], [(1, 2, 4), (1, 2, 2)], ExtraTokens.NONE)


def test_answers_stop_at_the_end_of_a_text_and_of_a_turn() -> None:
    loader = tiny()
    loader.config.text_config.eos_token_id = 0  # as released: the end of a text
    assert loader.load().stop_tokens == [0, tiny_processor().tokenizer.eos_token_id]
    model = SpatialVLM(loader)
    config, tensors = loader.config.to_dict(), official_tensors(model)
    assert load_qwen3_5(config, tensors).backbone.stop_tokens == [0]  # the control: of another vocabulary
