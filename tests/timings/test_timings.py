"""The timings run at the least size, and end with an error where the ways that they compare differ.

What they find is no matter here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from timings import attention, cambrian, da3, evaluate, grpo, lmms_eval, loading, training, trunks
from timings.gpu import __main__ as gpu
from timings.gpu import checks
from timings.measure import in_a_process
from zoo.geometry.da3.trunk import Trunk

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ZOO_REALDATA", "absent"))
FRAMES = ("--frames", "2", "--height", "56", "--width", "84", "--repeats", "1", "--threads", "1")
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """Runs a benchmark in this process, which measures no memory in others; returns what it prints."""

    def call(benchmark: ModuleType, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["benchmark", *words])
        for name in ("memory_in_a_process", "memory"):
            if hasattr(benchmark, name):
                monkeypatch.setattr(benchmark, name, lambda *_: 2**20)
        benchmark.main()
        return capsys.readouterr().out

    return call


def test_attention_has_a_row_of_each_encoding(run: Run) -> None:
    small = ("--views", "2", "--tokens", "4", "--heads", "4", "--key-heads", "2", "--head-dim", "32", "--layers", "1")
    printed = run(attention, *small, "--repeats", "1", "--device", "cpu", "--threads", "1", "--dtype", "bfloat16")
    lines = [line for line in printed.splitlines() if line.startswith("| ") and "ms, median" not in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    names = [row[0] for row in rows]
    assert all(names.count(name) >= 2 for name in attention.ENCODINGS) and names.count("stock") == 3
    assert all(float(row[-1]) > 0 for row in rows)


class OfficialTrunk(Trunk):
    """Stands in for the official trunk of Depth Anything 3, and is called as that one is."""

    shift = 0.0

    def __init__(self, patch_size: int, **size: Any) -> None:
        super().__init__("vits", da3.OUT_LAYERS, **size)

    def get_intermediate_layers(self, images: Tensor, layers: tuple[int, ...], ref_view_strategy: str) -> Any:
        outputs, _ = self(images + self.shift, layers, ref_view_strategy)
        return [(outputs[layer][:, :, 1:], outputs[layer][:, :, 0]) for layer in layers], []


def test_da3_compares_equal_trunks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--sizes", "tiny", "--frames", "1", "2", "--height", "28", "--width", "42", "--threads", "1")
    words += ("--repeats", "1", "--device", "cpu", "--dtypes", "float32")
    monkeypatch.setattr(da3, "official_class", lambda: OfficialTrunk)
    monkeypatch.setattr(trunks, "memory_in_a_process", lambda *_: 2**20)
    rows = [line for line in run(da3, *words).splitlines() if line[:3] in ("| 1", "| 2")]
    assert len(rows) == 2 and all(line.count("|") == 11 for line in rows)
    monkeypatch.setattr(OfficialTrunk, "shift", 0.3)
    with pytest.raises(SystemExit, match="differ: their times can't be compared"):
        run(da3, *words)


def test_the_flops_of_da3_are_those_of_the_matrix_products() -> None:
    arguments = da3.parse(None, da3.SIZES, frames=[2]).parse_args(["--height", "28", "--width", "42"])
    arguments.size, arguments.dtype, arguments.device = "tiny", "float32", "cpu"
    sizes = {**dict.fromkeys(da3.STARTS, da3.START), **da3.SIZES["tiny"]}
    trunk = trunks.fill(Trunk("vits", da3.OUT_LAYERS, **sizes), arguments)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # which it counts
        da3.ours(trunk, trunks.random_images(arguments, 2))
    assert da3.trunk_flops(arguments, 2) == counter.get_total_flops()


def test_evaluate_compares_equal_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--small", "--questions", "3", *FRAMES, "--learn", "1")
    said = run(evaluate, *words)
    assert "3 answers of 3 that were asked one by one are equal" in said and "questions a second" in said
    shared = evaluate.shared
    monkeypatch.setitem(evaluate.WAYS, "shared", lambda *given: [ids[::-1] + [0] for ids in shared(*given)])
    with pytest.raises(SystemExit, match="3 of 3 answers differ"):
        run(evaluate, *words)


@pytest.mark.slow
def test_cambrian_compares_equal_losses_and_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--size", "tiny", "--questions", "2", *FRAMES, "--device", "cpu")
    said = run(cambrian, *words)
    assert [said.count(f"| {name} ") for name in ("step", "evaluation")] == [2, 2]
    monkeypatch.setattr(cambrian, "normalize_colors", lambda pixels: pixels.float() / 255)  # the peer's
    with pytest.raises(SystemExit, match="step: the results differ"):
        run(cambrian, *words)


@pytest.mark.slow
def test_grpo_compares_equal_gradients(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--questions", "2", "--answers", "2", *FRAMES, "--device", "cpu")
    shown = run(grpo, *words)
    assert "all answers" in shown and "each answer" in shown
    learn = grpo.learn  # the control: other advantages for single answers
    monkeypatch.setattr(grpo, "learn", lambda *given: learn(*given[:3], given[3] + (len(given[2]) == 1), given[4]))
    with pytest.raises(SystemExit, match="the gradients differ"):
        run(grpo, *words)


def test_loading_compares_equal_patches(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--scenes", "1", "--seconds", "0.5", "--size", "112", "84", "--frames", "4", "--repeats", "1")
    monkeypatch.setattr(loading, "by_decord", lambda *_: [])
    said = run(loading, *words)
    assert all(f"| {way} " in said for way in ("cold", "first epoch", "cached"))
    load, calls = loading.load, iter(range(9))
    monkeypatch.setattr(loading, "load", lambda *of: [patches + next(calls) for patches in load(*of)])
    with pytest.raises(SystemExit, match="cached patches differ"):
        run(loading, *words)


def test_training_compares_equal_losses(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--size", "tiny", "--questions", "3", *FRAMES, "--device", "cpu")
    assert json.loads(run(training, *words, "--memory-of", "the zoo").splitlines()[-1]) >= 0
    stock, zoo = run(training, *words).splitlines()[-2:]
    assert "transformers" in stock and "the zoo" in zoo and stock.split("|")[-2] == zoo.split("|")[-2]

    def packed_loss(options: argparse.Namespace, size: str, count: int) -> float:
        """Over the tokens of a batch with several questions, for which the published rule has another loss."""
        task = training.task_of(size, "micro_batch_tokens").train()
        return float(task.loss(training.batch(options, task, count, is_packed=True)).detach())

    monkeypatch.setattr(training, "published_loss", packed_loss)
    with pytest.raises(SystemExit, match="the losses differ"):
        run(training, *words)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="no lmms-eval: make lmms-eval, then its Python's pytest")
def test_lmms_eval_answers_alike_in_all_ways(run: Run) -> None:
    small = ("--small", "--frames", "4", "--questions", "4", "--scenes", "2", "--seconds", "1", "--size", "392", "280")
    said = run(lmms_eval, *small, "--repeats", "1", "--threads", "1")
    assert said.count(" 8 of 8 |") == 3 and int(re.search(r"(\d+) different answers", said)[1]) > 2  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="no video in ZOO_REALDATA")
@pytest.mark.parametrize("model, tokens", [("spatial_mllm", 2), ("vg_llm", 4)])
def test_a_dry_run_of_a_released_layout(tmp_path: Path, model: str, tokens: int) -> None:
    """A tiny model with random weights loads, sees a real video, answers, and takes a step of LoRA."""
    given = {"video": DATA / "scenes/vggt_room/room.mp4", "processor": DATA / "qwen2.5-vl", "folder": tmp_path}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "timings.dry_run", *words, "--tiny", "--model", model]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(tmp_path.iterdir())  # the weights are removed
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert len(found["answers"]) == 2 and all(found["answers"])
    assert math.isfinite(found["loss"]) and 0 < found["gradient"] < math.inf
    assert found["adapters"] == 2 * 2 * 7  # of two layers
    assert found["visual tokens"] % tokens == 0  # of two merged pairs of frames, or four stills


def test_a_measured_process_has_the_options_and_may_lack_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def measured(source: str, **options: Any) -> Any:
        (tmp_path / "measured.py").write_text(f"import json, sys\n{source}\n")
        return in_a_process("measured", **options)

    source = "print('loading')\nprint(json.dumps(sys.argv[1:]))"  # the last line is the result
    words = measured(source, memory_of="ours", frames=[1, 4], small=True, tiny=False)
    assert words == ["--memory-of", "ours", "--frames", "1", "4", "--small"]
    for source in ("sys.exit('CUDA out of memory')", "import os; os.kill(os.getpid(), 9)"):
        with pytest.raises(MemoryError):
            measured(source)
    with pytest.raises(SystemExit, match="no such size"):
        measured("sys.exit('no such size')")


# ---- make gpu


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_make_gpu_runs_all_parts_with_tiny_models_on_a_cpu(tmp_path: Path) -> None:
    """A second run repeats none of them, and a part that fails has no result."""
    words = [sys.executable, "-m", "timings.gpu", "--tiny", "--results", str(tmp_path)]
    first = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr[-3000:]
    text = (tmp_path / "gpu.md").read_text()
    assert all(f"## {part}\n" in text for part in gpu.PARTS) and "MFU" in text and "questions/s" in text
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert again.stdout.count(": done") == len(gpu.PARTS) and "up to" not in again.stdout


def test_checks_of_fast_kernels_end_a_part_that_computes_something_else() -> None:
    """Rounding is no fault; another mask, other positions or a wrong gradient are."""
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 32, 100, generator=generator)
    answers = [[1, 2, 3, 4], [5, 6, 7, 8]]
    expected = (logits, answers)
    row = checks.compare_answers("flash", (logits + 0.03 * other, [[1, 2, 3, 4], [5, 6, 0, 8]]), expected)
    assert row["same tokens"] == "75%"
    for found in ((other, answers), (logits * float("nan"), answers), (logits, [[0, 2, 3, 4], [0, 6, 7, 8]])):
        with pytest.raises(SystemExit, match="flash differs from sdpa"):
            checks.compare_answers("flash", found, expected)
    exact = list(torch.randn(5, 8, 8, generator=generator))
    assert checks.gradient_errors("fast", [each.bfloat16() for each in exact], exact)["q"] != "0.0000"
    wrong = [*exact[:4], exact[4] * 1.5]
    with pytest.raises(SystemExit, match="fast has wrong gradients of Gated DeltaNet: beta 0.500"):
        checks.gradient_errors("fast", wrong, exact)


def test_make_gpu_names_what_is_missing_and_a_failed_part_has_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.missing() == []
    monkeypatch.setattr(gpu, "version", lambda _: "0.1")
    assert gpu.missing() and all(line.endswith(", has 0.1") for line in gpu.missing())
    monkeypatch.setattr(gpu.subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, returncode=1))
    result = {"about": "Steps.", "machine": "a card", "tables": {"A model": [{"step": "one"}, {"step": "two", "s": 3}]}}
    (tmp_path / "prope.json").write_text(json.dumps(result))
    assert gpu.run("prope", tmp_path, False) and not gpu.run("unknown", tmp_path, True)
    rows = [line.split() for line in gpu.document({"prope": result}).splitlines() if line.startswith("| ")]
    assert rows == [["|", "step", "|", "s", "|"], ["|", "one", "|", "|"], ["|", "two", "|", "3", "|"]]
