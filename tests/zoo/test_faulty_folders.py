"""Faulty released folders: each fault is an error of one line that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.zoo.released import SIZES, read_release, released_model, tiny_release, write_release
from zoo import InputError, PretrainedQwen25VL, TinyQwen25VL
from zoo.checkpoints import PretrainedSpatialMLLM, export_model
from zoo.model import SpatialVLM
from zoo.weights import open_weights

NORM, HEAD = "model.norm.weight", "lm_head.weight"


pytestmark = pytest.mark.usefixtures("tiny_dino")


@pytest.fixture(scope="module")
def exported_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `qwen` copies."""
    folder = tmp_path_factory.mktemp("exported") / "qwen"
    export_model(SpatialVLM(backbone=TinyQwen25VL(**SIZES)), folder)
    return folder


@pytest.fixture
def qwen(tmp_path: Path, exported_qwen: Path) -> Path:
    """A Qwen2.5-VL in one file."""
    return shutil.copytree(exported_qwen, tmp_path / "qwen")


def said(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def with_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


# ---- files that are absent or torn --------------------------------------------------------------------------------


def test_folders_that_wont_do(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, remedy in (
        ("weights/nowhere", "hf download <hub id, such as .*> --local-dir weights/nowhere"),
        ("no/such", "hf download no/such --local-dir weights/such"),
        ("no/such/id", r"hf download no/such --include 'id/[*]' --local-dir weights` .*path weights/id"),
    ):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(InputError, match=remedy) as error:
            PretrainedSpatialMLLM(path).load()
        assert "\n" not in str(error.value)
    shard, index = release / "model-00002-of-00003.safetensors", release / "model.safetensors.index.json"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors can't be read as safetensors"):
        released_model(release)
    shard.unlink()
    with pytest.raises(InputError, match="lacks model-00002-of-00003.safetensors"):
        released_model(release)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(InputError, match="lacks ../elsewhere"):
        released_model(release)
    index.unlink()
    (release / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match="only safetensors are read"):
        released_model(release)
    (release / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json can't be read"):
        released_model(release)


def test_an_index_and_a_shard_that_differ_are_an_error(release: Path) -> None:
    shard, index = release / "model-00002-of-00003.safetensors", release / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["absent"] = shard.name
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{shard} and its index differ in 1 tensors: absent; download both again"):
        open_weights(release)["absent"]
    save_file(load_file(shard) | {"another": torch.ones(2)}, shard)
    with pytest.raises(InputError, match=f"{shard} and its index differ in 2 tensors: absent, another; download"):
        released_model(release)


# ---- weights ------------------------------------------------------------------------------------------------------


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(NORM), f"1 missing: {NORM}"),
    "unexpected": (lambda t: t.update(other=torch.ones(2)), "1 unexpected: other"),
    "misshapen": (lambda t: t.update({NORM: torch.ones(3)}), rf"1 misshapen: {NORM} \[3\] instead of \[64\]"),
    "quantized": (
        lambda t: t.update({NORM: torch.ones(64, dtype=torch.int8)}),
        f"1 no floating-point numbers: {NORM} torch.int8",
    ),
    "twice": (
        lambda t: t.update({"model.language_model.norm.weight": torch.ones(64)}),
        "1 under two names: model",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_qwen_folder_whose_weights_dont_fit_is_refused(qwen: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    tensors = load_file(qwen / "model.safetensors")
    spoil(tensors)
    save_file(tensors, qwen / "model.safetensors")
    with pytest.raises(InputError, match=f"this Qwen2.5-VL: {message}") as error:
        PretrainedQwen25VL(str(qwen)).load()
    assert said(error).endswith(f"check the config and {qwen / 'model.safetensors'}")


def test_the_names_in_an_error_are_those_in_the_file(release: Path) -> None:
    config, tensors = tiny_release()
    for gone in ("connector.mlp.0.weight", "spatial_encoder.vggt_model.aggregator.camera_token"):
        write_release(release, config, {name: tensor for name, tensor in tensors.items() if name != gone})
        with pytest.raises(InputError, match=f"1 missing: {gone}; check the config and {release}$"):
            released_model(release)


def test_a_spatial_mllm_is_not_read_as_a_qwen(release: Path) -> None:
    for model_type in ("spatial-mllm", "qwen2_5_vl"):
        with_config(release, model_type=model_type)
        with pytest.raises(InputError, match="is a Spatial-MLLM: take --model.backbone PretrainedSpatialMLLM"):
            PretrainedQwen25VL(str(release)).load()


def test_a_head_that_is_tied_and_there_all_the_same(release: Path, tmp_path: Path) -> None:
    config, tensors = tiny_release()
    assert config["tie_word_embeddings"]
    both = tensors | {HEAD: tensors["model.embed_tokens.weight"].clone()}
    write_release(release, config, both)
    export_model(released_model(release), tmp_path / "out")
    written = read_release(tmp_path / "out")
    assert written.keys() == both.keys() and torch.equal(written[HEAD], both[HEAD])
    write_release(release, config, both | {HEAD: both[HEAD] + 1})
    with pytest.warns(UserWarning, match="differs from them: it is not read"):
        model = released_model(release)
    assert torch.equal(model.backbone.vlm.lm_head.weight, tensors["model.embed_tokens.weight"])
    write_release(release, config, both | {HEAD: torch.ones(2, 2)})
    with pytest.raises(InputError, match=r"lm_head.weight \[2, 2\] is tied to embeddings of"):
        released_model(release)


def test_a_release_without_a_camera_head_names_the_remedy(release: Path) -> None:
    config, tensors = tiny_release()
    write_release(release, config, {name: t for name, t in tensors.items() if "camera_head" not in name})
    with pytest.raises(InputError, match=r"release: no camera head \(spatial.*\.\*\): .*--model.camera_source dataset"):
        released_model(release).geometry.enable_head("camera")


# ---- index, config, processor -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": null}', '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_an_index_of_another_form(release: Path, index: str) -> None:
    (release / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match="model.safetensors.index.json can't be read .*download it again") as error:
        released_model(release)
    said(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"vggt_aggregator": {"heads": 3}},
        {"vggt_aggregator": {"patch_embed": "conv", "num_heads": 5}},
        {"vocab_size": 100},
        {"num_attention_heads": 3},
        {"vision_config": "large"},
        {"connector_config": {"spatial_embeds_layer_idx": 30}},
    ],
)
def test_a_config_that_makes_no_sense(release: Path, changes: dict[str, Any]) -> None:
    with_config(release, **changes)
    with pytest.raises(InputError, match="release/config.json|check the config and .*release$") as error:
        released_model(release)
    assert "--model.geometry.layers" not in said(error)


def test_a_config_that_is_a_list(release: Path) -> None:
    (release / "config.json").write_text("[]")
    with pytest.raises(InputError, match="config.json can't be read .a list instead of settings"):
        released_model(release)


@pytest.mark.parametrize("backbone", [PretrainedQwen25VL, PretrainedSpatialMLLM])
def test_a_folder_without_its_processor(qwen: Path, release: Path, backbone: type) -> None:
    folder = qwen if backbone is PretrainedQwen25VL else release
    for file, message in (("preprocessor_config.json", "no whole processor"), ("tokenizer.json", "no tokenizer.json")):
        (folder / "processor_config.json").unlink(missing_ok=True)
        (folder / file).unlink(missing_ok=True)
        with pytest.raises(InputError, match=f"{folder} has {message}.*: download it again") as error:
            backbone(str(folder)).load()
        said(error)


# ---- export -------------------------------------------------------------------------------------------------------


def test_an_export_that_is_broken_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = SpatialVLM(backbone=TinyQwen25VL(**SIZES)), tmp_path / "out"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/out can't be written"):
        export_model(model, tmp_path / "file/out")
    for fault, raised in ((OSError("No space left on device"), InputError), (KeyboardInterrupt(), KeyboardInterrupt)):

        def full(*_: Any, fault: BaseException = fault) -> None:
            raise fault

        monkeypatch.setattr("zoo.files.atomic_io.replace_file", full)
        with pytest.raises(raised, match="out can't be written" if raised is InputError else None):
            export_model(model, out)
        assert not out.exists()
    monkeypatch.undo()
    export_model(model, out)
    assert (out / "model.safetensors").exists()


def test_a_source_that_is_gone_is_named(release: Path, tmp_path: Path) -> None:
    model = released_model(release)
    release.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="release is no folder"):
        export_model(model, tmp_path / "out")
