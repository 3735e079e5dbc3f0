"""What trains: in float32, with a gradient in every batch and process, and beside frozen parts that keep no graph."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.zoo.asking import QUESTIONS, RATES, VGGT, batch, scene, tiny_backbone
from zoo import (
    GTA,
    AddFusion,
    AttentionFusion,
    CameraPrediction,
    ConcatSplitFusion,
    DeepFusion,
    DepthPrediction,
    ExtraChannels,
    LearningRates,
    MaskedViews,
    PoseALiBi,
    TinyVGGT,
)
from zoo.backbones.lora import LoRA
from zoo.encodings import PRoPE, ViewAttention
from zoo.geometry.base import SceneGeometry
from zoo.geometry.vggt import DINOV2
from zoo.geometry.vggt import VGGT as VGGTModel
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.sequences.batch import Batch
from zoo.tasks import VideoQATask, vggt_pretraining, video_qa

LAYERS = 2  # of the decoder
TRAINED_GEOMETRY = LearningRates(decoder=1e-3, connector=1e-3, vision=1e-3, geometry=1e-3)


def task(dtype: str = "float32", rates: LearningRates = RATES, **parts: Any) -> VideoQATask:
    torch.manual_seed(0)
    return VideoQATask(backbone=tiny_backbone(layers=LAYERS, dtype=dtype), learning_rates=rates, **parts)


def training_batch(model: VideoQATask, cameras: bool = True) -> Batch:
    """Two questions on a scene; without cameras as a dataset has it whose poses are all invalid."""
    loaded = scene("a", QUESTIONS[:2])
    if not cameras:
        assert loaded.geometry is not None
        none = torch.zeros(len(loaded.frame_indices), dtype=torch.bool)
        loaded = replace(loaded, geometry=SceneGeometry(**{**loaded.geometry.present(), "has_camera": none}))
    return batch(model, loaded, training=True)


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


# ---- what is frozen stays in eval mode ---------------------------------------------------------------------


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


# ---- float32 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "bf16-mixed"])
def test_what_trains_is_float32_beside_bfloat16(name: str, autocast: bool) -> None:
    model = task("bfloat16", **HALF[name])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = [p.dtype for p in model.model.backbone.parameters() if not p.requires_grad]
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert set(frozen) == {torch.bfloat16}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=7e-6, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
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


# ---- frozen parts keep no graph ------------------------------------------------------------------------------


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


# ---- casts, and the optimizer -------------------------------------------------------------------------------


def casts_of_a_test(dtype: str, **parts: Any) -> int:
    """Casts of weights while an answer of several tokens is decoded, as Lightning's bf16-mixed does it."""
    model = task(dtype, max_new_tokens=6, allow_untrained=True, **parts).eval()
    model.model.backbone.stop_tokens = []
    weights = {tuple(p.shape) for p in model.model.backbone.decoder.layers.parameters() if p.ndim == 2}
    autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    with torch.profiler.profile(record_shapes=True) as profile, autocast:
        model.predict_batch(batch(model, scene("a", QUESTIONS[:2])))
    return sum(
        event.count
        for event in profile.key_averages(group_by_input_shape=True)
        if event.key == "aten::_to_copy" and tuple(event.input_shapes[0]) in weights
    )


@pytest.mark.slow
def test_no_weight_is_cast_again_for_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = 7 * LAYERS
    # a few of the casts are of activations in a weight's shape
    assert casts_of_a_test("float32") < 1.5 * matrices and casts_of_a_test("bfloat16") < 1.5 * matrices  # trained
    assert casts_of_a_test("bfloat16", rates=LearningRates(decoder=None)) < 0.5 * matrices  # frozen
    assert casts_of_a_test("float32", rates=LearningRates(decoder=None)) > 5 * matrices  # the control
    monkeypatch.setattr(video_qa, "answer_precision", lambda *_: nullcontext())
    assert casts_of_a_test("float32") > 5 * matrices


@pytest.mark.parametrize("has_gpu", [False, True])
@pytest.mark.parametrize("adamw", [video_qa.adamw, vggt_pretraining.adamw])
def test_adamw_is_fused_where_there_is_a_gpu_and_can_be_clipped(
    adamw: Any, has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_gpu and torch.version.cuda and not torch.cuda.is_available():
        pytest.skip("a CUDA build of torch asks the driver, which is absent")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
    ours, plain = adamw(parameters), torch.optim.AdamW(copy.deepcopy(parameters), weight_decay=0.1)
    assert bool(ours.defaults["fused"]) is has_gpu
    for optimizer in (ours, plain):
        for _ in range(3):
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.1
                for parameter in group["params"]:
                    parameter.grad = parameter.detach() + 1
            MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1.0)
            optimizer.step()
    states = [optimizer.state_dict()["state"] for optimizer in (ours, plain)]
    for one, other in zip(states[0].values(), states[1].values(), strict=True):
        assert one.keys() == other.keys()
        torch.testing.assert_close(one, other)
    plain.load_state_dict(ours.state_dict())  # a run goes on where there is none


# ---- a gradient for each -------------------------------------------------------------------------------------


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
    "AddFusion 2d": {"fusion": partial(AddFusion, active_branches="2d"), "geometry": vggt},
    "AddFusion 3d": {"fusion": partial(AddFusion, active_branches="3d"), "geometry": vggt},
    "AttentionFusion 3d": {"fusion": partial(AttentionFusion, active_branches="3d"), "geometry": vggt},
    "DeepFusion": {"fusion": partial(DeepFusion, decoder_layers=[0]), "geometry": vggt},
    "ExtraChannels": {"camera_encoding": PRoPE(ExtraChannels())},
    "GTA(learn_scale)": {"camera_encoding": GTA(learn_scale=True)},
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
