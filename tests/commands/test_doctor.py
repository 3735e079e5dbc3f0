"""doctor: what is absent, broken or unused is named with its remedy, and the exit status says whether to begin."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from commands import doctor as page
from commands import machine
from commands.doctor import doctor, examine_attention, examine_ffmpeg, examine_packages
from commands.machine import examine_machine
from tests.tiny import tiny_backbone
from tests.zoo.llava import TinyLlava
from zoo.attention_kernels import count_kernels
from zoo.errors import InputError

SMALL = ("--data.num_frames", "4", "--trainer.limit_val_batches", "0")


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The page of a command line, with `problems` as its last line if there are some."""
    problems = []
    try:
        doctor([*(() if "--config" in words else ("--config", "qwen25_vl.yaml")), *SMALL, *words])
    except InputError as error:
        problems = [str(error)]
    return capsys.readouterr().out.splitlines() + problems


@pytest.fixture
def dataset(tmp_path: Path, rooms_root: Path) -> list[str]:
    """Options for conversations about four videos."""
    clips = sorted(next(rooms_root.glob("*/rooms")).glob("train_*.mp4"))[:4]
    talk = [{"from": "human", "value": "<video>\nHow many?"}, {"from": "gpt", "value": "4"}]
    (tmp_path / "set").mkdir()
    for clip in clips:
        shutil.copy(clip, tmp_path / "set" / clip.name)
    rows = [{"video": f"set/{clip.name}", "conversations": talk} for clip in clips]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--data.source", "Conversations", "--data.source.path", str(tmp_path / "rows.jsonl")]


@pytest.mark.slow
def test_complete_data_has_no_problem_and_half_of_it_has(tmp_path, dataset, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = lines(capsys, *dataset)
    assert not any(line.startswith("problem") for line in shown)
    assert any("4 questions about 4 videos" in line and line.startswith("ok") for line in shown)

    for clip in sorted((tmp_path / "set").iterdir())[:2]:
        clip.unlink()
    first, *_, last = lines(capsys, *dataset)
    assert first.startswith("problem  data, train: the videos or images of 2 training scenes are missing")
    assert last == "1 problem: see above"
    skipped = lines(capsys, *dataset, "--data.on_missing", "skip")
    counted = "2 questions about 2 videos or sets of images are there, and 2 questions about 2 are missing"
    assert any(line.startswith("warning") and counted in line for line in skipped)
    assert not any(line.startswith("problem") for line in skipped)

    sorted((tmp_path / "set").iterdir())[0].write_bytes(b"")
    first, *_ = lines(capsys, *dataset, "--data.on_missing", "skip")
    assert "1 of 2 have empty files" in first


@pytest.mark.slow
def test_weights_that_are_absent_or_cut_are_problems(tmp_path, dataset, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    geometry = ("--config", "spatial_mllm.yaml", "--model.geometry", "PretrainedVGGT", "--model.geometry.path")
    first, *_ = lines(capsys, *dataset, *geometry, "facebook/VGGT-none")
    assert "facebook/VGGT-none is not on this machine: hf download facebook/VGGT-none" in first

    save_file({"a": torch.zeros(100)}, tmp_path / "model.safetensors")
    whole = lines(capsys, *dataset, *geometry, str(tmp_path))
    assert any("1 tensors in 1 file" in line for line in whole)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-8])
    first, *_ = lines(capsys, *dataset, *geometry, str(tmp_path))
    assert "model.safetensors can't be read as safetensors" in first and "download it again" in first


@pytest.mark.slow
def test_a_shard_that_its_index_does_not_name_is_found(tmp_path, dataset, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, tensor in (("1", "a"), ("2", "b")):
        save_file({tensor: torch.zeros(4)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "c": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    geometry = (
        "--config",
        "spatial_mllm.yaml",
        "--model.geometry",
        "PretrainedVGGT",
        "--model.geometry.path",
        str(tmp_path),
    )
    assert "2.safetensors and its index differ in 2 tensors" in lines(capsys, *dataset, *geometry)[0]


def test_a_task_without_a_backbone_is_built(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = lines(capsys, "--config", "geometry_tiny.yaml")
    assert not any(line.startswith("problem") for line in shown)
    assert any("disk: checkpoints in" in line for line in shown)


def test_devices_that_are_absent_are_a_problem_and_a_cpu_that_is_meant_is_none(tmp_path, dataset, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    asked = ("--trainer.accelerator", "cuda", "--trainer.devices", "8")
    first, *_ = lines(capsys, *dataset, *asked)
    assert first.startswith("problem  --trainer.accelerator cuda --trainer.devices 8: ") and "can not run" in first
    frozen = ("--model.backbone.dtype", "bfloat16", "--model.learning_rates.vision", "null")
    meant = lines(capsys, *dataset, "--trainer.accelerator", "cpu", *frozen)
    assert not any(line.startswith("problem") for line in meant)
    (vision,) = (line for line in meant if "attention: vision encoder" in line)
    assert "in bfloat16 on cpu" in vision


def test_an_error_of_the_command_line_is_a_problem(capsys):
    assert lines(capsys, "--data.num_framez", "4")[0].startswith("problem  config: data.num_framez")


def test_ffmpeg_and_packages_that_can_not_be_used_are_named(monkeypatch):
    assert [finding.grade for finding in examine_ffmpeg()] == ["ok"]
    monkeypatch.setitem(sys.modules, "av", None)
    (finding,) = examine_ffmpeg()
    assert finding.grade == "problem" and "pip install" in finding.text

    monkeypatch.setattr(
        page, "PACKAGES", {"fla": ("tqdm", "to test"), "rich": ("rich", ""), "zz": ("zz-none", "to test")}
    )
    monkeypatch.setitem(sys.modules, "fla", None)
    broken, sound, absent = examine_packages()
    assert (broken.grade, sound.grade, absent.grade) == ("warning", "ok", "absent")
    assert "can't be imported" in broken.text and "pip uninstall tqdm" in broken.text


def test_a_disk_without_room_for_checkpoints_is_a_problem_and_a_hidden_gpu_a_warning(tmp_path, monkeypatch):
    assert not any(finding.grade == "problem" for finding in examine_machine(tmp_path, 1000))
    (tmp_path / "driver").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu")
    monkeypatch.setattr(machine, "NVIDIA", tmp_path / "driver")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = [*examine_machine(tmp_path, 10**18, is_training=True)]
    (disk,) = (finding.text for finding in found if finding.grade == "problem")
    assert "checkpoints take" in disk and "--trainer.default_root_dir" in disk
    (gpu,) = (finding for finding in found if "GPU" in finding.text)  # `trainer.accelerator cpu` may be meant
    assert gpu.grade == "warning" and "driver 570.86.15, and PyTorch sees no GPU" in gpu.text
    assert "CUDA_VISIBLE_DEVICES is '', unset it" in gpu.text


def test_a_part_of_the_machine_that_can_not_be_examined_is_one_finding(tmp_path, monkeypatch):
    complete = len([*examine_machine(tmp_path)])
    kept = shutil.disk_usage

    class Refused(type(tmp_path)):
        """A file in a folder that this user may not enter."""

        def exists(self, **_):
            raise PermissionError(f"{self}: permission denied")

    def usage(place):
        if Path(place) == machine.SHARED_MEMORY:
            raise PermissionError("permission denied")
        return kept(place)

    monkeypatch.setattr(machine, "NVIDIA", Refused("/driver"))
    monkeypatch.setattr(machine, "HF_HOME", Refused(tmp_path / "hub"))
    monkeypatch.setattr(machine, "Path", lambda *names: names[0] if isinstance(names[0], Refused) else Path(*names))
    monkeypatch.setattr(machine, "SHARED_MEMORY", Path("/"))
    monkeypatch.setattr(shutil, "disk_usage", usage)
    found = [*examine_machine(tmp_path)]
    refused = [finding.text for finding in found if "permission denied" in finding.text]
    assert [text.partition(":")[0] for text in refused[:1]] == ["GPU"] and any("HF_HOME" in text for text in refused)
    assert all(finding.grade != "problem" for finding in found) and len(found) >= complete
    written = [finding for finding in found if "disk: runs" in finding.text or "temporary files" in finding.text]
    assert len(written) == 2


def test_only_a_folder_that_a_training_writes_must_be_writable(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.os, "access", lambda place, mode: False)
    assert machine.examine_disk("HF_HOME", tmp_path).grade == "warning"
    assert machine.examine_disk("runs", tmp_path, 1).grade == "problem"


# ---- Kernels ---------------------------------------------------------------------------------------------------------


def test_the_kernel_that_ran_is_counted_and_not_the_one_that_is_installed():
    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    with count_kernels() as fused:
        F.scaled_dot_product_attention(q, q, q)
    with count_kernels() as math, sdpa_kernel(SDPBackend.MATH):
        F.scaled_dot_product_attention(q, q, q)
    with count_kernels() as eager:
        (q @ q.transpose(2, 3)).softmax(-1) @ q
    assert (fused, math, eager) == ({"SDPA flash": 1}, {"SDPA math": 1}, {})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["Qwen2.5-VL", "Qwen3-VL", "Qwen3.5"])
def test_attention_of_each_backbone_is_run(family, attention):
    backbone = tiny_backbone(family, implementation=attention).load()
    for precision in ("32-true", "bf16-mixed"):
        taken = [finding.text for finding in examine_attention(backbone, precision, torch.device("cpu"))]
        assert len(taken) == 3
        assert all(("takes SDPA flash" if attention == "sdpa" else "no fused kernel") in text for text in taken)


def test_attention_is_run_in_the_dtype_of_each_part_and_in_another_familys_vision_encoder():
    backbone = TinyLlava().load()  # SigLIP's config says num_attention_heads
    for weight in backbone.vlm.model.vision_tower.parameters():
        weight.data = weight.data.bfloat16()
    for precision, decoder in (("32-true", "float32"), ("bf16-mixed", "bfloat16")):
        *decoders, vision = (finding.text for finding in examine_attention(backbone, precision, torch.device("cpu")))
        assert all(f"channels in {decoder} " in text for text in decoders)
        assert "2 heads of 16 channels in bfloat16" in vision
