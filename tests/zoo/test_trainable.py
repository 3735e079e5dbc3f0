"""What trains: in float32, in its group of the optimizer, with a gradient in every batch and process."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.tiny import BACKBONES, QUESTIONS, RATES, VGGT, tiny_backbone, tiny_batch, tiny_scene
from zoo import (
    GTA,
    AddFusion,
    CameraPrediction,
    ConcatSplitFusion,
    DeepFusion,
    DepthPrediction,
    ExtraChannels,
    LearningRates,
    MaskedViews,
    PoseALiBi,
    SpatialVLM,
    TinyQwen25VL,
    TinyVGGT,
)
from zoo.backbones.lora import LoRA
from zoo.backbones.pretrained import PretrainedQwen25VL
from zoo.encodings import PRoPE, ViewAttention
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.geometry.vggt import DINOV2
from zoo.geometry.vggt import VGGT as VGGTModel
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.sequences.batch import Batch
from zoo.tasks import VideoQATask
from zoo.tasks.base import WarmupCosine, parameter_groups

LAYERS = 2  # of the decoder
TRAINED_GEOMETRY = LearningRates(decoder=1e-3, connector=1e-3, vision=1e-3, geometry=1e-3)


def task(dtype: str = "float32", rates: LearningRates = RATES, **parts: Any) -> VideoQATask:
    torch.manual_seed(0)
    return VideoQATask(backbone=tiny_backbone(layers=LAYERS, dtype=dtype), learning_rates=rates, **parts)


def training_batch(model: VideoQATask, cameras: bool = True) -> Batch:
    """Two questions on a scene; without cameras as a dataset has it whose poses are all invalid."""
    loaded = tiny_scene("a", QUESTIONS[:2])
    if not cameras:
        assert loaded.geometry is not None
        none = torch.zeros(len(loaded.frame_indices), dtype=torch.bool)
        loaded = replace(loaded, geometry=SceneGeometry(**{**loaded.geometry.present(), "has_camera": none}))
    return tiny_batch(model, loaded, training=True)


def ask_for_no_cameras(model: VideoQATask) -> None:
    spec = replace(model.model_spec(), requires_cameras=False)
    model.model_spec = lambda training=False: spec  # type: ignore[method-assign]


def gradients(model: VideoQATask, cameras: bool = True) -> dict[str, Tensor | None]:
    model.zero_grad()
    if not cameras:
        ask_for_no_cameras(model)
    model.loss(training_batch(model, cameras)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


HALF: dict[str, dict[str, Any]] = {
    "whole decoder": {"rates": LearningRates(decoder=7e-6)},
    "LoRA": {"rates": LearningRates(decoder=7e-6), "lora": LoRA(r=4)},
    "fusion": {"rates": LearningRates(decoder=None), "fusion": ConcatSplitFusion, **VGGT},
    "vision": {"rates": LearningRates(decoder=None, vision=7e-6)},
    "encoding": {"rates": LearningRates(), "lora": LoRA(r=4), "camera_encoding": PRoPE(ExtraChannels())},
}


def modes(model: VideoQATask) -> dict[str, bool]:
    """Whether each module is in training mode, by the slow reference: those whose parameters are all frozen aren't."""
    frozen = model.learning_rates.frozen()
    found = {}
    for name, module in model.named_modules():
        parts = {model.part_of(f"{name}.{each}") for each, _ in module.named_parameters()}
        found[name] = not (name and parts and parts <= frozen)
    for name, is_training in list(found.items()):
        if not is_training:
            found |= {each: False for each in found if each.startswith(f"{name}.")}
    return found


@pytest.mark.parametrize("name", ["fusion", "vision", "encoding"])
def test_frozen_parts_stay_in_eval_mode(name: str) -> None:
    model = task(**HALF[name])
    expected = modes(model)
    assert 10 < sum(expected.values()) < len(expected) - 10
    assert {each: module.training for each, module in model.train().named_modules()} == expected
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("family", BACKBONES)
def test_what_trains_in_float32_follows_a_frozen_bfloat16_encoder_also_without_autocast(family: str) -> None:
    model = VideoQATask(backbone=tiny_backbone(family, 4, dtype="bfloat16"), learning_rates=LearningRates(decoder=7e-6))
    batch = tiny_batch(model, tiny_scene("a", family=family), training=True)
    (loss := model.train().loss(batch)).backward()
    dtypes = {parameter.dtype for parameter in model.model.backbone.parameters()}
    assert loss.isfinite() and dtypes == {torch.float32, torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        assert model.loss(batch).item() == pytest.approx(loss.item(), rel=2e-2)


@pytest.mark.parametrize("name", HALF)
def test_what_trains_is_float32_beside_bfloat16(name: str) -> None:
    model = task("bfloat16", **HALF[name])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = [p.dtype for p in model.model.backbone.parameters() if not p.requires_grad]
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert set(frozen) == {torch.bfloat16}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=7e-6, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(training_batch(model))
        loss.backward()
        optimizer.step()
    for name, parameter in trained.items():
        pushed = parameter.grad != 0  # type: ignore[operator]
        moved = parameter.detach() != before[name]
        assert moved[pushed].float().mean() > 0.9 or not pushed.any(), name
    # the control: in bfloat16 nearly all of these updates are lost
    weight = next(p for name, p in before.items() if p.ndim == 2 and (p != 0).any())
    half = weight[weight != 0].bfloat16()
    assert ((half - 7e-6).bfloat16() == half).float().mean() > 0.5


@pytest.mark.parametrize("trained", [False, True])
def test_checkpointing_keeps_the_graph_of_a_trained_tower_alone(trained: bool) -> None:
    rates = LearningRates(decoder=1e-3, connector=1e-3, vision=1e-3 if trained else None)
    plain, checkpointed = (task(rates=rates, gradient_checkpointing=each) for each in (False, True))
    tower = checkpointed.model.backbone.vlm.model.visual
    requires: list[bool] = []
    runs: list[bool] = []
    for block in tower.blocks:
        block.register_forward_hook(lambda _, inputs, output: requires.append(output.requires_grad))
        block.attn.register_forward_hook(lambda *_: runs.append(True))
    expected, found = gradients(plain), gradients(checkpointed)
    assert requires == [trained] * len(tower.blocks)
    assert len(runs) == len(tower.blocks) * (2 if trained else 1)  # recomputed in the backward pass
    assert expected.keys() == found.keys() and any(".visual." in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


# ---- groups of the optimizer, and the schedule -----------------------------------------------------------------

part_of = SpatialVLM(TinyQwen25VL(layers=1, hidden_size=32, heads=2)).part_of
GOLDEN = json.loads((Path(__file__).parents[1] / "golden/manifests/optimizer_groups_3b.json").read_text())


def ours(name: str) -> str:
    """The name in a SpatialVLM of a parameter of the official model."""
    if name.startswith("spatial_encoder."):
        return name.replace("spatial_encoder.", "geometry.", 1)
    return (
        name.replace("connector.", "fusion.", 1)
        if name.startswith("connector.")
        else f"backbone.vlm.{PretrainedQwen25VL.backbone_names().current(name)[0]}"
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
    names = ("camera_encoding.layers.0.weight", "view_mixer.encoding.layers.0.weight", "view_mixer.q_proj.weight")
    assert [part_of(name) for name in names] == ["encoding", "encoding", "connector"]


def test_parameters_of_an_encoding_have_their_own_rate_and_no_decay() -> None:
    encoding = GTA(learn_scale=True)
    module = nn.ModuleDict({"camera_encoding": encoding, "backbone": nn.Linear(2, 2, bias=False)})
    decoder, learned = parameter_groups(module.named_parameters(), LearningRates(encoding=1e-2), part_of)[::-1]
    assert learned["params"] == [encoding.log_scale]
    assert (learned["lr"], learned["weight_decay"]) == (1e-2, 0.0)
    assert decoder["lr"] == 7e-6 and "weight_decay" not in decoder


def test_adapters_of_a_frozen_decoder_are_refused() -> None:
    with pytest.raises(InputError, match="--model.lora .*--model.learning_rates.decoder"):
        task(rates=LearningRates(decoder=None), lora=LoRA(r=2))


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


# ---- a gradient for each ---------------------------------------------------------------------------------------


def dino_vggt() -> VGGTEncoder:
    aggregator = dict(embed_dim=32, img_size=56, depth=3, num_heads=2, patch_embed="tiny")
    return VGGTEncoder(VGGTModel(aggregator, {"dim_in": 64, "num_heads": 2}), (0, -2))


def vggt() -> TinyVGGT:
    return TinyVGGT(embed_dim=32, depth=2, num_heads=2)


REACHED: dict[str, dict[str, Any]] = {
    "baseline": {},
    "trained geometry": {"fusion": AddFusion, "geometry": vggt},
    "trained geometry, an earlier layer of DINOv2's": {"fusion": AddFusion, "geometry": dino_vggt},
    "trained geometry, its cameras": {"geometry": vggt, "camera_encoding": PRoPE(), "camera_source": "predicted"},
    "trained geometry, cameras of some": {"geometry": vggt, "camera_encoding": PRoPE(), "camera_source": "auto"},
    "ConcatSplitFusion 2d": {"fusion": partial(ConcatSplitFusion, active_branches="2d"), "geometry": vggt},
    "ConcatSplitFusion 3d": {
        "fusion": partial(ConcatSplitFusion, active_branches="3d"),
        "geometry": vggt,
        "view_mixer": partial(ViewAttention, head_dim=16),
    },
    "DeepFusion": {"fusion": partial(DeepFusion, decoder_layers=[0]), "geometry": vggt},
    "ExtraChannels": {"camera_encoding": PRoPE(ExtraChannels())},
    "PoseALiBi": {"camera_encoding": PoseALiBi(slopes="learned")},
    "ViewAttention": {"view_mixer": lambda width: ViewAttention(width, 16, GTA(learn_scale=True))},
    "objectives": {"objectives": [CameraPrediction(layer=0), DepthPrediction(weight=0.0), MaskedViews()]},
}


def reached(name: str) -> VideoQATask:
    return task(rates=TRAINED_GEOMETRY, **REACHED[name])


@pytest.mark.parametrize("name", REACHED)
def test_every_trainable_parameter_has_a_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DINOV2, "tiny", (32, 2, 2))
    model = reached(name)
    for cameras in (True, False):
        found = gradients(model, cameras)
        assert found and not [parameter for parameter, gradient in found.items() if gradient is None], cameras


def test_what_is_frozen_is_what_the_configuration_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: each of these has a gradient where it is used."""
    monkeypatch.setitem(DINOV2, "tiny", (32, 2, 2))

    def frozen(name: str) -> set[str]:
        names = {name.removeprefix("model.") for name, p in reached(name).named_parameters() if not p.requires_grad}
        return {".".join(name.split(".")[: 4 if name.startswith("backbone") else 3]) for name in names}

    assert frozen("baseline") == set() == frozen("ExtraChannels") == frozen("trained geometry, its cameras")
    assert frozen("trained geometry") == {"geometry.vggt.camera_head"}
    assert frozen("objectives") == {"objectives.DepthPrediction.head"}
    assert frozen("ConcatSplitFusion 2d") == {"fusion.spatial.ln_q", "fusion.spatial.mlp"} | {
        f"geometry.vggt.{part}" for part in ("aggregator", "camera_head")
    }
    assert frozen("ConcatSplitFusion 3d") == {
        *("backbone.vlm.model.visual", "fusion.flat.ln_q", "fusion.flat.mlp", "geometry.vggt.camera_head"),
        *("view_mixer.norm.weight", "view_mixer.qkv.weight", "view_mixer.o.weight"),
    }
    early = {
        name
        for name, p in reached("trained geometry, an earlier layer of DINOv2's").model.geometry.named_parameters()
        if not p.requires_grad and "camera_head" not in name
    }
    blocks = {name for name in early if "_blocks.2." in name}
    assert blocks and early - blocks == {"vggt.aggregator.patch_embed.embeddings.mask_token"}


def train_together(rank: int, store: str) -> None:
    """Two steps each; the second fails if the first has left a parameter without a gradient."""
    torch.set_num_threads(1)
    DINOV2["tiny"] = (32, 2, 2)
    limit = timedelta(seconds=100)  # names the collective that waits, before pytest ends the test
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2, timeout=limit)
    for name in REACHED:
        model = reached(name)
        model.forward = model.loss  # type: ignore[method-assign]
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
        if rank:
            ask_for_no_cameras(model)
        for _ in range(2):
            parallel.zero_grad()
            parallel(training_batch(model, cameras=rank == 0)).backward()
        norms = [torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])] * 2
        torch.distributed.all_gather(both := [torch.empty_like(n) for n in norms], norms[0])
        assert torch.equal(both[0], both[1]), name
    # gloo's thread may still hold the gathered tensors; where the reducer is the group's last owner, its end waits for
    # that thread with the GIL locked, and the thread waits for the GIL
    del parallel
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_of_which_one_has_no_cameras(tmp_path: Any) -> None:
    torch.multiprocessing.spawn(train_together, (str(tmp_path / "store"),), nprocs=2)
