"""A part that returns another shape than its seam expects is named with both shapes, whatever would fail later."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from datamodules.samplers import SceneView, UniformSampler
from datamodules.video import Video
from tests.zoo.test_views import FUSIONS, batch, cameras, model
from zoo import ConcatSplitFusion, DatasetGeometry, InputError, LanguageModeling, PRoPE, TimestampIndex, ViewAttention
from zoo.encodings import EncodedCameras
from zoo.objectives.base import Decoded, weighted_losses


class Fusion(ConcatSplitFusion):
    def forward(self, *args: Any) -> Any:
        return super().forward(*args)[..., :-2]


class Mixer(ViewAttention):
    def forward(self, *args: Any, **options: Any) -> Any:
        return super().forward(*args, **options)[:-1]


class Geometry(DatasetGeometry):
    def forward(self, *args: Any, **options: Any) -> Any:
        found = super().forward(*args, **options)
        for each in found:
            each.patches = each.patches[:-1]
        return found


class FewScenes(DatasetGeometry):
    def forward(self, *args: Any, **options: Any) -> Any:
        return super().forward(*args, **options)[:-1]


class Time(TimestampIndex):
    def __call__(self, steps: Any) -> Any:
        return super().__call__(steps)[:-1]


class Matrices(PRoPE):
    def matrices(self, cameras: Any) -> Any:
        return {term: m[..., :3, :3] for term, m in super().matrices(cameras).items()}


class Hooks(PRoPE):
    hook: type[EncodedCameras]

    def encode(self, *args: Any, **options: Any) -> Any:
        return self.hook()


class Before(EncodedCameras):
    def before_rope(self, q: Any, k: Any) -> Any:
        return q, k[..., :-2]


class After(EncodedCameras):
    def after_rope(self, q: Any, k: Any) -> Any:
        return torch.cat((q, q), -1), k


class Outputs(EncodedCameras):
    def transform_outputs(self, o: Any) -> Any:
        return torch.cat((o, o), -1)


def hooks(kind: type[EncodedCameras]) -> PRoPE:
    encoding = Hooks()
    encoding.hook = kind
    return encoding


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "fusion": ({"fusion": Fusion}, r"Fusion returned visual tokens \(t, n, D\) of shape \(\d+, \d+, 62\), .*, 64\)"),
    "mixer": (
        {"view_mixer": partial(Mixer, head_dim=16)},
        r"Mixer returned 2D tokens \(N, D\) of shape \(11, 32\), expected \(12, 32\)",
    ),
    "geometry": (
        {"geometry": lambda: Geometry(depth=False)},
        r"Geometry returned 3D tokens \(S, h, w, D\) of shape \(\d,",
    ),
    "scenes": ({"geometry": lambda: FewScenes(depth=False)}, r"FewScenes returned 1 scenes, expected 2"),
    "time": ({"time_index": Time()}, r"Time returned positions \(N,\) of shape"),
    "matrices": ({"camera_encoding": Matrices()}, r"Matrices returned matrices of q \(B, C, 4, 4\) of shape .* 3, 3\)"),
    "before RoPE": ({"camera_encoding": hooks(Before)}, r"Before returned keys before RoPE \(B, L, G, D\) of shape"),
    "after RoPE": ({"camera_encoding": hooks(After)}, r"After returned keys \(B, L, G, E\) of shape"),
    "outputs": ({"camera_encoding": hooks(Outputs)}, r"Outputs returned outputs \(B, L, H, D\) of shape"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_part_and_both_shapes_are_named(name: str) -> None:
    parts, message = CASES[name]
    with pytest.raises(InputError, match=message):
        broken(**parts).model.logits(**batch(), cameras=cameras())


def broken(fusion: Any = None, view_mixer: Any = None, **parts: Any) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(FUSIONS, "channels", fusion or ConcatSplitFusion)
        return model(view_mixer, **parts)


def test_right_parts_pass() -> None:
    ours = model(partial(ViewAttention, head_dim=16), camera_encoding=PRoPE(), time_index=TimestampIndex())
    assert ours.model.logits(**batch(), cameras=cameras()).isfinite().all()


def test_losses_are_single_numbers() -> None:
    class Loss(LanguageModeling):
        def forward(self, decoded: Any) -> Any:
            return {"own": torch.zeros(3)}

    decoded = Decoded.__new__(Decoded)
    object.__setattr__(decoded, "last_hidden_state", torch.zeros(1, 1, 4))
    with pytest.raises(InputError, match=r"Loss returned loss 'own' \(\) of shape \(3,\), expected \(\)"):
        weighted_losses([Loss()], decoded)


@pytest.mark.parametrize("places", [[], [0, 0], [0, 99], [0, 1, 2, 3, 4]])
def test_a_sampler_chooses_different_frames(places: list[int]) -> None:
    class Sampler(UniformSampler):
        def choose(self, scene: SceneView, n: int) -> list[int]:
            return places

    with pytest.raises(InputError, match="Sampler chose .* expected 1 to 4 different places"):
        Sampler().select(Video(torch.zeros(8, 3, 4, 4, dtype=torch.uint8)), 4)
