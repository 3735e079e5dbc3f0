"""What 2D tokens learn of their cameras before the fusion; and parts of a wrong shape are named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from datamodules.samplers import SceneView, UniformSampler
from datamodules.video import Video
from run_folder.configs import merge_configs
from tests.cases import each_once
from tests.tiny import RATES, tiny_backbone, tiny_batch, tiny_model, tiny_scene
from tests.zoo.two_videos import GRID, cameras, sequences
from zoo import (
    AddFusion,
    Cameras,
    ConcatSplitFusion,
    ConcatSplitMLLM,
    DatasetGeometry,
    InputError,
    LanguageModeling,
    PRoPE,
    PRoPEMLLM,
)
from zoo.configuration import from_config
from zoo.encodings import GTA, CaPE, EncodedCameras, PoseEmbedding, RayAttention, RayEmbedding, ViewAttention
from zoo.tasks import VideoQATask

GEOMETRY: dict[str, Any] = {"geometry": lambda: DatasetGeometry(depth=False)}
FRAMES = [torch.zeros(2 * int(t), 3, 14 * int(h), 14 * int(w)) for t, h, w in GRID]
FUSIONS: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "add": AddFusion,
    "channels": ConcatSplitFusion,
}
VIEWS: dict[str, Callable[[int], nn.Module]] = {
    "PRoPE": lambda width: ViewAttention(width, 16),
    "GTA": lambda width: ViewAttention(width, 16, GTA(apply_to="vo")),
    "CaPE": lambda width: ViewAttention(width, 16, CaPE()),
    "rays": RayEmbedding,
    "poses": PoseEmbedding,
    "RayRoPE": RayAttention,
}


def model(views: Any = None, fusion: str = "channels", dtype: str = "float32", **more: Any) -> VideoQATask:
    torch.manual_seed(0)
    parts = {"view_mixer": views, "fusion": FUSIONS[fusion], **(GEOMETRY if fusion != "none" else {}), **more}
    return VideoQATask(backbone=tiny_backbone(dtype=dtype), learning_rates=RATES, **parts)


def woken(ours: VideoQATask) -> VideoQATask:
    """With an output projection that is no longer zero, as after training."""
    assert ours.model.view_mixer is not None
    generator = torch.Generator().manual_seed(3)
    for name, parameter in ours.model.view_mixer.named_parameters():
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            assert "norm" not in name
    return ours


def batch(fusion: str = "channels") -> dict[str, Any]:
    return {**sequences(), **({"frames": FRAMES} if fusion != "none" else {})}


@pytest.mark.parametrize(("views", "fusion"), each_once([*VIEWS], [*FUSIONS]))
def test_it_starts_without_effect_and_then_has_one(views: str, fusion: str) -> None:
    given = batch(fusion)
    without, ours = model(fusion=fusion), model(VIEWS[views], fusion)
    expected = without.model.logits(**given, cameras=cameras())
    assert torch.equal(ours.model.logits(**given, cameras=cameras()), expected)
    real = given["attention_mask"].bool()
    seen = woken(ours).model.logits(**given, cameras=cameras())
    assert (seen - expected)[real].abs().max() > 1e-3
    other = ours.model.logits(**given, cameras=cameras(2)) if fusion == "none" else None
    if other is not None:  # where no 3D token knows the cameras, they reach the logits by this branch alone
        assert (other - seen)[real].abs().max() > 1e-3


def test_prope_mllm_with_its_fusion_is_concat_split_before_training() -> None:
    torch.manual_seed(0)
    plain = ConcatSplitMLLM(backbone=tiny_backbone(), learning_rates=RATES, **GEOMETRY)
    torch.manual_seed(0)
    ours = PRoPEMLLM(None, fusion=ConcatSplitFusion, backbone=tiny_backbone(), learning_rates=RATES, **GEOMETRY)
    given = batch()
    assert torch.equal(ours.model.logits(**given, cameras=cameras()), plain.model.logits(**given, cameras=cameras()))
    state = dict(plain.state_dict())
    assert state.keys() < ours.state_dict().keys() and all("view_mixer." in k for k in ours.state_dict().keys() - state)
    both = PRoPEMLLM(PRoPE(), fusion=ConcatSplitFusion, backbone=tiny_backbone(), learning_rates=RATES, **GEOMETRY)
    assert not torch.equal(
        both.model.logits(**given, cameras=cameras()), plain.model.logits(**given, cameras=cameras())
    )


def test_each_video_is_a_scene_of_its_own() -> None:
    """Views of one sequence don't look at those of another: a batch of two is two batches of one."""
    ours, given = woken(model(VIEWS["PRoPE"])), batch()
    together = ours.model.logits(**given, cameras=cameras())
    patches = GRID.prod(1).tolist()
    pixels = given["pixel_values_videos"].split(patches)
    for i in range(2):
        mask = given["attention_mask"][i].bool()
        own = ours.model.logits(
            given["input_ids"][i : i + 1, mask],
            torch.ones(1, int(mask.sum()), dtype=torch.long),
            pixel_values_videos=pixels[i],
            video_grid_thw=GRID[i : i + 1],
            frames=FRAMES[i : i + 1],
            cameras=cameras()[i : i + 1],
        )
        assert torch.allclose(own[0], together[i, mask], atol=2e-5)


def test_two_videos_of_one_sequence_have_their_own_cameras() -> None:
    ours = woken(model(VIEWS["PRoPE"], "none"))
    ids, mask = (sequences()[name] for name in ("input_ids", "attention_mask"))
    row = torch.cat([one[real.bool()] for one, real in zip(ids, mask, strict=True)])[None]
    pixels, poses = sequences()["pixel_values_videos"], cameras().world_to_camera
    steps = GRID[:, 0].tolist()

    def logits(second: torch.Tensor) -> torch.Tensor:
        both = torch.cat((poses[0, : steps[0]], second[: steps[1]]))[None]
        K = torch.eye(3).expand(1, both.shape[1], 3, 3)
        media = {"pixel_values_videos": pixels, "video_grid_thw": GRID, "cameras": Cameras(both, K)}
        return ours.model.logits(row, torch.ones_like(row), **media)[0]

    first, other = logits(poses[1]), logits(poses[1].flip(0))
    length = int(mask[0].sum())
    assert torch.equal(first[:length], other[:length])  # the first video's views don't see the second's
    assert (first[length:] - other[length:]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("views", ["PRoPE", "rays", "poses", "RayRoPE"])
def test_scenes_of_one_grid_are_encoded_together_as_if_alone(views: str) -> None:
    """Two scenes of one grid, one of which has a view without a camera, and a scene of another grid."""
    ours = woken(model(VIEWS[views]))
    scenes = [
        tiny_scene(name, steps=steps, seed=seed) for seed, (name, steps) in enumerate((("a", 3), ("b", 3), ("c", 2)))
    ]
    scenes[1].geometry.has_camera = torch.arange(6) > 1
    together = ours.model.encode_scenes(tiny_batch(ours, *scenes))
    for loaded, found in zip(scenes, together, strict=True):
        (alone,) = ours.model.encode_scenes(tiny_batch(ours, loaded))
        torch.testing.assert_close(found.visual.tokens, alone.visual.tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.raw_depth, alone.raw_depth, rtol=0, atol=1e-5)
        assert (alone.raw_depth is not None) == (views == "RayRoPE")
    scenes[0].geometry.world_to_camera = scenes[0].geometry.world_to_camera.flip(0)  # the control: other cameras
    others = ours.model.encode_scenes(tiny_batch(ours, *scenes))
    assert (others[0].visual.tokens - together[0].visual.tokens).abs().max() > 1e-3
    torch.testing.assert_close(others[1].visual.tokens, together[1].visual.tokens, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_cameras_of_concat_split_prope_touch_the_2d_half_alone() -> None:
    """The 3D tokens are of an encoder that knows no cameras. The control: before training nothing is touched."""
    model = merge_configs(["concat_split_prope.yaml"]).settings["model"]
    geometry = {"class_path": "TinyVGGT", "init_args": {"embed_dim": 32, "depth": 2}}
    torch.manual_seed(0)
    ours = from_config(VideoQATask, {**model, "init_args": {**model["init_args"], "geometry": geometry}}).eval()
    assert isinstance(ours.model.fusion, ConcatSplitFusion) and ours.model.camera_encoding is None

    def halves(camera_seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        scene, others = tiny_scene("a"), tiny_scene("b", seed=camera_seed).geometry
        scene.geometry.world_to_camera = others.world_to_camera
        (encoded,) = ours.model.encode_scenes(tiny_batch(ours, scene))
        flat, spatial = encoded.visual.tokens.chunk(2, -1)
        return flat, spatial

    before = halves(0)
    assert all(map(torch.equal, halves(1), before))
    woken(ours)
    own, others = halves(0), halves(1)
    assert torch.equal(own[1], before[1]) and torch.equal(others[1], before[1])
    moved = (others[0] - own[0]).abs().flatten(0, -2).amax(-1)
    assert moved.min() > 1e-4 and (own[0] - before[0]).abs().max() > 1e-3  # every token of the 2D half


def test_a_view_mixer_has_no_effect_without_the_2d_branch() -> None:
    only_3d = lambda *widths: ConcatSplitFusion(*widths, active_branches="3d")  # noqa: E731
    torch.manual_seed(0)
    ours = VideoQATask(
        backbone=tiny_backbone(), view_mixer=VIEWS["PRoPE"], fusion=only_3d, learning_rates=RATES, **GEOMETRY
    )
    before = ours.model.logits(**batch(), cameras=cameras())
    assert torch.equal(woken(ours).model.logits(**batch(), cameras=cameras()), before)


# ---- parts of a wrong shape ------------------------------------------------------------------------------------


class Mixer(ViewAttention):
    def forward(self, *args: Any, **options: Any) -> Any:
        return super().forward(*args, **options)[:-1]


class Geometry(DatasetGeometry):
    def forward(self, *args: Any, **options: Any) -> Any:
        found = super().forward(*args, **options)
        for each in found:
            each.patches = each.patches[:-1]
        return found


class Matrices(PRoPE):
    def matrices(self, cameras: Any) -> Any:
        return {term: m[..., :3, :3] for term, m in super().matrices(cameras).items()}


class Before(EncodedCameras):
    def before_rope(self, q: Any, k: Any) -> Any:
        return q, k[..., :-2]


class Hooks(PRoPE):
    def encode(self, *args: Any, **options: Any) -> Any:
        return Before()


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "mixer": (
        {"view_mixer": partial(Mixer, head_dim=16)},
        r"Mixer returned 2D tokens \(N, D\) of shape \(11, 32\), expected \(12, 32\)",
    ),
    "geometry": (
        {"geometry": lambda: Geometry(depth=False)},
        r"Geometry returned 3D tokens \(S, h, w, D\) of shape \(\d,",
    ),
    "matrices": ({"camera_encoding": Matrices()}, r"Matrices returned matrices of q \(B, C, 4, 4\) of shape .* 3, 3\)"),
    "hooks": ({"camera_encoding": Hooks()}, r"Before returned keys before RoPE \(B, L, G, D\) of shape"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_part_and_both_shapes_are_named(name: str) -> None:
    parts, message = CASES[name]
    parts = {"fusion": ConcatSplitFusion, **GEOMETRY, **parts}
    with pytest.raises(InputError, match=message):
        VideoQATask(backbone=tiny_backbone(), **parts).model.logits(**batch(), cameras=cameras())


def test_losses_are_single_numbers() -> None:
    class Loss(LanguageModeling):
        def forward(self, decoded: Any) -> Any:
            return {"own": torch.zeros(3)}

    task = tiny_model("plain", objectives=[Loss()])
    with pytest.raises(InputError, match=r"Loss returned loss 'own' \(\) of shape \(3,\), expected \(\)"):
        task.loss(tiny_batch(task, training=True))


@pytest.mark.parametrize("places", [[], [0, 0], [0, 99], [0, 1, 2, 3, 4]])
def test_a_sampler_chooses_different_frames(places: list[int]) -> None:
    class Sampler(UniformSampler):
        def choose(self, scene: SceneView, n: int) -> list[int]:
            return places

    with pytest.raises(InputError, match="Sampler chose .* expected 1 to 4 different places"):
        Sampler().select(Video(torch.zeros(8, 3, 4, 4, dtype=torch.uint8)), 4)
