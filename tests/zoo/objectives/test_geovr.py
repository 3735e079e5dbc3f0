"""GeoVR's heads, losses, rules and training step equal the official ones, with controls."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.weights import init_, unit_noise
from zoo import LearningRates, TeacherPose, TinyQwen3VL, VideoQATask
from zoo.objectives import geovr
from zoo.objectives.geovr import GeoVRHeads, expand_tokens, position_ids, run_official
from zoo.published.geovr import our_name

GOLDEN = Path(__file__).parents[2] / "golden/geovr"
TABLES = json.loads((GOLDEN / "tables.json").read_text())


class Case:
    """A golden case: heads with their weights, and the hidden states that they read.

    Args:
        name: Of the case.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.described: dict[str, Any] = json.loads((GOLDEN / f"heads/{name}.json").read_text())
        self.tensors = load_file(GOLDEN / f"heads/{name}.safetensors")
        config = self.described["config"]
        self.teacher, self.width = config["teacher"], config["hidden"]
        self.grids = [(t, h // 2, w // 2) for t, h, w in self.described["grids_thw"]]
        self.size = self.described["teacher_image_hw"]

    @cached_property
    def heads(self) -> GeoVRHeads:
        state = {k: init_(k, torch.empty(shape)) for k, shape in self.described["param_names"].items()}
        state["dpt_head.proj.bias"] += 0.5
        state["camera_head.fc_fov.0.bias"] += 0.8
        layers = self.described["config"]["layers"]
        return GeoVRHeads.from_official(self.teacher, layers, {k: v.double() for k, v in state.items()})

    def states(self, name: str, *shape: int) -> Tensor:
        return unit_noise(f"{self.name}.{name}", shape).double().requires_grad_()

    def hidden(self, sample: int, index: int) -> Tensor:
        steps, rows, columns = self.grids[sample]
        return self.states(f"{sample}.hidden_{index}", steps, rows * columns, self.width)

    def target(self, name: str) -> Tensor:
        return self.tensors[name].double()

    def features(self, sample: int, layer: int) -> Tensor:
        shape = (self.grids[sample][0], *self.described["teacher_features"][str(sample)])
        return unit_noise(f"{self.name}.{sample}.teacher.layer_{layer}", shape).double()

    # the losses, means over the samples

    def camera_loss(self) -> tuple[Tensor, list[Tensor]]:
        states = [self.states(f"{b}.camera", grid[0], self.width) for b, grid in enumerate(self.grids)]
        poses = [self.heads.camera(each) for each in states]
        for b, pose in enumerate(poses):
            torch.testing.assert_close(pose.double(), self.tensors[f"pred_pose_{b}"], atol=1e-9, rtol=0)
        losses = [geovr.camera_loss(pose, self.target(f"pose_{b}")) for b, pose in enumerate(poses)]
        for term, official in (("translation", "T"), ("rotation", "R"), ("focal", "FL")):
            assert self.mean([each[term] for each in losses]).item() == self.loss(f"camera_loss_{official}")
        return self.mean([each["total"] for each in losses]), states

    def depth_loss(self) -> tuple[Tensor, list[Tensor]]:
        losses, read = [], []
        for b, (_, *grid) in enumerate(self.grids):
            hidden = {index: self.hidden(b, index) for index in self.heads.depth_layers}  # two may be one
            depth = self.heads.depth([hidden[index] for index in self.heads.depth_layers], grid, self.size)
            # stored in float32
            torch.testing.assert_close(depth.float(), self.tensors[f"pred_depth_{b}"], atol=1e-5, rtol=1e-5)
            kind = "silog" if self.name == "silog" else "l1"
            losses.append(geovr.depth_loss(depth, self.target(f"depth_{b}"), kind))  # type: ignore[arg-type]
            read += hidden.values()
        if self.name != "silog":
            assert self.mean([each["l1"] for each in losses]).item() == self.loss("depth_loss_reg")
            assert self.mean([each["gradient"] for each in losses]).item() == self.loss("depth_loss_grad")
        return self.mean([each["total"] for each in losses]), read

    def distill_loss(self) -> tuple[Tensor, list[Tensor]]:
        losses, read = [], []
        layers = zip(self.heads.distill_layers, self.heads.teacher_layers, strict=True)
        for i, (index, layer) in enumerate(layers):
            for b, grid in enumerate(self.grids):
                hidden = self.hidden(b, index)
                target = geovr.pool_teacher(self.features(b, layer))
                found = self.heads.distill(hidden.unflatten(1, grid[1:]), i, target.shape[1:3])
                losses.append(geovr.distill_loss(found, target))
                expected = self.described["distill_per_layer_and_sample_f64"][i][b]
                assert losses[-1].item() == pytest.approx(expected, rel=1e-6)
                read.append(hidden)
        return self.mean(losses), read

    def scale_loss(self) -> tuple[Tensor, list[Tensor]]:
        states = self.states("scale", len(self.grids), self.width)
        found = self.heads.scale(states)
        torch.testing.assert_close(found.double(), self.tensors["pred_scale"], atol=1e-9, rtol=0)
        return geovr.scale_loss(found, self.target("gt_scale")), [states]

    def loss(self, name: str) -> Any:
        return pytest.approx(self.described["losses_f64"][name], rel=1e-6)

    @staticmethod
    def mean(losses: list[Tensor]) -> Tensor:
        return torch.stack(losses).mean()


NAMES = ("vggt_same_grid", "vggt_other_grid_b2", "omega", "da3", "silog")
QUICK = ("da3",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_heads_losses_and_gradients(name: str) -> None:
    case = Case(name)
    own = case.described
    assert list(case.heads.distill_layers) == own["hidden_layers_distill"]
    assert list(case.heads.depth_layers) == own["hidden_layers_depth"]
    assert list(case.heads.teacher_layers) == own["teacher_layers"]
    losses: dict[str, Callable[[], tuple[Tensor, list[Tensor]]]] = {
        kind: getattr(case, kind) for kind in ("camera_loss", "depth_loss", "distill_loss", "scale_loss")
    }
    for kind, compute in losses.items():
        loss, read = compute()
        assert loss.item() == case.loss(kind)
        case.heads.zero_grad()
        loss.backward()
        norms = own["grad_l2_norms_f64"][kind]
        found = {k: p.grad.norm().item() for k, p in case.heads.named_official_parameters() if p.grad is not None}
        assert found == pytest.approx({k: v for k, v in norms["parameters"].items() if k in found}, rel=1e-4, abs=1e-12)
        assert not any(value for k, value in norms["parameters"].items() if k not in found)
        expected = [*norms["hidden"].values(), *norms["camera"], *([norms["scale"]] if norms["scale"] else [])]
        of_states = sorted(each.grad.norm().item() for each in read if each.grad is not None)
        assert of_states == pytest.approx(sorted(expected), rel=1e-4), kind


@pytest.mark.parametrize("name", NAMES)
def test_scale_target(name: str) -> None:
    case = Case(name)

    def fitted(b: int, **changed: Tensor) -> float:
        given = {key: case.target(f"{key}_{b}") for key in ("depth", "conf", "pose", "metric_depth", "sky")}
        return geovr.scale_target(**(given | changed), teacher=case.teacher)

    for b, expected in enumerate(case.tensors["gt_scale"].tolist()):
        assert fitted(b) == pytest.approx(expected, rel=1e-6)
        # controls: sky, confidence and focal length count
        assert fitted(b, sky=torch.zeros_like(case.target(f"sky_{b}"))) != pytest.approx(expected, rel=1e-4)
        assert fitted(b, conf=case.target(f"conf_{b}").flip(1)) != pytest.approx(expected, rel=1e-4)
        assert fitted(b, pose=case.target(f"pose_{b}") * 0.9) != pytest.approx(expected, rel=1e-2)


def test_controls_of_the_heads() -> None:
    """The order of the layers and the teacher's layer matter."""
    case = Case("vggt_other_grid_b2")
    hidden, (_, *grid) = [case.hidden(0, index) for index in case.heads.depth_layers], case.grids[0]
    right = case.tensors["pred_depth_0"].double()
    swapped = case.heads.depth(hidden[::-1], grid, case.size)
    assert (swapped - right).abs().max() > 0.1
    target = geovr.pool_teacher(case.features(0, 4))
    hidden_map = case.hidden(0, 1).unflatten(1, grid)
    loss = geovr.distill_loss(case.heads.distill(hidden_map, 0, target.shape[1:3]), target)
    expected = case.described["distill_per_layer_and_sample_f64"]
    assert loss.item() == pytest.approx(expected[0][0], rel=1e-6) != pytest.approx(expected[1][0], rel=1e-4)


def test_tables() -> None:
    for row in TABLES["layers"]:
        found = geovr.geovr_layers(row["teacher"], row["decoder_layers"])
        assert found == {"depth": tuple(row["depth"]), "distill": tuple(row["distill"])}, row
    for teacher, height, width, *expected in TABLES["teacher_sizes"]["rows"]:
        if "unused" not in teacher:
            assert geovr.teacher_size(teacher, height, width) == tuple(expected), (teacher, height, width)
    for row in TABLES["filter_by_quantile"]["rows"]:
        values = unit_noise(f"quantile.{row['i']}", (row["n"],)).double().abs() * row["factor"]
        kept = geovr.without_outliers(values)
        assert len(kept) == row["kept"]
        assert kept.mean().item() == pytest.approx(row["mean"]) and kept.max().item() == pytest.approx(row["max"])


def test_of_many_values_each_process_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.objectives.teacher.MOST_VALUES", 10**4)
    values, found = torch.rand(10**5, generator=torch.Generator().manual_seed(0)), []
    for rank in range(2):
        torch.manual_seed(rank)
        found.append(len(geovr.without_outliers(values)))
    assert found[0] == found[1] == pytest.approx(0.98 * len(values), rel=1e-3)


# ---- a training step -------------------------------------------------------------------------------------------------


STEPS = Path(__file__).parents[2] / "golden/geovr/full"
STEP_NAMES = ("all_heads_b2", "camera_only", "distill_depth_no_tokens")
SEQUENCES = ("input_ids", "attention_mask", "mm_token_type_ids", "labels")
LAYERS = (4, 11, 17, 23)  # of VGGT


def step_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((STEPS / f"{name}.json").read_text()), load_file(STEPS / f"{name}.safetensors")


@pytest.mark.parametrize("name", STEP_NAMES)
def test_tokens_and_their_positions_are_the_official(name: str) -> None:
    described, tensors = step_case(name)
    switches = {"camera": described["config"]["add_camera"], "scale": described["config"]["add_scale"]}
    grids, given = tensors["video_grid_thw"], [tensors[key] for key in SEQUENCES]
    longer = expand_tokens(*given, grids, video_token_id=151, merge_size=2, **switches)
    expected = {key: tensors.get(f"expanded_{key}", tensors[key]) for key in SEQUENCES}
    assert all(torch.equal(found, wanted) for found, wanted in zip(longer, expected.values(), strict=True))
    ids, mask, types, _ = longer
    found = position_ids(ids, types, grids, attention_mask=mask, merge_size=2, **switches)
    assert torch.equal(found, tensors["position_ids"])
    if any(switches.values()):  # a control: the tokens are no 2D tokens
        with pytest.raises(ValueError, match="more placeholder tokens"):
            position_ids(ids, types, grids, attention_mask=mask, merge_size=2, camera=False, scale=False)
    with pytest.raises(ValueError, match="placeholders of videos"):
        expand_tokens(*given, grids + torch.tensor([1, 0, 0]), video_token_id=151, merge_size=2, **switches)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "camera_only" else pytest.mark.slow) for name in STEP_NAMES]
)
def test_a_training_step_is_the_official_one(name: str) -> None:
    described, tensors = step_case(name)
    config, norms = described["config"], described["grad_l2_norms_f64"]
    state = {key: init_(key, torch.empty(shape)) for key, shape in described["param_names"].items()}
    for key, shift in (("dpt_head.proj.bias", 0.5), ("camera_head.fc_fov.0.bias", 0.8)):
        if key in state:
            state[key] += shift
    grids = tensors["video_grid_thw"].tolist()
    rows, side = sum(t * h * w for t, h, w in grids), [pixels // 14 for pixels in described["teacher_image_hw"]]
    targets = []
    for b, (steps, *_) in enumerate(grids):
        features = {
            layer: unit_noise(f"{name}.{b}.teacher.layer_{layer}", (steps, *side, 1024)) if config["distill"] else None
            for layer in LAYERS
        }
        own = {key: tensors.get(f"{key}_{b}") for key in ("pose", "depth", "conf", "metric_depth", "sky")}
        targets.append({**own, "features": features if config["distill"] else {}})
    inputs = {key: tensors[key] for key in (*SEQUENCES, "video_grid_thw")}
    inputs["pixel_values_videos"] = unit_noise(f"{name}.pixel_values_videos", (rows, 1536))
    switches = {key: config[f"add_{key}"] for key in ("camera", "depth", "scale")}
    found = run_official(
        described["qwen"], state, inputs, targets, teacher="vggt", distill=config["distill"], **switches
    )
    expected = described["losses_f64"]
    official = {"lm": "loss", "total": "total", **{key: f"{key}_loss" for key in (*switches, "distill")}}
    for key, theirs in official.items():
        assert found[key] == pytest.approx(expected[theirs], rel=2e-5), key
    assert described["weights"]["camera"] == TeacherPose().weight
    assert found["gradient_norms"].keys() == state.keys()
    for key, norm in found["gradient_norms"].items():
        assert norm == pytest.approx(norms.get(key, 0.0), rel=1e-3, abs=1e-6), key


def test_learning_rates_are_the_official() -> None:
    groups = json.loads((GOLDEN / "optimizer_groups.json").read_text())
    rates = LearningRates(decoder=2e-5, connector=2e-5, objective=1e-4, deepstack_merger="vision")  # of the recipe
    task = VideoQATask(backbone=TinyQwen3VL(layers=2, hidden_size=64, heads=2), learning_rates=rates)

    def rate(official: str) -> float | None:
        return getattr(rates, task.part_of(f"model.{our_name(official)}"))

    assert not any(rate(name) for name in groups["frozen"])
    for group in groups["groups"]:
        assert {rate(name) for name in group["names"]} == {group["lr"]}
    deepstack = [name for name in groups["frozen"] if "deepstack_merger" in name]
    rates.deepstack_merger = None  # a control
    assert deepstack and {rate(name) for name in deepstack} == {2e-5}
