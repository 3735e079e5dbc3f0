"""python main.py export: exported weights equal the trained ones, and are read back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import main
from commands.export import ExportingTrainer, unofficial_reading
from datamodules import UniformSampler, VideoQADataModule
from datamodules.inference import answer_chats, data_of
from tests import tiny
from tests.datamodules.test_chats import chat, model_of, picture
from tests.zoo.released import TINY_DINO, read_release, tiny_release, write_release
from zoo import (
    LearningRates,
    LoRA,
    PretrainedQwen25VL,
    PRoPE,
    PRoPEMLLM,
    Qwen25VL,
    SpatialVLM,
    TimestampIndex,
    TinyQwen3VL,
    TinyQwen25VL,
)
from zoo.checkpoints import export_model, unofficial_parts
from zoo.geometry.vggt import DINOV2
from zoo.objectives import Distillation

SIZES = dict(layers=2, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)
RULE = "linspace_floor"
OFFICIAL = ["--layout", "official"]
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Run:
    """Runs main.py in an empty folder on the small rooms; returns what it logged."""
    monkeypatch.chdir(tmp_path)
    data = ["--data.source.root", str(rooms_root), "--data.source.scenes", "[6,2,3]", "--data.batch_size", "2"]
    few = ["--data.num_frames", "4", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"]

    def call(command: str, *words: str) -> str:
        monkeypatch.delenv("ZOO_RUN", raising=False)
        caplog.clear()
        given = [*data, *few, "--data.question_types", "null"] if "--config" in words else []
        monkeypatch.setattr(sys, "argv", ["main.py", command, *words, *given])
        main.main()
        return caplog.text

    return call


def small(*more: str) -> list[str]:
    return [word for name, value in SIZES.items() for word in (f"--model.backbone.{name}", str(value))] + list(more)


def trained(model: SpatialVLM) -> SpatialVLM:
    """The model with the weights of the only run."""
    (checkpoint,) = Path("runs").glob("*/checkpoints/last.ckpt")
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    return model


def logits(model: SpatialVLM) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        return (model if isinstance(model, SpatialVLM) else model.model).logits(ids, torch.ones_like(ids))


def exported() -> SpatialVLM:
    return SpatialVLM(PretrainedQwen25VL("out", dtype="float32"))


@pytest.mark.slow
def test_the_newest_run_is_exported(run: Run) -> None:
    run("fit", "--config", "qwen25_vl.yaml", *small("--trainer.precision", "bf16-mixed"))
    run("export", "--out", "out", *OFFICIAL)
    model = trained(Qwen25VL(backbone=TinyQwen25VL(**SIZES)))
    assert torch.equal(logits(exported()), logits(model))
    assert not torch.equal(logits(model), logits(SpatialVLM(TinyQwen25VL(**SIZES))))  # the control
    with pytest.raises(SystemExit, match="out is there already and not empty"):
        run("export", "--out", "out", *OFFICIAL)
    run("export", "--layout", "zoo", "--out", "ours")
    assert json.loads(Path("ours/config.json").read_text())["precision"] == "bf16-mixed"  # of the training
    run("export", "--out", "half", "--dtype", "bfloat16", *OFFICIAL)
    assert {tensor.dtype for tensor in load_file("half/model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.slow
def test_adapters_are_merged(run: Run) -> None:
    rates = [word for part in ("vision", "connector") for word in (f"--model.learning_rates.{part}", "0")]
    attention = ["--config", "prope.yaml", "--model.fusion", "null", "--model.view_mixer", "null"]  # it has no weights
    run("fit", *attention, *small(*rates, "--model.lora.r", "4", "--model.learning_rates.decoder", "0.1"))
    assert "which has no PRoPE" in run("export", "--out", "out", *OFFICIAL)
    frozen = LearningRates(decoder=0.1, connector=0.0, vision=0.0)
    backbone = TinyQwen25VL(**SIZES)
    model = PRoPEMLLM(PRoPE(), view_mixer=None, fusion=None, backbone=backbone, lora=LoRA(r=4), learning_rates=frozen)
    trained(model)
    assert torch.allclose(logits(exported()), logits(model), atol=1e-4)
    untrained = logits(SpatialVLM(TinyQwen25VL(**SIZES)))
    assert not torch.allclose(untrained, logits(model), atol=1e-2)


def test_released_weights_are_exported_unchanged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DINOV2, "tiny", TINY_DINO)
    config, tensors = tiny_release()
    write_release(Path("release"), config, tensors)
    backbone = ["--model.backbone", "PretrainedSpatialMLLM", "--model.backbone.path", "release"]
    run("export", "--config", "spatial_mllm.yaml", *backbone, "--out", "out", *OFFICIAL)
    written = read_release(Path("out"))
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)


@pytest.mark.slow
def test_a_fused_model_answers_the_same_as_released_weights(run: Run) -> None:
    geometry = "{class_path: TinyVGGT, init_args: {path: null, embed_dim: 32, num_heads: 2}}"
    Path("random.yaml").write_text(f"model: {{init_args: {{geometry: {geometry}}}}}")
    configs = ["--config", "spatial_mllm.yaml", "--config", "random.yaml"]
    run("fit", *configs, *small("--model.learning_rates.connector", "0.1"))
    one = ["--trainer.limit_test_batches", "1"]
    run("test", *one)
    run("export", "--out", "out", *OFFICIAL)
    released = ["--model.backbone", "PretrainedSpatialMLLM", "--model.backbone.path", "out"]
    folder = ["--model.backbone.dtype", "float32", "--trainer.default_root_dir", "released"]
    run("test", "--config", "spatial_mllm.yaml", *released, *folder, *one)
    (own,) = Path("runs").rglob("predictions.jsonl")
    answers = [
        {line["id"]: line["prediction"] for line in map(json.loads, path.read_text().splitlines())}
        for path in (own, Path("released/predictions.jsonl"))
    ]
    assert answers[0] == answers[1] and len(answers[0]) > 5


def test_errors_of_models_without_a_run_or_layout(run: Run) -> None:
    with pytest.raises(SystemExit, match="no finished run under runs/"):
        run("export", "--out", "out")
    Path("random.yaml").write_text("model: {init_args: {geometry: {class_path: TinyVGGT, init_args: {path: null}}}}")
    words = ["--config", "concat_split.yaml", "--config", "random.yaml", *small()]
    with pytest.raises(SystemExit, match="SpatialVLM can't be exported"):
        run("export", *words, "--model.allow_untrained", "true", "--out", "out", *OFFICIAL)
    assert not Path("out").exists()


@pytest.mark.slow
def test_settings_that_no_official_layout_has_take_the_zoos_own(run: Run) -> None:
    """By default an exported model is the model: its positions, and how it reads videos."""
    words = ["--model.time_index", "ConstantIndex", "--data.sampler", "UniformSampler", "--data.sampler.rule", RULE]
    run("fit", "--config", "qwen25_vl.yaml", *small(*words))
    lost = "time_index: ConstantIndex, --data.num_frames, --data.sampler"
    said = run("export", "--out", "own")
    assert f"for SpatialVLM.from_pretrained: the official layout has no {lost}, --data.pixels" in said
    own = SpatialVLM.from_pretrained("own")
    assert type(own.time_index).__name__ == "ConstantIndex"
    assert (data_of(own).num_frames, data_of(own).sampler.rule) == (4, RULE)
    assert f"official layout, which has no {lost}" in run("export", "--out", "official", *OFFICIAL)
    plain = VideoQADataModule(num_frames=16, sampler=UniformSampler("qwen_vl_utils"))
    timed = SpatialVLM(TinyQwen25VL(**SIZES), time_index=TimestampIndex(1.0, "nominal"))
    assert unofficial_parts(timed) == unofficial_reading(plain) == []  # the control: defaults that are written out
    later = SpatialVLM(TinyQwen25VL(**SIZES), text_after_vision="max_hw")
    assert unofficial_parts(later) == ["text_after_vision: max_hw"]
    spans = TinyQwen3VL(layers=2, hidden_size=64, heads=2, key_value_heads=1)  # each view is one: both rules agree
    assert not unofficial_parts(SpatialVLM(spans, text_after_vision="max_hw"))


def test_every_layout_has_a_card_and_files_that_others_may_read(tmp_path: Path) -> None:
    model = SpatialVLM(backbone=TinyQwen25VL(**SIZES))
    export_model(model, tmp_path / "official")
    model.save_pretrained(tmp_path / "zoo")
    for folder in (tmp_path / "official", tmp_path / "zoo"):
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {folder.stat().st_mode & 0o666}
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: spatial-vlm-zoo\n") and "TinyQwen25VL" in card
        assert f"# {folder.name}\n" in card


def served(folder: Path, pictures: list[Any], texts: Sequence[str]) -> list[str]:
    """Answers of the stock classes of transformers, which know nothing of the zoo."""
    stock, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    found = []
    for text in texts:
        (message,) = chat(*["image"] * len(pictures), text)
        for item, shown in zip(message["content"], pictures, strict=False):
            item["image"] = shown
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        given = processor.apply_chat_template([message], **options)
        ids = stock.generate(**given, max_new_tokens=tiny.NEW, do_sample=False)[:, given["input_ids"].shape[1] :]
        found += processor.batch_decode(ids, skip_special_tokens=True)
    return found


@pytest.mark.parametrize("family", tiny.MASKED_FAMILIES)
def test_stock_transformers_answers_as_a_model_with_stock_inference(family: str, tmp_path: Path) -> None:
    """Adapters are merged, and heads of a training are left out. A model with cameras is not exported like this."""
    trainer = ExportingTrainer(accelerator="cpu", logger=False)
    task = tiny.tiny_model("plain", family=family, lora=LoRA(r=2), objectives=[Distillation(10, [1])])
    trainer.export(task, str(tmp_path / "out"))
    model = task.model
    model.data_config = model_of("plain", family).data_config
    pictures = [picture(seed, *tiny.SIZES[family]) for seed in range(2)]

    def own() -> list[str]:
        asked = [chat("image", "image", text) for text in tiny.TEXTS]
        replies = answer_chats(model, pictures, asked, max_new_tokens=tiny.NEW)
        return model.backbone.preprocessor.decode([reply.ids for reply in replies])

    expected = own()
    assert served(tmp_path / "out", pictures, tiny.TEXTS) == expected and len(set(expected)) > 2
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    assert own() != expected  # the control: the adapters matter
    trainer.export(tiny.tiny_model("plain", family=family, camera_encoding=PRoPE()), str(tmp_path / "cameras"))
    with pytest.raises(ValueError, match="model_type"):
        served(tmp_path / "cameras", pictures, tiny.TEXTS)
