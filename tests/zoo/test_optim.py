"""Parameter groups as the official trainer makes them, and the schedule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn

from commands.cli import TRAINER_DEFAULTS
from zoo import CameraPrediction, MaskedViews, SpatialVLM, TinyQwen25VL, VideoQATask
from zoo.backbones.official_names import backbone_names
from zoo.encodings import GTA
from zoo.errors import InputError
from zoo.tasks.base import LearningRates, WarmupCosine, freeze, parameter_groups

part_of = SpatialVLM(TinyQwen25VL(layers=1, hidden_size=32, heads=2)).part_of
GOLDEN = json.loads((Path(__file__).parents[1] / "golden/manifests/optimizer_groups_3b.json").read_text())


def ours(name: str) -> str:
    """The name in a SpatialVLM of a parameter of the official model."""
    if name.startswith("spatial_encoder."):
        return name.replace("spatial_encoder.", "geometry.", 1)
    return (
        name.replace("connector.", "fusion.", 1)
        if name.startswith("connector.")
        else f"backbone.vlm.{backbone_names().current(name)[0]}"
    )


def test_groups_and_rates_are_the_official_trainers() -> None:
    named = {ours(name): nn.Parameter(torch.zeros(1)) for group in GOLDEN["groups"] for name in group["names"]}
    names = {id(parameter): name for name, parameter in named.items()}
    groups = parameter_groups(named.items(), LearningRates(), part_of)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    made = {
        frozenset(names[id(p)] for p in group["params"]): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    }
    rates = {"base (7e-6)": 7e-6, "2e-05": 2e-5}
    expected = {
        frozenset(map(ours, group["names"])): (rates[str(group["lr"])], group["weight_decay"])
        for group in GOLDEN["groups"]
    }
    assert made == expected


def test_what_the_official_trainer_freezes_is_frozen() -> None:
    for prefix in GOLDEN["frozen_prefixes"]:
        assert getattr(LearningRates(), part_of(ours(prefix.rstrip(".*") + ".0.weight"))) is None, prefix


def test_what_an_encoding_learns_is_not_decayed_in_the_decoder_nor_in_the_view_mixer() -> None:
    names = ("camera_encoding.layers.0.weight", "view_mixer.encoding.layers.0.weight", "view_mixer.q_proj.weight")
    assert [part_of(name) for name in names] == ["encoding", "encoding", "connector"]


def test_a_part_without_a_rate_is_frozen_and_in_no_group() -> None:
    module = nn.ModuleDict({"fusion": nn.Linear(2, 2), "geometry": nn.Linear(2, 2), "backbone": nn.Linear(2, 2)})
    rates = LearningRates(connector=None)
    freeze(module, rates, part_of)
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["backbone.weight", "backbone.bias"]
    assert [group["name"] for group in parameter_groups(module.named_parameters(), rates, part_of)] == [
        "decoder",
        "decoder/bias",
    ]


def test_parameters_of_an_encoding_have_their_own_rate_and_no_decay() -> None:
    encoding = GTA(learn_scale=True)
    module = nn.ModuleDict({"camera_encoding": encoding, "backbone": nn.Linear(2, 2, bias=False)})
    decoder, learned = parameter_groups(module.named_parameters(), LearningRates(encoding=1e-2), part_of)[::-1]
    assert learned["params"] == [encoding.log_scale]
    assert (learned["lr"], learned["weight_decay"]) == (1e-2, 0.0)
    assert decoder["lr"] == 7e-6 and "weight_decay" not in decoder


def test_heads_and_tokens_of_objectives_have_their_own_rate() -> None:
    task = VideoQATask(objectives=[CameraPrediction(), MaskedViews()], learning_rates=LearningRates(objective=3e-3))
    found = parameter_groups(task.named_parameters(), task.learning_rates, task.part_of)
    groups: dict[str, Any] = {str(each["name"]): each for each in found}
    of_objectives = {id(p) for name in ("objective", "objective/bias") for p in groups[name]["params"]}
    assert of_objectives == {id(p) for name, p in task.named_parameters() if name.startswith("model.objectives.")}
    assert len(of_objectives) > 3
    assert groups["objective"]["lr"] == groups["objective/bias"]["lr"] == 3e-3 != groups["decoder"]["lr"]


def test_a_fit_without_a_number_of_steps_is_refused(tmp_path: Path) -> None:
    task = VideoQATask(backbone=TinyQwen25VL(layers=1, hidden_size=32, heads=2))
    task.trainer = Trainer(max_epochs=-1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    with pytest.raises(InputError, match="max_epochs -1 and --trainer.max_steps -1: the schedule .* needs a number"):
        task.configure_optimizers()


@pytest.mark.parametrize(("total", "fraction"), [(100, 0.03), (10, 0.0)])
def test_the_schedule_warms_up_and_comes_down(total: int, fraction: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = WarmupCosine(optimizer, total, fraction)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    peak = rates.index(max(rates))
    assert peak <= -(-total * fraction // 1) and rates[peak] == pytest.approx(2.0)
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


class TwoGroups(LightningModule):
    """Two optimizer groups, with gradients in proportion to the batch."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
        self.size = size

    def training_step(self, batch: list[int], batch_idx: int) -> torch.Tensor:
        return self.size * batch[0] * (self.one.sum() + 2 * self.two[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [self.one]}, {"params": [self.two]}], lr=1.0)


@pytest.mark.parametrize(("size", "norm"), [(30.0, 1.0), (0.01, 0.02 * 7**0.5)])
def test_the_gradient_of_a_whole_step_is_clipped_over_all_groups(size: float, norm: float, tmp_path: Path) -> None:
    """The mean over batches 1, 2 and 3; two processes do the same in tests/zoo/test_fsdp2.py."""
    task = TwoGroups(size)
    settings: dict[str, Any] = {**TRAINER_DEFAULTS, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=1, accumulate_grad_batches=3, logger=False, default_root_dir=tmp_path, **settings
    )
    trainer.fit(task, torch.utils.data.DataLoader([1, 2, 3], collate_fn=list))  # type: ignore[arg-type]
    update = -torch.cat([task.one, task.two]).detach()
    assert update.norm().item() == pytest.approx(norm)
    torch.testing.assert_close(update / norm, torch.tensor([1.0, 1.0, 1.0, 2.0, 0.0]) / 7**0.5)
