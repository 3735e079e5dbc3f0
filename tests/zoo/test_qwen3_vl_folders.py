"""Qwen3-VL's released folders: every tensor in and out, and folders that are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.zoo.showing import SAMPLES, batch, logits
from zoo import (
    InputError,
    PretrainedGeoVR,
    PretrainedQwen3VL,
    PretrainedQwen25VL,
    SpatialVLM,
    TinyQwen3VL,
    TinyQwen25VL,
)
from zoo.checkpoints import export_model, load_qwen3_vl, official_tensors
from zoo.sequences.layout import ExtraTokens
from zoo.weights.load import read_config

MANIFESTS = Path(__file__).parents[1] / "golden/manifests"
SIZES = dict(layers=1, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export_model(SpatialVLM(TinyQwen3VL(**SIZES)), tmp_path / "out")
    return tmp_path / "out"


def with_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(read_config(folder) | changes))


@pytest.mark.parametrize("size", ["2b", *(pytest.param(each, marks=pytest.mark.slow) for each in ("4b", "8b"))])
def test_every_tensor_of_a_released_model_has_its_place(size: str) -> None:
    """By manifests of the stock model; the head of 2B and 4B is tied, and may be there all the same."""
    manifest = json.loads((MANIFESTS / f"qwen3_vl_{size}.json").read_text())
    with torch.device("meta"):
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in manifest["tensors"].items()}
        model = load_qwen3_vl(manifest["config"], tensors)  # raises for anything missing, unexpected or misshapen
        written = official_tensors(model)
        assert {name: t.shape for name, t in written.items()} == {name: t.shape for name, t in tensors.items()}
        tied = {"lm_head.weight": tensors["model.language_model.embed_tokens.weight"]}
        assert bool(manifest["tied_not_stored"]) == (size != "8b")
        load_qwen3_vl(manifest["config"], tensors | tied)
        del tensors["model.visual.deepstack_merger_list.1.norm.weight"]
        with pytest.raises(InputError, match="this Qwen3-VL: 1 missing: model.visual.deepstack_merger_list.1.norm"):
            load_qwen3_vl(manifest["config"], tensors)


def test_a_folder_goes_out_and_comes_back(folder: Path, tmp_path: Path) -> None:
    """Into the stock model, and into ours, by path and by `from_pretrained`; exported again it is the same."""
    model = SpatialVLM(TinyQwen3VL(**SIZES))
    stock, report = Qwen3VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(stock.parameters(), model.backbone.vlm.parameters(), strict=True))
    given = batch(model, [SAMPLES["stills and videos"]])
    expected = logits(model, given)[0]
    found = SpatialVLM(PretrainedQwen3VL(str(folder), dtype="float32"))
    assert torch.equal(logits(found, given)[0], expected)
    assert found.backbone.stop_tokens == model.backbone.stop_tokens
    from_config = load_qwen3_vl(
        Qwen3VLConfig.from_pretrained(folder).to_dict(), load_file(folder / "model.safetensors")
    )
    assert torch.equal(logits(from_config, given)[0], expected)
    again = SpatialVLM.from_pretrained(folder)
    assert isinstance(again.loader, PretrainedQwen3VL) and again.is_pretrained
    export_model(found, tmp_path / "twice")
    for path in (path for path in folder.iterdir() if path.name != "README.md"):  # whose title is the folder's name
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes(), path.name
    text = read_config(folder)["text_config"]  # as transformers 4.57 reads it
    assert text["rope_theta"] == 5e6 and text["rope_scaling"]["mrope_section"] == [8, 4, 4]


def test_a_geovr_is_read_past_what_its_training_needs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = load_file(folder / "model.safetensors")
    names = ("model.camera_token.weight", "dpt_head.norm.weight", "geometry_encoder.vggt.x")
    heads = {name: torch.ones(2, 3) for name in names}
    release = tmp_path / "hub/GeoVR-VGGT-Qwen3-VL-2B"
    shutil.copytree(folder, release)
    save_file(stock | heads, release / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="is a GeoVR: take --model.backbone PretrainedGeoVR"):
        PretrainedQwen3VL(str(release)).load()
    asked: list[Any] = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns[0]))
        return str(tmp_path / "hub")

    monkeypatch.setattr("zoo.weights.load.snapshot_download", download)
    model = SpatialVLM(PretrainedGeoVR(dtype="float32"))  # a folder of a hub repository
    assert {*asked} == {("WHB139426/GeoVR", "GeoVR-VGGT-Qwen3-VL-2B/*.json")}
    given = batch(model, [SAMPLES["stills and videos"]])
    plain = SpatialVLM(PretrainedQwen3VL(str(folder), dtype="float32"))
    assert torch.equal(logits(model, given)[0], logits(plain, given)[0])  # nothing is left of the training
    export_model(model, tmp_path / "again")
    assert load_file(tmp_path / "again/model.safetensors").keys() == stock.keys()
    assert isinstance(SpatialVLM.from_pretrained(release).loader, PretrainedGeoVR)
    save_file({"an_unknown_head.weight": torch.ones(2), **stock}, release / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="1 unexpected: an_unknown_head.weight"):
        PretrainedGeoVR(str(release)).load()


@pytest.mark.slow
def test_a_fresh_process_finds_the_loaders(folder: Path) -> None:
    """Where nothing has imported them yet."""
    code = f"from zoo import SpatialVLM; print(type(SpatialVLM.from_pretrained({str(folder)!r}).loader).__name__)"
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert found.stdout.strip() == "PretrainedQwen3VL"


def test_the_released_settings_of_4b(realdata: Path, tmp_path: Path) -> None:
    """Config, tokenizer, processor and stop tokens of the release; on the meta device no weights are read."""
    own, shared = realdata / "qwen3-vl", realdata / "qwen2.5-vl"  # the words of the tokenizer are the same
    for file in (*own.glob("*.json"), shared / "vocab.json", shared / "merges.txt"):
        shutil.copyfile(file, tmp_path / file.name)
    with torch.device("meta"):
        backbone = PretrainedQwen3VL(str(tmp_path)).load()
    config = read_config(tmp_path)
    assert backbone.stop_tokens == [151645, 151643]
    ids = tuple(config[f"{name}_token_id"] for name in ("video", "image", "vision_start"))
    assert backbone.placeholders == (*ids, True)
    head = backbone.decoder_layout.head
    assert head.dim == 128 and [len(head.frequencies(axis)) for axis in range(3)] == [24, 20, 20]
    preprocessor = backbone.preprocessor
    frames = torch.zeros(2, 3, 32, 64, dtype=torch.uint8)
    patches = preprocessor.normalize(preprocessor.cut_patches(frames)[0])
    assert patches.unique().tolist() == [-1.0]  # mean and deviation of 0.5
    (text,) = preprocessor.texts([{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "How?"}]}])
    ids = preprocessor.tokenize([text], [(1, 2, 4)], ExtraTokens.NONE, [1.0, 2.0]).input_ids
    assert preprocessor.processor.tokenizer.decode(ids) == (
        "<|im_start|>user\n<1.5 seconds><|vision_start|><|video_pad|><|video_pad|><|vision_end|>How?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_folders_of_other_kinds_are_refused(folder: Path, tmp_path: Path) -> None:
    export_model(SpatialVLM(TinyQwen25VL(**SIZES)), tmp_path / "qwen25")
    for load, message in (
        (lambda: PretrainedQwen3VL(str(tmp_path / "qwen25")).load(), "is a Qwen2.5-VL: take .* PretrainedQwen25VL"),
        (lambda: PretrainedQwen25VL(str(folder)).load(), "is a Qwen3-VL: take --model.backbone PretrainedQwen3VL"),
    ):
        with pytest.raises(InputError, match=message):
            load()
    for changes, message in (
        ({"model_type": "qwen3_vl_moe"}, "out is a Qwen3-VL-MoE, which is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, "out is quantized"),
        ({"text_config": "large"}, "out/config.json makes no sense"),
    ):
        before = read_config(folder)
        with_config(folder, **changes)
        for load in (lambda: PretrainedQwen3VL(str(folder)).load(), lambda: SpatialVLM.from_pretrained(folder)):
            with pytest.raises(InputError, match=message) as error:
                load()
            assert "\n" not in str(error.value)
        with_config(folder, **before, quantization_config=None)
        content = read_config(folder)
        del content["quantization_config"]
        (folder / "config.json").write_text(json.dumps(content))
    PretrainedQwen3VL(str(folder)).load()  # the control


@pytest.mark.parametrize("sections", [[8, 4, 3], [4, 6, 6], [16, 0], [4, 4, 4, 4]])
def test_sections_that_dont_add_up_are_refused(folder: Path, sections: list[int]) -> None:
    """Of 16 frequencies, h and w can take every third one: 5 of them at most."""
    text = read_config(folder)["text_config"]
    with_config(folder, text_config=text | {"rope_scaling": text["rope_scaling"] | {"mrope_section": sections}})
    with pytest.raises(InputError, match="out/config.json: mrope_section .* the 16 frequencies"):
        PretrainedQwen3VL(str(folder)).load()


def test_quantized_weights_are_refused_without_a_word_in_the_config(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.language_model.norm.weight"
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=f"this Qwen3-VL: 1 no floating-point numbers: {name} torch.float8_e4m3fn"):
        PretrainedQwen3VL(str(folder)).load()
