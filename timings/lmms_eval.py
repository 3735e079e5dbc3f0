"""Compare lmms-eval's own Qwen2.5-VL, the zoo in lmms-eval and the zoo alone, on the same videos and questions.

    make lmms-eval
    .venv-lmms/bin/python -m timings.lmms_eval                        # about 100 M parameters, 8 and 16 frames
    .venv-lmms/bin/python -m timings.lmms_eval --small --scenes 2 --repeats 1 --size 392 280   # quick trial

The model has random weights, exported in the official layout in bfloat16. Each way computes in `--dtype`. The zoo
computes frame times and text positions as transformers 5 does (docs/positions.md), so the answers must be equal, and
are compared. The ways take turns, each in a separate process. The model is loaded before the clock starts. Everything
from the request to the answer counts: decoding, vision, prefill and generation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from datamodules.inference import batch_of_questions
from datamodules.resize import PixelBounds
from timings.evaluate import TEXTS
from timings.measure import in_a_process, peak_growth, spread, timed
from timings.tables import markdown
from timings.video import write_clip
from zoo import SpatialVLM, TinyQwen25VL
from zoo.benchmarks import VSIBench
from zoo.checkpoints import PretrainedQwen25VL, export_model
from zoo.generation import answer_prompts
from zoo.sequences.time_index import TimestampIndex

NEW_TOKENS = 8  # VSI-Bench's answers are a number or a letter
SIZE = dict(layers=12, hidden_size=768, heads=12, key_value_heads=2, vision_layers=12, vision_hidden_size=512)
PEER, ZOO, ALONE = "lmms-eval, qwen2_5_vl", "lmms-eval, spatial_vlm_zoo", "SpatialVLM.answer"
Ask = Callable[[int | None], list[str]]  # return the answers to all questions, or to the first few

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function media.of
doc_to_text: prompt
doc_to_target: ground_truth
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact_match
"""
MEDIA = """def of(doc):
    return doc["media"]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--questions", type=int, default=18, help="questions per scene; VSI-Bench has 18 on average")
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=[644, 476],
        metavar=("WIDTH", "HEIGHT"),
        help="multiples of 28",
    )
    parser.add_argument("--seconds", type=float, default=20, help="length of a video")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--small", action="store_true", help="a tiny model, as a quick trial")
    parser.add_argument("--way", choices=(PEER, ZOO, ALONE), help="measure only this way, in this process")
    parser.add_argument("--folder", type=Path, help="with --way: where the model and the questions are")
    options = parser.parse_args()
    if find_spec("lmms_eval") is None:
        sys.exit("lmms-eval is not installed here: make lmms-eval, then .venv-lmms/bin/python -m timings.lmms_eval")
    if options.way:
        torch.set_num_threads(options.threads)
        print(json.dumps(measured(options)))
        return
    with TemporaryDirectory() as folder:
        options.folder = Path(folder)
        prepare(options)
        for frames in options.frames:
            compare(options, frames)


def prepare(options: argparse.Namespace) -> None:
    """Write the model, the videos, and a task about them."""
    torch.manual_seed(0)
    model = SpatialVLM(TinyQwen25VL(**({} if options.small else SIZE)))
    for parameter in model.parameters():
        if parameter.ndim == 2:  # weights for which answers differ between questions
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    export_model(model, options.folder / "official", torch.bfloat16)
    zoo = SpatialVLM(
        PretrainedQwen25VL(str(options.folder / "official"), dtype=options.dtype),
        time_index=TimestampIndex(seconds="sampled_fps"),
        text_after_vision="max_hw",
    )
    zoo.save_pretrained(options.folder / "zoo")
    millions = sum(parameter.numel() for parameter in zoo.parameters()) / 1e6
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU threads"
    print(
        f"\nQwen2.5-VL of {millions:.0f} M parameters, {options.dtype}, {where}, {options.scenes} scenes\n", flush=True
    )
    rows = []
    for scene in range(options.scenes):
        video = options.folder / f"{scene}.mp4"
        write_clip(video, 250, options.seconds, *options.size, seed=scene)
        for text in (f"{TEXTS[i % len(TEXTS)]} ({i})" for i in range(options.questions)):
            prompt = VSIBench().user_text(text)  # as in `SpatialVLM.answer`
            rows.append({"media": [str(video)], "question": text, "prompt": prompt, "ground_truth": ""})
    write_task(options.folder / "task", "scenes", rows, NEW_TOKENS)


def write_task(folder: Path, name: str, rows: Sequence[dict[str, Any]], max_new_tokens: int) -> None:
    """Write a local task of lmms-eval. Each row has `media` (files), a `prompt` and a `ground_truth`."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "media.py").write_text(MEDIA)
    task = TASK.format(name=name, rows=folder / "rows.jsonl", max_new_tokens=max_new_tokens)
    (folder / f"{name}.yaml").write_text(task)


def compare(options: argparse.Namespace, frames: int) -> None:
    """Print the table of all ways."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in (PEER, ZOO, ALONE)}
    for _ in range(options.repeats):  # the ways take turns, so that noise of the machine affects all
        for way in found:
            passed = {name: getattr(options, name) for name in ("folder", "device", "threads", "dtype")}
            found[way].append(in_a_process("timings.lmms_eval", way=way, frames=frames, **passed))
    count = options.scenes * options.questions
    seconds = {way: [each["seconds"] / count for each in runs] for way, runs in found.items()}
    print(f"{frames} frames, {options.questions} questions per scene\n")
    expected, rows = found[PEER][0]["answers"], []
    for way, runs in found.items():
        same = sum(a == b for a, b in zip(runs[0]["answers"], expected, strict=True))
        mib = statistics.median(each["memory"] for each in runs) / 2**20
        faster = statistics.median(seconds[PEER]) / statistics.median(seconds[way])
        row = {"way": way, "s per question: median (least to most)": spread(seconds[way])}
        row |= {"times as fast": f"{faster:.1f}", "memory at the peak, MiB": f"{mib:.0f}"}
        rows.append({**row, "equal answers": f"{same} of {count}"})
    print(markdown(rows))
    parts = found[ALONE][0]["parts"]
    print("\nSeconds per scene in the zoo: " + ", ".join(f"{k} {v / options.scenes:.3f}" for k, v in parts.items()))
    print(f"{len(set(expected))} different answers\n", flush=True)
    for row, (a, b) in enumerate(zip(expected, found[ZOO][0]["answers"], strict=True)):
        if a != b:
            print(f"question {row}: {a!r} by lmms-eval, {b!r} by the zoo")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return answers, seconds and memory of one way."""
    parts: dict[str, float] = {}
    ask = alone(options, parts) if options.way == ALONE else in_lmms_eval(options)
    ask(1)  # warm-up, for what is set up once
    parts.clear()
    answers: list[str] = []

    def run() -> None:
        answers.extend(ask(None))

    taken: list[float] = []
    memory = peak_growth(lambda: taken.append(timed(run, options.device)), options.device)
    return {"answers": answers, "seconds": taken[0], "memory": memory, "parts": parts}


def in_lmms_eval(options: argparse.Namespace) -> Ask:
    """Return a call of `generate_until` of one of two models in lmms-eval."""
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager, get_task_dict

    (frames,), folder = options.frames, options.folder
    name, least = options.way.rpartition(", ")[2], PixelBounds().min_pixels
    given = {
        PEER: f"pretrained={folder}/official,max_num_frames={frames},device_map={options.device},min_pixels={least}",
        ZOO: f"run={folder}/zoo,num_frames={frames}",
    }[options.way]
    model = get_model(name).create_from_arg_string(given, {"batch_size": 1, "device": options.device})
    if options.way == PEER:
        model._model.to(getattr(torch, options.dtype))  # it has no option for this
    task = get_task_dict(["scenes"], TaskManager(include_path=str(folder / "task"), model_name=name), "chat")["scenes"]
    model.task_dict["scenes"] = task.dataset
    task.build_all_requests()
    return lambda count: [each.text for each in model.generate_until(task.instances[:count])]


def alone(options: argparse.Namespace, parts: dict[str, float]) -> Ask:
    """Return a call of the zoo alone, which adds the seconds of each step to `parts`."""
    model = SpatialVLM.from_pretrained(options.folder / "zoo").to(options.device)
    rows = [json.loads(line) for line in (options.folder / "task/rows.jsonl").read_text().splitlines()]
    questions: dict[str, list[str]] = {}
    for row in rows:
        questions.setdefault(row["media"][0], []).append(row["question"])

    def part(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        kept: list[Any] = []
        parts[name] = parts.get(name, 0) + timed(lambda: kept.append(call(*arguments)), options.device)
        return kept[0]

    @torch.no_grad()
    def ask(count: int | None) -> list[str]:  # as `SpatialVLM.answer`, step by step
        answers: list[str] = []
        for video, every in list(questions.items())[:count]:
            texts = every[:count]
            batch = part("video and prompts", batch_of_questions, model, video, texts, None, options.frames[0], None)
            scenes = part("vision", model.encode_scenes, batch)
            asked = model, scenes, batch.prompts, NEW_TOKENS
            replies = part("prefix, questions and answers", answer_prompts, *asked)
            answers += model.backbone.preprocessor.decode([reply.ids for reply in replies])
        return answers

    return ask


if __name__ == "__main__":
    main()
