"""python main.py cache-geometry: its entries, messages and errors; and runs that use the cache without a VGGT."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import main
from commands.caches import cache_geometry
from tests.conftest import ROOMS
from zoo import TinyVGGT
from zoo.errors import InputError
from zoo.geometry import VGGTEncoder
from zoo.geometry.vggt import Aggregator

VGGT = {"embed_dim": 16, "num_heads": 2}
Run = Callable[..., str]
ALIKE = ("--data.train_sampler", "null")  # the same frames in each epoch
DOUBLED = ("--data.train_frame_pairing", "Duplicate")  # others than in a test


@pytest.fixture
def run(rooms_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """Runs main.py in an empty folder on the small rooms, with a small VGGT from a file; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    weights = TinyVGGT(**VGGT).vggt.official_state_dict()
    Path("vggt").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, "vggt/model.safetensors")
    data = {"source.root": rooms_root, "source.scenes": list(ROOMS), "num_frames": 4, "question_types": "null"}
    words = [word for name, value in data.items() for word in (f"--data.{name}", str(value))]
    options = {"path": "vggt", **VGGT}.items()
    vggt = ["--model.geometry=TinyVGGT", *(f"--model.geometry.{name}={value}" for name, value in options)]

    def call(command: str, *more: str, config: str = "spatial_mllm.yaml") -> str:
        monkeypatch.delenv("ZOO_RUN", raising=False)
        monkeypatch.setattr(sys, "argv", ["main.py", command, "--config", config, *words, *vggt, *more])
        main.main()
        return capsys.readouterr().out

    return call


SMALL = [
    *("--model.backbone.layers", "2", "--model.backbone.hidden_size", "64", "--model.backbone.heads", "2"),
    *("--model.backbone.key_value_heads", "1", "--model.backbone.vision_hidden_size", "32"),
    *("--data.batch_size", "2", "--trainer.max_steps", "3", "--trainer.limit_val_batches", "0"),
]


def entries() -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path("cache/geometry").glob("*.safetensors")}


def taught(**options: object) -> list[str]:
    """Options of a model that learns from a VGGT of its own file, with other options of this VGGT."""
    weights = TinyVGGT(**VGGT, heads=["camera", "depth"], seed=1).vggt.official_state_dict()
    Path("teacher").mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, "teacher/model.safetensors")
    encoder = {"path": "teacher", **VGGT, "heads": ["camera", "depth"], "layers": [1, 3], **options}
    teacher = {"encoder": {"class_path": "TinyVGGT", "init_args": encoder}, "cache": {"folder": "cache/geometry"}}
    learned = {"class_path": "Distillation", "init_args": {"teacher_width": 32, "indices": [1, 2]}}
    return [
        f"--model.teacher={json.dumps({'class_path': 'Teacher', 'init_args': teacher})}",
        f"--model.objectives={json.dumps([learned, {'class_path': 'TeacherPose'}])}",
    ]


@pytest.mark.slow
def test_a_training_computes_nothing_of_a_teacher_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("plain.yaml").write_text("model: {class_path: zoo.Qwen25VL}\n")
    shown = (*ALIKE, *DOUBLED)
    for split in ("test", "val"):
        with pytest.raises(SystemExit, match=f"--split {split}: "):
            run("cache-geometry", *taught(), "--split", split, config="plain.yaml")
    for made in ("6 made, 0 kept", "0 made, 6 kept"):
        fill = run("cache-geometry", *taught(), *shown, "--split", "train", config="plain.yaml")
        assert f"cache-geometry: the teacher's targets of 6 scenes: {made}; see cache/geometry/" in fill
    filled = entries()
    assert len(filled) == 12  # tokens, and cameras with depth
    monkeypatch.setattr(Aggregator, "forward", None)
    run("fit", *SMALL, *shown, *taught(), config="plain.yaml")
    assert set(entries()) == set(filled)
    with pytest.raises(TypeError):  # the control: tokens of other layers
        run("fit", *SMALL, *shown, *taught(layers=[0, 3]), config="plain.yaml")


@pytest.mark.slow
def test_an_interrupted_command_resumes(run: Run) -> None:
    assert "cache-geometry: tokens of 3 scenes: 3 made, 0 kept; see cache/geometry/" in run("cache-geometry")
    one, two, _ = sorted(Path("cache/geometry").glob("*.safetensors"))
    whole = one.read_bytes(), two.read_bytes()
    one.unlink()
    two.write_bytes(whole[1][:-100])  # cut short
    assert "2 made, 1 kept" in run("cache-geometry", "--workers", "1")
    assert (one.read_bytes(), two.read_bytes()) == whole
    assert "tokens and cameras of 3 scenes: 3 made, 0 kept" in run(
        "cache-geometry", "--model.camera_source", "auto", "--model.time_index", "PoseDistanceIndex"
    )
    assert len(entries()) == 6  # the tokens were there
    assert "tokens of 2 scenes: 2 made" in run(
        "cache-geometry", "--split", "val", "--model.geometry_cache.dtype", "float8"
    )


@pytest.mark.slow
def test_a_run_with_a_full_cache_loads_no_vggt_and_decodes_no_video(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = ("--data.keep_in_memory", "false", "--data.num_workers", "0", "--data.frame_cache.folder", "cache/frames")
    shown = (*ALIKE, *DOUBLED, *frames)
    for made in ("6 made, 0 kept", "0 made, 6 kept"):
        assert f"frames of 6 scenes: {made}; see cache/frames/" in run("cache-frames", "--split", "train", *shown)
    fill = ("cache-geometry", *shown, "--split", "train")
    assert "6 made" in run(*fill)
    filled = set(entries())
    made: list[str] = []
    build = VGGTEncoder.__init__

    def spy(self: VGGTEncoder, *arguments: object, **options: object) -> None:
        build(self, *arguments, **options)
        made.extend({tensor.device.type for tensor in self.parameters()})

    monkeypatch.setattr(VGGTEncoder, "__init__", spy)
    monkeypatch.setattr(Aggregator, "forward", None)
    run("fit", *SMALL, *shown, "--model.geometry_cache.folder", "cache/geometry")
    assert made and set(made) == {"meta"} and set(entries()) == filled
    assert len(list(Path("cache/frames").glob("*.safetensors"))) == 6
    (folder,) = Path("runs").iterdir()
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state and not any(name.startswith("geometry.") for name in state)

    cache_geometry(["--config", str(folder / "config.yaml"), "--split", "train"])  # a run's config serves as it is
    assert set(entries()) == filled
    # negative control: an absent entry is computed
    Path("cache/geometry", next(iter(filled))).unlink()
    with pytest.raises(TypeError):
        run(*fill)
    assert set(made) == {"meta", "cpu"}


def test_frames_that_differ_each_epoch_are_refused(run: Run) -> None:
    for option, part in (("sampler", "RandomSampler"), ("frame_pairing", "OffsetNeighbor")):
        words = () if option == "sampler" else (*ALIKE, f"--data.{option}", part, f"--data.{option}.side", "random")
        with pytest.raises(SystemExit, match=f"{part} draws other frames each epoch"):
            run("cache-geometry", "--split", "train", *words)


@pytest.mark.slow
def test_errors(run: Run) -> None:
    with pytest.raises(SystemExit, match="--data.video is for predict"):
        run("cache-geometry", "--data.video", "clip.mp4", "--data.question", "Why?")
    parts = "{fusion: null, geometry: {class_path: zoo.TinyVGGT}}"
    Path("no_fusion.yaml").write_text(f"model: {{class_path: zoo.PRoPEMLLM, init_args: {parts}}}\n")
    with pytest.raises(SystemExit, match="this model reads no geometry"):
        run("cache-geometry", config="no_fusion.yaml")
    with pytest.raises(SystemExit, match="raise --model.geometry_cache.max_size_gb"):
        run("cache-geometry", "--model.geometry_cache.max_size_gb", "0.000008")  # one scene, and not two
    limit = ("--data.keep_in_memory", "false", "--data.frame_cache.max_size_gb", "0.0001")
    for workers in ("0", "1"):
        with pytest.raises(SystemExit, match="cache/frames has no room for 3 scenes, .*raise --data.frame_cache.max"):
            run("cache-frames", *limit, "--workers", workers)


@pytest.mark.slow
def test_a_failed_scene_is_listed_and_a_full_disk_stops_the_command(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    forward, seen = Aggregator.forward, []

    def fails_once(self: Aggregator, *arguments: object) -> object:
        seen.append(1)
        if len(seen) == 2:
            raise InputError("frames of a wrong kind")
        return forward(self, *arguments)

    monkeypatch.setattr(Aggregator, "forward", fails_once)
    with pytest.raises(SystemExit, match="1 of 3 scenes have no geometry"):
        run("cache-geometry")
    said = capsys.readouterr()
    assert "2 made, 0 kept, 1 failed" in said.out and "frames of a wrong kind" in said.err
    before, limits = entries(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full disk: a real failed write
    try:
        with pytest.warns(UserWarning, match="can't be kept"), pytest.raises(SystemExit, match="run it again"):
            run("cache-geometry")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {*entries()} == {*before}
    assert "1 made, 2 kept" in run("cache-geometry")


@pytest.mark.slow
def test_stills_are_cached_as_the_encoder_sees_them(run: Run) -> None:
    """A column of patches wider than the tower does, each once; a test then finds all of them."""
    stills = ("--data.still_resize", "FixedWidthStills", "--data.num_frames=2", *SMALL, "--model.fusion.hidden=16")
    cached = ("--model.geometry_cache.folder", "cache/geometry")
    assert "tokens of 3 scenes: 3 made" in run("cache-geometry", *stills[:3], config="vg_llm.yaml")
    before = {*entries()}
    run("test", *stills, *cached, "--model.allow_untrained=true", config="vg_llm.yaml")
    assert {*entries()} == before
