"""Released folders: read shard by shard, exported bit for bit, and faults that name the file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from tests.zoo.released import official_weights, read_release, released_model, spatial_mllm, tiny_release, write_release
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
    PretrainedGeoVR,
    PretrainedQwen3VL,
    PretrainedQwen25VL,
    PretrainedQwen35,
    StackFusion,
    TinyQwen3VL,
    TinyQwen25VL,
    TinyQwen35,
    TinyVGGT,
)
from zoo.checkpoints import (
    PretrainedSpatialMLLM,
    export_model,
    load_qwen3_5,
    load_qwen3_vl,
    load_qwen25_vl,
    load_spatial_mllm,
    official_tensors,
    unofficial_parts,
)
from zoo.model import SpatialVLM
from zoo.sequences.layout import ExtraTokens
from zoo.weights import open_weights
from zoo.weights.load import read_config

pytestmark = pytest.mark.usefixtures("tiny_dino")
SIZES = dict(layers=1, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)


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


def test_round_trip_is_bit_exact(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards = partial(save_torch_state_dict, max_shard_size=500_000)
    monkeypatch.setattr("zoo.checkpoints.export.save_torch_state_dict", small_shards)
    export_model(released_model(release, dtype="float32"), tmp_path / "out")
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


@pytest.mark.parametrize("fusion", [ConcatSplitFusion, CameraTokenFusion])
def test_what_has_no_official_layout_is_not_exported(tmp_path: Path, fusion: type[Fusion]) -> None:
    model = spatial_mllm(fusion, backbone=TinyQwen25VL(**SIZES), geometry=partial(TinyVGGT, embed_dim=32, num_heads=2))
    with pytest.raises(InputError, match="can't be exported, .* with AddFusion"):
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


def load_plain(config: dict[str, Any], tensors: dict[str, Tensor]) -> SpatialVLM:
    return load_qwen25_vl({"qwen": config}, tensors)


@pytest.mark.parametrize(
    ("tiny", "pretrained", "stock", "load"),
    [
        (partial(TinyQwen25VL, layers=1), PretrainedQwen25VL, Qwen2_5_VLForConditionalGeneration, load_plain),
        (partial(TinyQwen3VL, layers=1), PretrainedQwen3VL, Qwen3VLForConditionalGeneration, load_qwen3_vl),
        (partial(TinyQwen35, layers=4), PretrainedQwen35, Qwen3_5ForConditionalGeneration, load_qwen3_5),
    ],
    ids=["Qwen2.5-VL", "Qwen3-VL", "Qwen3.5"],
)
def test_a_folder_goes_out_and_comes_back(tmp_path: Path, tiny: Any, pretrained: Any, stock: Any, load: Any) -> None:
    """Into the stock model, and into ours, by path and by `from_pretrained`; exported again it is the same."""
    sizes = {name: size for name, size in SIZES.items() if name != "layers"}
    model, folder = SpatialVLM(tiny(**sizes)), tmp_path / "out"
    export_model(model, folder)
    tensors = load_file(folder / "model.safetensors")
    if pretrained is PretrainedQwen35:  # as a release holds
        tensors |= {"mtp.norm.weight": torch.ones(64)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    by_transformers, report = stock.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    pairs = zip(by_transformers.parameters(), model.backbone.vlm.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    given = batch(model, [SAMPLES["stills and videos"]])
    expected = logits(model, given)[0]
    found = SpatialVLM(pretrained(str(folder), dtype="float32"))
    assert torch.equal(logits(found, given)[0], expected)
    assert torch.equal(logits(load(by_transformers.config.to_dict(), tensors), given)[0], expected)
    again = SpatialVLM.from_pretrained(folder)
    assert isinstance(again.loader, pretrained) and again.is_pretrained
    export_model(found, tmp_path / "twice")
    assert load_file(tmp_path / "twice/model.safetensors").keys() == tensors.keys()
    for path in folder.glob("*.json"):
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes(), path.name


def test_adapters_of_both_kinds_of_layers_are_merged_into_the_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SpatialVLM(TinyQwen35(**SIZES | {"layers": 4}), lora=LoRA(r=2))
    given = batch(model, [SAMPLES["a video"]])
    before = logits(model, given)[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.03)
    adapted = logits(model, given)[0]
    export_model(model, tmp_path)
    assert torch.equal(logits(model, given)[0], adapted)  # the model keeps its adapters
    found = SpatialVLM(PretrainedQwen35(str(tmp_path), dtype="float32"))
    torch.testing.assert_close(logits(found, given)[0], adapted, rtol=0, atol=1e-4)
    assert (logits(found, given)[0] - before).abs().max() > 1e-3  # the control


def test_adapters_are_merged_into_half_precision_by_one_rounding() -> None:
    torch.manual_seed(0)
    model = SpatialVLM(TinyQwen25VL(**SIZES), lora=LoRA(r=2))
    model.backbone.decoder.bfloat16()
    layer: Any = model.backbone.decoder.layers[0].self_attn.q_proj
    for adapter in (layer.lora_A, layer.lora_B):
        adapter.float()  # as they are trained
        torch.nn.init.normal_(adapter["default"].weight)
    update = layer.get_delta_weight("default").detach()
    exact = (layer.base_layer.weight.float() + update).bfloat16()
    (name,) = (name for name in official_tensors(model) if name.endswith("layers.0.self_attn.q_proj.weight"))
    assert update.dtype == torch.float32 and torch.equal(official_tensors(model)[name], exact)
    assert not torch.equal(layer.base_layer.weight + update.bfloat16(), exact)  # by two


def test_a_geovr_is_read_past_what_its_training_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    export_model(SpatialVLM(TinyQwen3VL(**SIZES)), folder)
    stock = load_file(folder / "model.safetensors")
    names = ("model.camera_token.weight", "dpt_head.norm.weight", "geometry_encoder.vggt.x")
    heads = {name: torch.ones(2, 3) for name in names}
    release = tmp_path / "hub/GeoVR-VGGT-Qwen3-VL-2B"
    shutil.copytree(folder, release)
    save_file(stock | heads, release / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="--model.backbone PretrainedGeoVR"):
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
    write("large", config | heads | {"hidden_size": 1024, "num_hidden_layers": 6, "intermediate_size": 4096})

    def peak(how: str) -> float:
        command = [sys.executable, "-c", MEASURE, str(tmp_path), how]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    assert peak("stream") < 1.1
    assert peak("all at once") > 1.8


# ---- faults ----------------------------------------------------------------------------------------------------


def change_json(file: str, **changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def change_tensors(**changes: Tensor | None) -> Callable[[Path], object]:
    """Replace, add or (None) remove tensors; `__` stands for a dot in a name."""

    def change(folder: Path) -> None:
        new = {name.replace("__", "."): tensor for name, tensor in changes.items()}
        shards = [path for path in folder.glob("*.safetensors") if new.keys() & load_file(path).keys()]
        path = shards[0] if shards else next(folder.glob("*.safetensors"))
        save_file({n: t for n, t in (load_file(path) | new).items() if t is not None}, path)

    return change


SHARD, INDEX = "model-00002-of-00003.safetensors", "model.safetensors.index.json"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {  # of a released Spatial-MLLM
    "a shard cut short": (lambda f: (f / SHARD).write_bytes(b"cut short"), f"{SHARD} can't be read as safetensors"),
    "no shard": (lambda f: (f / SHARD).unlink(), f"lacks {SHARD}"),
    "a shard elsewhere": (change_json(INDEX, weight_map={"a": "../elsewhere.safetensors"}), "lacks ../elsewhere"),
    "a tensor that the index lacks": (
        lambda f: save_file(load_file(f / SHARD) | {"another": torch.ones(2)}, f / SHARD),
        f"{SHARD} and its index differ in 1 tensors: another; download both again",
    ),
    "an index of another form": (change_json(INDEX, weight_map={"a": 1}), f"{INDEX} can't be read .*download it again"),
    "an index that is a list": (lambda f: (f / INDEX).write_text("[]"), f"{INDEX} can't be read .*download it again"),
    "pickles": (
        lambda f: [(f / INDEX).unlink(), (f / "pytorch_model.bin").write_bytes(b"pickle")],
        "only safetensors are read",
    ),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json can't be read"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json can't be read .a list instead of settings"),
    "heads that do not divide": (
        change_json("config.json", vggt_aggregator={"patch_embed": "conv", "num_heads": 5}),
        "config.json",
    ),
    "another vocabulary": (change_json("config.json", vocab_size=100), "release/config.json"),
    "words for settings": (change_json("config.json", vision_config="large"), "release/config.json"),
    "a layer that it lacks": (
        change_json("config.json", connector_config={"spatial_embeds_layer_idx": 30}),
        "release/config.json",
    ),
}
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {  # of a Qwen2.5-VL in one file
    "missing": (change_tensors(model__norm__weight=None), "this Qwen2.5-VL: 1 missing: model.norm.weight"),
    "unexpected": (change_tensors(other=torch.ones(2)), "this Qwen2.5-VL: 1 unexpected: other"),
    "misshapen": (change_tensors(model__norm__weight=torch.ones(3)), r"norm.weight \[3\] instead of \[64\]"),
    "quantized": (
        change_tensors(model__norm__weight=torch.ones(64, dtype=torch.int8)),
        "1 no floating-point numbers: model.norm.weight torch.int8",
    ),
    "twice": (change_tensors(model__language_model__norm__weight=torch.ones(64)), "1 under two names: model"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "qwen has no tokenizer.json.*: download it again"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_release_is_an_error(damage: str, release: Path) -> None:
    spoil, message = DAMAGES[damage]
    spoil(release)
    with pytest.raises(InputError, match=message) as error:
        released_model(release)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_qwen_folder_is_an_error(fault: str, qwen: Path) -> None:
    spoil, message = FAULTS[fault]
    spoil(qwen)
    with pytest.raises(InputError, match=message) as error:
        PretrainedQwen25VL(str(qwen)).load()
    assert "\n" not in str(error.value)


def test_absent_folders_and_official_names_are_in_the_error(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path, remedy in (
        ("weights/nowhere", "hf download <hub id, such as .*> --local-dir weights/nowhere"),
        ("no/such", "hf download no/such --local-dir weights/such"),
        ("no/such/id", r"hf download no/such --include 'id/[*]' --local-dir weights` .*path weights/id"),
    ):
        with pytest.raises(InputError, match=remedy):
            PretrainedSpatialMLLM(path).load()
    config, tensors = tiny_release()
    for gone in ("connector.mlp.0.weight", "spatial_encoder.vggt_model.aggregator.camera_token"):
        write_release(release, config, {name: tensor for name, tensor in tensors.items() if name != gone})
        with pytest.raises(InputError, match=f"1 missing: {gone}; check the config and {release}$"):
            released_model(release)


HEAD = "lm_head.weight"


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


def with_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


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


def test_folders_of_other_kinds_are_refused(qwen: Path, release: Path, tmp_path: Path) -> None:
    for name, loader in (("qwen3", TinyQwen3VL), ("qwen35", TinyQwen35)):
        export_model(SpatialVLM(loader(**SIZES)), tmp_path / name)
    qwen3, qwen35 = str(tmp_path / "qwen3"), str(tmp_path / "qwen35")
    for load, message in (
        (PretrainedQwen25VL(str(release)).load, "is a Spatial-MLLM: take --model.backbone PretrainedSpatialMLLM"),
        (PretrainedQwen3VL(str(qwen)).load, "is a Qwen2.5-VL: take .* PretrainedQwen25VL"),
        (PretrainedQwen25VL(qwen3).load, "is a Qwen3-VL: take --model.backbone PretrainedQwen3VL"),
        (PretrainedQwen35(qwen3).load, "is a Qwen3-VL: take .* PretrainedQwen3VL"),
        (PretrainedQwen3VL(qwen35).load, "is a Qwen3.5: take .* PretrainedQwen35"),
    ):
        with pytest.raises(InputError, match=message):
            load()
    internvl = {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"]}
    for folder, changes, message in (
        (qwen3, internvl, "its config.json names InternVLChatModel, which no class loads .*: PretrainedQwen25VL, "),
        (qwen3, {"model_type": "bagel", "architectures": None}, "names model_type 'bagel', which no class loads"),
        (qwen3, {"model_type": "qwen3_vl_moe"}, "is a Qwen3-VL-MoE, which is not supported"),
        (qwen3, {"quantization_config": {"quant_method": "fp8"}}, "is quantized"),
        (qwen35, {"model_type": "qwen3_5_moe"}, "is a Qwen3.5-MoE, which is not supported"),
    ):
        before = (Path(folder) / "config.json").read_text()
        with_config(Path(folder), **changes)
        with pytest.raises(InputError, match=message):
            SpatialVLM.from_pretrained(folder)
        with pytest.raises(InputError, match=message):  # of --model.backbone.path
            (PretrainedQwen35 if folder == qwen35 else PretrainedQwen3VL)(folder).load()
        (Path(folder) / "config.json").write_text(before)
    text = read_config(Path(qwen3))["text_config"]
    for sections in ([8, 4, 3], [4, 6, 6]):  # of 16 frequencies, h and w can take every third one: 5 of them at most
        rope = text["rope_scaling"] | {"mrope_section": sections}
        with_config(Path(qwen3), text_config=text | {"rope_scaling": rope})
        with pytest.raises(InputError, match="config.json: mrope_section .* the 16 frequencies"):
            PretrainedQwen3VL(qwen3).load()


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
