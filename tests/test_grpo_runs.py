"""Runs of GRPO: they start from a supervised run, learn, and resume exactly, in one process and in two."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli import Run, losses_of, weights
from tests.test_two_processes import SMALL, launch
from zoo import SpatialVLM
from zoo.sequences.batch import Record
from zoo.tasks import Reward
from zoo.tasks.grpo import GRPO
from zoo.tasks.video_qa import StepLoss


class Brevity(Reward):
    """Fewer characters are better: something that a model with random weights can learn from."""

    def __call__(self, answers: Sequence[str], records: Sequence[Record]) -> list[float | None]:
        return [-len(answer) / 10 for answer in answers]


REWARD = ("--model.algorithm.rewards", f"[{__name__}.Brevity]")
LEARN = ("--config", "grpo.yaml", "--model.algorithm.num_generations", "3", *REWARD)
FIT = ("fit", "--config", "prope.yaml", *LEARN)


class Interrupted(Exception):
    pass


@contextmanager
def recorded(stop: int | None = None) -> Iterator[list[dict[str, Any]]]:
    """What each update learns from, and its loss; it breaks off before update `stop`."""
    found: list[dict[str, Any]] = []
    step_loss = GRPO.step_loss

    def record(self: GRPO, model: SpatialVLM, *given: Any) -> StepLoss:
        if len(found) == stop:
            raise Interrupted
        before = {f"model.{name}": p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        step = step_loss(self, model, *given)
        assert self.rollout is not None
        ids, reference = self.rollout.sequences.answer_ids.tolist(), self.reference
        shown = {
            "reference": {f"model.{name}": each for name, each in reference.items()},
            "sequences": len(self.rollout.sequences),
        }
        found.append({"loss": step.loss.item(), "ids": ids, "weights": before, "logged": step.logged, **shown})
        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPO, "step_loss", record)
        yield found


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_a_supervised_one(run: Run, tmp_path: Path) -> None:
    supervised = ("--trainer.default_root_dir", "runs/supervised", "--trainer.limit_val_batches", "0")
    fit = ("fit", "--config", "qwen25_vl.yaml")
    run(*fit, *supervised)
    before = weights(tmp_path / "runs/supervised")
    start = ("--model.initial_weights", "runs/supervised/checkpoints/last.ckpt")
    options = (*fit, *LEARN, *start, "--model.algorithm.beta", "0.04", "--model.algorithm.updates", "2")
    words = (*options, "--trainer.log_every_n_steps", "1", "--trainer.default_root_dir", "runs/grpo")
    with recorded() as steps:
        run(*words)
    assert all(torch.equal(before[name], tensor) for name, tensor in steps[0]["weights"].items())
    assert steps[0]["ids"] == steps[1]["ids"] != steps[2]["ids"]  # two updates of each batch
    name = next(iter(before))
    assert not torch.equal(steps[2]["weights"][name], steps[3]["weights"][name])  # the rate of the first step is 0
    logged = steps[-1]["logged"]
    wanted = ("reward", "reward_deviation", "groups_without_signal", "answer_length", "kl", "clipped_high", "loss")
    assert set(wanted) <= logged.keys()
    assert logged["reward_deviation"] > 0 and "sampling_gap" not in logged  # of the second update of a batch
    assert steps[-2]["logged"]["sampling_gap"] < 1e-4
    # a checkpoint of this run goes on with it, under the reference of its start
    words = (*options, "--trainer.max_steps", "3", "--ckpt_path", "runs/grpo/checkpoints/last.ckpt")
    ended = weights(tmp_path / "runs/grpo")
    with recorded() as rest:
        run(*words)
    assert len(rest) == 2 and torch.equal(rest[0]["weights"][name], ended[name])
    assert rest[0]["reference"]
    assert all(torch.equal(tensor, before[each]) for each, tensor in rest[0]["reference"].items())
    # the supervised run is as it was
    after = weights(tmp_path / "runs/supervised")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not torch.equal(ended[name], before[name])


@pytest.mark.slow
def test_a_checkpoint_of_other_objectives_is_a_start_wherever_it_lies(run: Run, tmp_path: Path) -> None:
    """GRPO takes no `MaskedViews`: what they have learned is left behind. A moved checkpoint knows its algorithm."""
    words = ("--model.objectives", "[MaskedViews]", "--trainer.default_root_dir", "runs/supervised")
    run("fit", "--config", "prope.yaml", *words)
    trained, before = "runs/supervised/checkpoints/last.ckpt", weights(tmp_path / "runs/supervised")
    shutil.copyfile(trained, "moved.ckpt")
    options = (*FIT, "--model.algorithm.beta", "0.1", "--trainer.max_steps")
    for folder, start in (("runs/grpo", trained), ("runs/of_moved", "moved.ckpt")):
        with recorded() as steps:
            run(*options, "1", "--model.initial_weights", start, "--trainer.default_root_dir", folder)
        assert len(steps) == 1 and all(torch.equal(before[name], each) for name, each in steps[0]["weights"].items())
    # one of GRPO goes on, also moved out of its run, under the same reference
    shutil.copytree("runs/of_moved/checkpoints", "moved")  # with the optimizer's state
    with recorded() as rest:
        run(*options, "2", "--ckpt_path", "moved/last.ckpt", "--model.initial_weights", start)
    assert len(rest) == 1 and all(torch.equal(before[name], each) for name, each in rest[0]["reference"].items())
    # another model is none
    with pytest.raises(SystemExit, match="last.ckpt"):
        run(*options, "1", "--model.fusion", "null", "--model.initial_weights", trained)
    with pytest.raises(SystemExit, match="another model.algorithm"):  # its training does not go on by another one
        run(*options, "1", "--ckpt_path", trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        ("--model.algorithm.beta", "0.1", "--model.algorithm.loss_type", "dapo", "--data.tokens_per_sequence", "100"),
        ("--model.algorithm.updates", "2", "--model.lora.r", "4"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(extra: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    per_step = 2 if "--model.algorithm.updates" in extra else 1
    words = (*FIT, *extra, "--trainer.max_steps", "4", "--trainer.val_check_interval", "2")
    with recorded() as whole:
        run(*words, "--trainer.default_root_dir", "runs/whole")
    with recorded(stop=3 * per_step), pytest.raises(SystemExit, match="Interrupted"):
        run(*words, "--trainer.default_root_dir", "runs/broken")
    with recorded() as rest:
        run(*words, "--ckpt_path", "runs/broken/checkpoints/last.ckpt", "--trainer.default_root_dir", "runs/broken")
    assert 0 < len(rest) < len(whole)
    num_scenes = 2
    assert ("--data.tokens_per_sequence" in extra) == (whole[0]["sequences"] > num_scenes)
    for resumed, expected in zip(rest, whole[-len(rest) :], strict=True):
        assert (resumed["loss"], resumed["ids"]) == (expected["loss"], expected["ids"])
    ended = weights(tmp_path / "runs/broken")
    assert all(torch.equal(ended[name], tensor) for name, tensor in weights(tmp_path / "runs/whole").items())


@pytest.mark.slow
def test_bad_settings_are_refused(run: Run) -> None:
    for options, text in (
        (("--model.algorithm.num_generations", "1"), "at least 2"),
        (("--model.algorithm.temperature", "0"), "above 0"),
        (("--model.algorithm.loss_type", "ppo"), "grpo"),
        (("--data.pack_scenes", "true"), "sequences of its own for each scene"),
        (("--model.algorithm.loss_type", "dapo", "--trainer.accumulate_grad_batches", "2"), "counts a step's tokens"),
    ):
        with pytest.raises(SystemExit, match=text):
            run(*FIT, *options)


TWO = [
    *("fit", "--config", "prope.yaml", "--config", "grpo.yaml", *SMALL, "--trainer.devices", "2"),
    *("--model.algorithm.num_generations", "3", "--model.algorithm.beta", "0.1"),
    *("--model.algorithm.loss_type", "dapo", *REWARD),
]


@pytest.mark.slow
def test_grpo_in_shards_learns_as_in_copies(tmp_path: Path, rooms_root: Path) -> None:
    """Each process samples answers of other lengths, by its own seed; both strategies draw the same."""
    learn = [*TWO, "--data.source.root", str(rooms_root), "--trainer.max_steps", "3"]
    learn += ["--trainer.log_every_n_steps", "1"]
    found = {}
    for strategy in ("ddp", "fsdp2"):
        words = ("--trainer.strategy", strategy, "--trainer.default_root_dir", f"runs/{strategy}")
        launch(tmp_path, *learn, *words)
        found[strategy] = weights(tmp_path / "runs" / strategy)
    for name, tensor in found["ddp"].items():
        torch.testing.assert_close(found["fsdp2"][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert any(value for values in losses_of(tmp_path / "runs/ddp").values() for value in values)  # it has learned


@pytest.mark.slow
def test_grpo_in_two_processes_resumes_exactly(tmp_path: Path, rooms_root: Path) -> None:
    """Samples, losses and weights; the control: two steps are not four."""
    learn = [*TWO, "--data.source.root", str(rooms_root), "--trainer.max_steps", "4", "--trainer.strategy", "fsdp2"]
    launch(tmp_path, *learn, "--trainer.default_root_dir", "runs/whole")
    stop = ["--trainer.callbacks+", "tests.callbacks.stopping.StopAfterStep", "--trainer.callbacks.step", "2"]
    launch(tmp_path, *learn, *stop, "--trainer.default_root_dir", "runs/parts")
    whole, half = (weights(tmp_path / "runs" / name) for name in ("whole", "parts"))
    assert any(not torch.equal(whole[name], tensor) for name, tensor in half.items())
    resume = ["--ckpt_path", "runs/parts/checkpoints/last.ckpt", "--trainer.default_root_dir", "runs/parts"]
    launch(tmp_path, *learn, *resume)
    ended = weights(tmp_path / "runs/parts")
    assert all(torch.equal(ended[name], tensor) for name, tensor in whole.items())
