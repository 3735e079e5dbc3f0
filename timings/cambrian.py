"""Many questions about one video in Cambrian-S: the zoo and the modules of transformers, with the same weights.

    python -m timings.cambrian                       # a Cambrian-S of about 100 M parameters
    python -m timings.cambrian --size tiny --questions 1 18
    python -m timings.cambrian --device cuda

transformers has no Cambrian-S. The peer puts it together from `SiglipVisionModel`, LLaVA-NeXT's projector and
`Qwen2ForCausalLM` as the published code does: for each question it encodes all frames, pools them, and reads the whole
prompt. A step accumulates the gradients of the questions of a scene, with a frozen vision encoder. An evaluation
answers them greedily, with EOS switched off. Losses and answers of both must be equal. Squares are already in memory.
Memory is the growth at the peak of a call, each in a separate process.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.collate import QuestionCollate, TrainingCollate
from datamodules.scenes import Question
from timings.evaluate import NEW_TOKENS, TEXTS
from timings.measure import add_options, in_a_process, interleaved, peak_growth, processor, spread
from timings.tables import markdown
from timings.training import RATE, TOLERANCE, task_step
from zoo import LearningRates
from zoo.generation import answer_batch
from zoo.published.cambrian_s import CambrianS, TinyCambrianS, normalize_colors
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.packing import IGNORED
from zoo.tasks.base import fused_adamw

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"image_size": 112, "frame_tokens": 16},
    "100M": {
        "layers": 12,
        "hidden_size": 768,
        "heads": 12,
        "key_value_heads": 2,
        "vision_layers": 12,
        "vision_hidden_size": 512,
        "image_size": 378,
        "frame_tokens": 64,
    },
}
Work = Callable[[], Any]  # a step, which returns the loss, or an evaluation, which returns the answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="100M")
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 18], help="questions per scene")
    parser.add_argument("--frames", type=int, default=8)
    add_options(parser)
    parser.add_argument("--memory-of", choices=tuple(WORK), help="print only the memory of one call")
    parser.add_argument("--way", choices=WAYS, help="of --memory-of")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        work = WORK[options.memory_of][options.way](options, options.questions[0])
        work()
        print(json.dumps(peak_growth(work, options.device)))
        return
    parameters = sum(each.numel() for each in loader(options).stock_model().parameters()) / 1e6
    print(f"{parameters:.1f} M parameters, float32, {options.frames} frames, {processor(options)}\n")
    for name in WORK:
        print(markdown([row for count in options.questions for row in rows(options, name, count)]) + "\n", flush=True)


def rows(options: argparse.Namespace, name: str, count: int) -> list[dict[str, object]]:
    """Return the table of both ways for a scene with `count` questions."""
    work = {way: build(options, count) for way, build in WORK[name].items()}
    found = {way: run() for way, run in work.items()}  # which is the warm-up
    seconds = interleaved(work, options.repeats, options.device, warm_up=False)
    middle = {way: statistics.median(each) for way, each in seconds.items()}
    stock, zoo = (found[way] for way in WAYS)
    is_equal = stock == zoo if isinstance(stock, list) else abs(stock - zoo) <= TOLERANCE * stock
    if not is_equal:
        sys.exit(f"{name}: the results differ: {found}")
    return [
        {
            "of a scene": name,
            "questions": count,
            "way": way,
            "s: median (least to most)": spread(seconds[way], 2),
            "times the peer": f"{middle[WAYS[0]] / middle[way]:.1f}",
            "memory at the peak, MiB": f"{memory_in_a_process(options, name, count, way) / 2**20:.0f}",
        }
        for way in WAYS
    ]


def memory_in_a_process(options: argparse.Namespace, name: str, count: int, way: str) -> int:
    passed = {each: getattr(options, each) for each in ("size", "frames", "height", "width", "device", "threads")}
    return in_a_process("timings.cambrian", memory_of=name, way=way, questions=[count], **passed)


def loader(options: argparse.Namespace) -> TinyCambrianS:
    return TinyCambrianS(**SIZES[options.size], seed=0)


def task_of(options: argparse.Namespace) -> CambrianS:
    task = CambrianS(loader(options), learning_rates=LearningRates(decoder=RATE, connector=RATE, vision=None))
    task.model.backbone.stop_tokens = []
    return task.to(options.device)


def batch(
    options: argparse.Namespace, task: CambrianS, count: int, *, is_training: bool, is_packed: bool = True
) -> Batch:
    """Return a scene of noise with `count` questions, which share a sequence or have one each."""
    shape = (options.frames, 3, options.height, options.width)
    video = torch.randint(0, 255, shape, dtype=torch.uint8, generator=torch.manual_seed(0)).repeat_interleave(2, 0)
    asked = tuple(Question(str(i), "object_counting", TEXTS[i % len(TEXTS)], str(7**i)) for i in range(count))
    scene = LoadedScene("noise", asked, video, kind="image", frame_indices=tuple(range(len(video))))
    spec = replace(task.model_spec(training=is_training), packs_questions=is_packed)
    collate = TrainingCollate(spec) if is_training else QuestionCollate(spec, questions_per_batch=count)
    return collate([scene]).to(options.device)


def zoo_step(options: argparse.Namespace, count: int) -> Work:
    """Return a step on all questions after the video that they share."""
    task = task_of(options).train()
    step = task_step(task, batch(options, task, count, is_training=True))
    return lambda: float(step())


def zoo_answers(options: argparse.Namespace, count: int) -> Work:
    """Return an evaluation that reads the video once."""
    task = task_of(options).eval()
    asked = batch(options, task, count, is_training=False)
    return lambda: [reply.ids for reply in answer_batch(task.model, asked, NEW_TOKENS)]


# ---- The peer --------------------------------------------------------------------------------------------------------


class Peer:
    """Cambrian-S from transformers' modules, with one question per row.

    Args:
        options: The options of this command.
        count: Number of questions.
        is_training: Whether the rows have answers.
    """

    def __init__(self, options: argparse.Namespace, count: int, *, is_training: bool) -> None:
        task = task_of(options)
        asked = batch(options, task, count, is_training=is_training, is_packed=False)
        (scene,) = asked.scenes
        self.vlm: Any = loader(options).stock_model().to(options.device)
        self.vlm.model.vision_tower.requires_grad_(False)
        side = self.vlm.config.vision_config.image_size
        self.squares = normalize_colors(scene.pixel_values).unflatten(1, (3, side, side))
        _, self.rows, self.columns = scene.token_grid
        self.image = task.model.backbone.placeholders.image
        self.prompts: list[Tensor] = []
        self.labels: list[Tensor] = []
        if asked.sequences is None:
            for prompt in asked.prompts:
                shared = prompt.prefix.input_ids[0].tolist()
                self.prompts += [
                    torch.tensor([[*shared, *own]]).to(options.device) for part in prompt.passes for own in part
                ]
        else:
            sequences = asked.sequences
            labels = torch.full_like(sequences.input_ids, IGNORED).flatten()
            labels[sequences.answer_places + 1] = sequences.answer_ids
            for ids, own, length in zip(
                sequences.input_ids, labels.view_as(sequences.input_ids), sequences.lengths, strict=True
            ):
                self.prompts.append(ids[None, :length])
                self.labels.append(own[None, :length])

    def embeddings(self, ids: Tensor) -> Tensor:
        """Return the embeddings of a prompt, with the tokens of all frames in place of their placeholders."""
        model = self.vlm.model
        with torch.no_grad():
            states = model.vision_tower(self.squares, output_hidden_states=True).hidden_states[-1]
        patches = math.isqrt(states.shape[1])
        maps = model.multi_modal_projector(states).unflatten(1, (patches, patches)).permute(0, 3, 1, 2)
        side = max(self.rows, self.columns)
        pooled = F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
        top, left = (side - self.rows) // 2, (side - self.columns) // 2
        kept = pooled[..., top : top + self.rows, left : left + self.columns]
        newline = model.image_newline[None, :, None, None].expand(len(kept), -1, self.rows, 1)
        visual = torch.cat((kept, newline), -1).flatten(2).mT.flatten(0, 1)
        embedded = self.vlm.get_input_embeddings()(ids)
        return embedded.masked_scatter((ids == self.image).unsqueeze(-1), visual)


def stock_step(options: argparse.Namespace, count: int) -> Work:
    """Return a step that accumulates the gradients of one question per row."""
    peer = Peer(options, count, is_training=True)
    trained = [each for each in peer.vlm.parameters() if each.requires_grad]
    optimizer = fused_adamw([{"params": trained, "lr": RATE}], weight_decay=0.0)

    def step() -> float:
        total = 0.0
        for ids, labels in zip(peer.prompts, peer.labels, strict=True):
            loss = peer.vlm(inputs_embeds=peer.embeddings(ids), labels=labels).loss / count
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def stock_answers(options: argparse.Namespace, count: int) -> Work:
    """Return an evaluation that reads the video for each question."""
    peer = Peer(options, count, is_training=False)
    peer.vlm.eval()
    settings: Any = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}

    @torch.no_grad()
    def answer() -> list[list[int]]:
        embedded = (peer.embeddings(ids) for ids in peer.prompts)
        return [peer.vlm.generate(inputs_embeds=each, **settings)[0].tolist() for each in embedded]

    return answer


WAYS = ("transformers", "the zoo")
WORK: dict[str, dict[str, Callable[[argparse.Namespace, int], Work]]] = {
    "step": dict(zip(WAYS, (stock_step, zoo_step), strict=True)),
    "evaluation": dict(zip(WAYS, (stock_answers, zoo_answers), strict=True)),
}


if __name__ == "__main__":
    main()
