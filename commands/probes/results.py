"""Probe all layers for all targets, and show the results as a table and a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from commands.probes.hidden_states import SceneStates
from commands.probes.ridge import cross_validated_r2
from zoo.files.atomic_io import replace_file
from zoo.progress import progress

COLORS = {"before": "#2166ac", "after": "#b2182b"}


@dataclass(frozen=True)
class Probe:
    """How much of one target a linear map of each layer explains.

    Attributes:
        model: `before` training, or `after` it.
        tokens: `visual` or `text`.
        target: Name of the target.
        r2: R² of each layer, see `cross_validated_r2`. The embeddings come first.
        shuffled: The same with the targets of another scene.
    """

    model: str
    tokens: str
    target: str
    r2: list[float]
    shuffled: list[float]

    @property
    def best(self) -> int:
        """The layer with the highest R²."""
        return max(range(len(self.r2)), key=self.r2.__getitem__)


def probe_states(model: str, scenes: Sequence[SceneStates], folds: int) -> list[Probe]:
    """Probe all layers for all targets of the scenes.

    Args:
        model: Name of the model, for the results.
        scenes: Samples of the scenes.
        folds: Number of parts in the cross-validation.
    """
    found = []
    for tokens in scenes[0].states:
        counts = [each.states[tokens].shape[1] for each in scenes]
        number = torch.arange(len(scenes)).repeat_interleave(torch.tensor(counts))
        states = torch.cat([each.states[tokens] for each in scenes], 1)
        targets: list[Tensor] = []
        names = list(dict.fromkeys(name for each in scenes for name in each.targets[tokens]))
        for name in names:
            width = next(each.targets[tokens][name].shape[1] for each in scenes if name in each.targets[tokens])
            unknown = [torch.full((count, width), torch.nan) for count in counts]
            own = [each.targets[tokens].get(name, none) for each, none in zip(scenes, unknown, strict=True)]
            targets += [torch.cat(own), torch.cat(shuffled(own))]
        layers = progress(states, f"probe {model}, {tokens} tokens", "layers")
        scores = zip(*(cross_validated_r2(layer, targets, number, folds) for layer in layers), strict=True)
        for name, r2, control in zip(names, *[scores] * 2, strict=True):
            if not all(map(math.isnan, r2)):
                found.append(Probe(model, tokens, name, list(r2), list(control)))
    return found


def shuffled(targets: Sequence[Float[Tensor, "_samples k"]]) -> list[Float[Tensor, "_samples k"]]:
    """Give each scene the targets of another scene, sample by sample. The position of a token remains informative.

    Unknown targets remain unknown. If a target is unknown only in the other scene, another sample of that scene is
    used.
    """
    known = [n for n, each in enumerate(targets) if each.isfinite().any()]
    order = [known[i] for i in torch.randperm(len(known), generator=torch.Generator().manual_seed(0)).tolist()]
    found = list(targets)
    for n, other in zip(order, [*order[1:], *order[:1]], strict=True):
        own, place = targets[n], torch.arange(len(targets[n]))
        is_known = targets[other].isfinite().all(1)
        same_place, spare = targets[other][place % len(is_known)], targets[other][is_known]
        given = torch.where(is_known[place % len(is_known), None], same_place, spare[place % len(spare)])
        found[n] = torch.where(own.isfinite().all(1, keepdim=True), given, torch.nan)
    return found


def table(probes: Sequence[Probe], scenes: int) -> Table:
    """Return the best layer of each target before and after training, and the number of scenes."""
    models = list(dict.fromkeys(probe.model for probe in probes))
    headings = ("tokens", "target", *(f"R², {model}" for model in models), "shuffled")
    made = Table(*headings, title=f"{scenes} scenes", title_justify="left", box=None, pad_edge=False)
    for (tokens, target), own in _by_target(probes).items():
        best = [f"{own[m].r2[own[m].best]:.2f} (layer {own[m].best})" if m in own else "-" for m in models]
        control = max(max(probe.shuffled) for probe in own.values())
        made.add_row(tokens, target, *best, f"{control:.2f}")
    return made


def draw(probes: Sequence[Probe], scenes: int, output: Path) -> None:
    """Draw one panel per target: R² of each layer before and after training, and with shuffled targets."""
    groups = _by_target(probes)
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(3.1 * columns, 0.6 + 2.3 * rows), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for panel, ((tokens, target), own) in zip(panels, groups.items(), strict=False):
        panel.set_title(f"{target}\n{tokens} tokens", loc="left", fontsize=10, fontweight="bold")
        for model, probe in own.items():
            color = COLORS.get(model, "#787878")
            panel.plot(probe.r2, color=color, marker="o", markersize=3, label=model)
            panel.plot(probe.shuffled, color=color, linestyle=":", label=f"{model}, shuffled targets")
        panel.set(ylim=(-0.25, 1.0), xlabel="layer (0: embeddings)")
        panel.tick_params(labelbottom=True)
        panel.grid(axis="y", color="#e1e1e1")
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    panels[0].set_ylabel("R² on other scenes")
    legend = {name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    title = f"{scenes} scenes"
    figure.legend(legend.values(), legend.keys(), title=title, loc="outside upper center", ncols=4)
    replace_file(output, lambda file: figure.savefig(file, format="png"))


def as_json(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """Return the probes as JSON content, with NaN as null."""
    known = [asdict(probe) for probe in probes]
    for each in known:
        each |= {name: [None if math.isnan(r2) else r2 for r2 in each[name]] for name in ("r2", "shuffled")}
    return known


def _by_target(probes: Sequence[Probe]) -> Mapping[tuple[str, str], dict[str, Probe]]:
    groups: dict[tuple[str, str], dict[str, Probe]] = {}
    for probe in probes:
        groups.setdefault((probe.tokens, probe.target), {})[probe.model] = probe
    return groups
