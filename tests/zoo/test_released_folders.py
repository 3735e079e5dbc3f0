"""Released folders: read shard by shard, and exported bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.zoo.released import (
    SIZES,
    load_case,
    media,
    official_weights,
    read_release,
    released_model,
    spatial_mllm,
    tiny_release,
    write_release,
)
from tests.zoo.showing import SAMPLES, batch, logits
from zoo import (
    AddFusion,
    CameraTokenFusion,
    ConcatSplitFusion,
    DatasetGeometry,
    Fusion,
    GeometryCache,
    InputError,
    LoRA,
    PatchMergerFusion,
    PoseDistanceIndex,
    PretrainedQwen25VL,
    StackFusion,
    TinyQwen25VL,
    TinyVGGT,
)
from zoo.checkpoints import PretrainedSpatialMLLM, export_model, load_spatial_mllm, unofficial_parts
from zoo.model import SpatialVLM
from zoo.weights import open_weights
from zoo.weights.load import read_config

pytestmark = pytest.mark.usefixtures("tiny_dino")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_a_released_folder_equals_its_tensors_in_memory(release: Path) -> None:
    config, official = tiny_release()
    inside, outside = load_spatial_mllm(config, official), released_model(release)
    streamed = load_spatial_mllm(read_config(release), open_weights(release))
    for model in (outside, streamed):
        assert all(torch.equal(a, b) for a, b in zip(inside.parameters(), model.parameters(), strict=True))
    assert outside.geometry.layers == (-2,) and outside.is_pretrained
    assert outside.backbone.preprocessor.processor.tokenizer("How many")["input_ids"]
    whole = released_model(release, dtype="float32")
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    geometry = released_model(release).geometry
    assert geometry.vggt.camera_head is None
    geometry.enable_head("camera")
    with_cameras = geometry.vggt.camera_head
    name = "spatial_encoder.vggt_model.camera_head.pose_branch.fc1.weight"
    assert torch.equal(with_cameras.pose_branch.fc1.weight, official[name].float())
    baseline = SpatialVLM(backbone=PretrainedSpatialMLLM(str(release)))
    assert torch.equal(baseline.backbone.vlm.lm_head.weight, inside.backbone.vlm.lm_head.weight)


def test_switches_of_the_fusion_need_no_retraining(release: Path) -> None:
    config, official = tiny_release()
    given = batch(load_spatial_mllm(config, official), [SAMPLES["a video"]])

    def of(**switches: str) -> Tensor:
        fusion = partial(AddFusion, **switches)
        backbone = PretrainedSpatialMLLM(str(release), dtype="float32")
        model = spatial_mllm(backbone=backbone, geometry=TinyVGGT, fusion=fusion)
        assert model.is_pretrained
        return logits(model, given)[0]

    official_way, flat, deep = of(), of(active_branches="2d"), of(active_branches="3d")
    baseline = SpatialVLM(backbone=PretrainedSpatialMLLM(str(release), dtype="float32"))
    without = {name: value for name, value in given.items() if name != "frames"}
    assert torch.equal(flat, logits(baseline, without)[0])  # the 2D branch is the Qwen2.5-VL in it
    for other in (flat, deep, of(temporal_merge="mean"), of(temporal_merge="first")):
        assert not torch.allclose(other, official_way, atol=1e-3)
    expected = logits(load_spatial_mllm(config, {name: t.float() for name, t in official.items()}), given)[0]
    assert torch.equal(official_way, expected)


def test_a_hub_id_is_downloaded_without_pickle_and_code(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked[repository] = allow_patterns
        return str(release)

    monkeypatch.setattr("zoo.weights.load.snapshot_download", download)
    PretrainedSpatialMLLM().load()
    assert asked == {"Diankun/Spatial-MLLM-v1.1-Instruct-135K": ["*.json", "*.safetensors", "*.txt", "*.jinja"]}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_round_trip_is_bit_exact(release: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards = partial(save_torch_state_dict, max_shard_size=500_000)
    monkeypatch.setattr("zoo.checkpoints.export.save_torch_state_dict", small_shards)
    export_model(released_model(release, dtype=dtype), tmp_path / "out")
    assert same(read_release(tmp_path / "out"), tiny_release()[1])  # VGGT's heads and its tracker too
    for path in release.glob("*"):
        if path.suffix != ".safetensors" and "index" not in path.name:
            ours, theirs = (tmp_path / "out" / path.name).read_text(), path.read_text()
            assert json.loads(ours) == json.loads(theirs) if path.name == "config.json" else ours == theirs
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tiny_release()[1].values())
    again = released_model(tmp_path / "out")
    assert torch.equal(again.fusion.connector.mlp[0].weight, released_model(release).fusion.connector.mlp[0].weight)


def test_what_was_learned_is_written(release: Path, tmp_path: Path) -> None:
    model = released_model(release, dtype="float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    export_model(model, tmp_path / "out", torch.float32)
    written, before = read_release(tmp_path / "out"), tiny_release()[1]
    assert written.keys() == before.keys()
    for name, tensor in written.items():
        used = "camera_head" not in name and "track_head" not in name
        assert torch.equal(tensor, before[name].float() + used), name
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float32"
    assert (tmp_path / "out/model.safetensors").exists()  # one file needs no index


def tiny_qwen() -> SpatialVLM:
    return SpatialVLM(backbone=TinyQwen25VL(**SIZES))


def test_a_random_qwen_becomes_a_folder_that_transformers_reads(tmp_path: Path) -> None:
    model = tiny_qwen()
    export_model(model, tmp_path / "out")
    stock, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(stock.parameters(), model.backbone.vlm.parameters(), strict=True))
    assert not any(name.startswith(("model.visual", "model.language_model")) for name in read_release(tmp_path / "out"))
    again = SpatialVLM(backbone=PretrainedQwen25VL(str(tmp_path / "out"), dtype="float32"))
    text = again.backbone.preprocessor.processor.tokenizer("How many chair(s) are in this room?", return_tensors="pt")
    ids, mask = text["input_ids"], text["attention_mask"]
    assert torch.equal(again.logits(ids, mask), model.logits(ids, mask))
    assert again.backbone.preprocessor.processor.apply_chat_template([{"role": "user", "content": "Hi"}]).startswith(
        "<|im_start|>system"
    )
    for part in ("text_config", "vision_config"):
        models = (model.backbone.vlm, again.backbone.vlm, stock)
        before, read, by_transformers = (getattr(each.config, part).to_dict() | {"dtype": None} for each in models)
        assert read == by_transformers
        assert all(read[key] == before[key] for key in read.keys() & before.keys() - {"rope_parameters"})
    assert stock.config.text_config.rope_parameters["mrope_section"] == [4, 6, 6]
    export_model(again, tmp_path / "twice")
    assert same(read_release(tmp_path / "twice"), read_release(tmp_path / "out"))
    files = [{path.name: path.read_text() for path in (tmp_path / name).glob("*.j*")} for name in ("out", "twice")]
    assert files[0] == files[1]


def test_lora_is_merged_and_the_model_stays(tmp_path: Path) -> None:
    meta, t = load_case("one_video")
    official = official_weights(meta["config"], True)
    model = load_spatial_mllm(meta["config"], official)
    LoRA(r=4).apply(model.backbone.decoder, model.backbone.lora_targets)
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    for i, parameter in enumerate(adapters):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
    given = (t["input_ids"], t["attention_mask"]), media(t, meta)
    with torch.no_grad():
        adapted = model.logits(*given[0], **given[1])
        export_model(model, tmp_path / "out")
        merged = load_spatial_mllm(
            json.loads((tmp_path / "out/config.json").read_text()), read_release(tmp_path / "out")
        )
        assert torch.allclose(merged.logits(*given[0], **given[1]), adapted, atol=2e-5)
        assert torch.equal(model.logits(*given[0], **given[1]), adapted)
        assert (load_spatial_mllm(meta["config"], official).logits(*given[0], **given[1]) - adapted).abs().max() > 0.05
    assert read_release(tmp_path / "out").keys() == official.keys()


@pytest.mark.parametrize("fusion", [ConcatSplitFusion, CameraTokenFusion])
def test_what_has_no_official_layout_is_not_exported(tmp_path: Path, fusion: type[Fusion]) -> None:
    model = spatial_mllm(fusion, backbone=TinyQwen25VL(**SIZES), geometry=partial(TinyVGGT, embed_dim=32, num_heads=2))
    with pytest.raises(InputError, match="can't be exported, .* with AddFusion .*such as fusion"):
        export_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("")
    with pytest.raises(InputError, match="taken is there already and not empty"):
        export_model(tiny_qwen(), tmp_path / "taken")


class AnotherEncoder(DatasetGeometry):
    """A geometry encoder with 3D tokens that is no VGGT."""

    width = 8


def test_other_geometry_than_a_fused_vggt_has_no_official_layout(tmp_path: Path) -> None:
    backbone, vggt = TinyQwen25VL(**SIZES), partial(TinyVGGT, embed_dim=32, num_heads=2)
    cached = SpatialVLM(backbone, vggt, GeometryCache(str(tmp_path / "cache")), AddFusion)
    assert unofficial_parts(cached) == unofficial_parts(SpatialVLM(backbone, vggt, fusion=AddFusion)) == []
    assert unofficial_parts(SpatialVLM(backbone, AnotherEncoder, fusion=AddFusion)) == ["AnotherEncoder"]
    two = partial(vggt, layers=(0, -1))
    assert unofficial_parts(SpatialVLM(backbone, two, fusion=AddFusion)) == ["geometry of 2 layers"]
    merger = partial(PatchMergerFusion, hidden=16)
    before_last = partial(vggt, layers=(-2,))
    assert unofficial_parts(SpatialVLM(backbone, before_last, fusion=merger)) == []
    by_layer_norm = SpatialVLM(backbone, before_last, fusion=partial(merger, norm="layer"))
    assert unofficial_parts(by_layer_norm) == ["norm: layer"]  # of SpatialStack on Qwen3.5
    deeper = TinyQwen25VL(**{**SIZES, "layers": 2})
    stack = SpatialVLM(deeper, vggt, fusion=partial(StackFusion, decoder_layers=[0], hidden=16, norm="rms"))
    assert unofficial_parts(stack) == ["hidden: 16"]  # a constant of the published code
    by_cameras = {"time_index": PoseDistanceIndex(), "camera_source": "auto"}
    found = unofficial_parts(SpatialVLM(backbone, vggt, **by_cameras))
    assert found == ["TinyVGGT", "time_index: PoseDistanceIndex"]
    without_weights = SpatialVLM(backbone, DatasetGeometry, **by_cameras)
    assert unofficial_parts(without_weights)[0] == "DatasetGeometry"
    export_model(without_weights, tmp_path / "out")
    assert read_config(tmp_path / "out")["model_type"] == "qwen2_5_vl"


def test_a_tiny_spatial_mllm_is_exported_and_read_again(tmp_path: Path) -> None:
    geometry = partial(TinyVGGT, embed_dim=32, depth=4, num_heads=2, layers=(-2,))
    model = spatial_mllm(backbone=TinyQwen25VL(**SIZES), geometry=geometry)
    torch.nn.init.normal_(model.fusion.connector.mlp[2].weight)
    export_model(model, tmp_path / "out")
    again = released_model(tmp_path / "out", dtype="float32")
    assert torch.equal(again.fusion.connector.mlp[2].weight, model.fusion.connector.mlp[2].weight)
    images = [torch.rand(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        tokens = [each.geometry(images, [None], cameras=False)[0].patches for each in (model, again)]
    assert torch.equal(*tokens)


# ---- memory -------------------------------------------------------------------------------------------------------

MEASURE = """
import re, sys
from pathlib import Path
from tests.zoo.released import read_release, released_model
from zoo.checkpoints import load_spatial_mllm
from zoo.weights.load import read_config
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
folder = Path(sys.argv[1])
released_model(folder / "small")
before = peak()
if sys.argv[2] == "stream":
    model = released_model(folder / "large")
else:
    tensors = {name: tensor.clone() for name, tensor in read_release(folder / "large").items()}
    model = load_spatial_mllm(read_config(folder / "large"), tensors)
size = sum(p.nbytes for p in model.parameters())
print((peak() - before) / size)
"""


@pytest.mark.slow
def test_peak_memory_is_near_the_models_own_size(tmp_path: Path) -> None:
    config, official = tiny_release()
    config["vggt_aggregator"] = config["vggt_aggregator"] | {"patch_embed": "conv"}

    def write(name: str, config: dict[str, Any]) -> None:
        with torch.device("meta"):
            parts = {key: config[key] for key in ("spatial_config", "connector_config", "vggt_aggregator")}
            shapes = official_weights({"qwen": {k: v for k, v in config.items() if k not in parts}, **parts}, True)
        tensors = {name: torch.ones(tensor.shape, dtype=torch.bfloat16) for name, tensor in shapes.items()}
        write_release(tmp_path / name, config, tensors, shards=8)

    write("small", config)
    heads = {"num_attention_heads": 64, "num_key_value_heads": 32}  # as wide as the small ones, for mRoPE's sections
    write("large", config | heads | {"hidden_size": 1024, "num_hidden_layers": 16, "intermediate_size": 4096})

    def peak(how: str) -> float:
        command = [sys.executable, "-c", MEASURE, str(tmp_path), how]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    assert peak("stream") < 1.1
    assert peak("all at once") > 1.8
