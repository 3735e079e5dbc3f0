"""One seed governs the weights, the order, the frames and the questions; a part may have one of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import OffsetNeighbor, PoseFarthestSampler, RandomSampler, Rooms, VideoQADataModule
from datamodules.samplers import SceneView
from datamodules.video import Video
from zoo import AddFusion, SpatialVLM, TinyQwen25VL, TinyVGGT
from zoo.files.fingerprint import fingerprint
from zoo.geometry import GeometryCache

SMALL = dict(layers=2, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)
VGGT = partial(TinyVGGT, embed_dim=16, num_heads=2)


@pytest.fixture
def run_seed(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda seed: monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))


def scene() -> SceneView:
    video = Video.__new__(Video)
    video.num_frames, video.path = 100, Path("clip.mp4")
    poses = torch.eye(4).repeat(100, 1, 1)
    poses[:, 0, 3] = torch.arange(100.0)
    return SceneView(video, world_to_camera=poses)


def weights(**own: Any) -> tuple[str, str]:
    return fingerprint(TinyQwen25VL(**SMALL, **own).load()), fingerprint(VGGT(**own))


def test_random_weights_follow_the_run(run_seed: Any) -> None:
    outside = weights()
    made = {}
    for seed in (0, 1, 2):
        run_seed(seed)
        made[seed] = weights()
        assert weights() == made[seed]  # another rank, or the same run resumed
        assert weights(seed=5) == weights(seed=5) != made[seed]
    assert outside == made[0] and all(len(set(part)) == 3 for part in zip(*made.values(), strict=True))
    run_seed(5)
    own = weights(seed=1)
    assert own == made[1] != weights()


def test_draws_follow_the_run(run_seed: Any) -> None:
    def drawn(**own: Any) -> list[Any]:
        return [
            RandomSampler(**own).choose(scene(), 8),
            PoseFarthestSampler(start="random", **own).choose(scene(), 3),
            OffsetNeighbor("random", step=3, **own).pair(range(0, 100, 10), scene()),
            VideoQADataModule(Rooms(), **own).seed,  # of the order and the questions
        ]

    made = []
    for seed in (1, 2):
        run_seed(seed)
        made.append(drawn())
        assert drawn() == made[-1] and drawn(seed=1) == made[0]
    assert all(one != other for one, other in zip(*made, strict=True))


def test_questions_of_an_evaluation_do_not_depend_on_the_run(run_seed: Any) -> None:
    filters = set()
    for seed in (1, 2):
        run_seed(seed)
        filters.add(VideoQADataModule(Rooms(), subset=20).filter)
        filters.add(VideoQADataModule(Rooms(), subset=20, seed=7).filter)
        assert PoseFarthestSampler().seed is None  # without a draw, nor does a cached selection
        assert Rooms().folder == Rooms(seed=0).folder  # and the rooms are data
    assert len(filters) == 1


def model_of(cache: Path | None = None) -> SpatialVLM:
    kept = None if cache is None else GeometryCache(str(cache))
    return SpatialVLM(TinyQwen25VL(**SMALL), geometry=VGGT, fusion=AddFusion, geometry_cache=kept)


def tokens(model: SpatialVLM) -> Tensor:
    frames = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    assert model.geometry is not None
    (scene,) = model.geometry([frames], [None])
    assert scene.patches is not None
    return scene.patches


@pytest.mark.parametrize("cached", [False, True])
def test_a_saved_model_is_the_same_under_any_seed(cached: bool, run_seed: Any, tmp_path: Path) -> None:
    """Random weights that stay frozen are in no file but the model's own, also behind a cache."""
    run_seed(1)
    saved = model_of(tmp_path / "cache" if cached else None).requires_grad_(False)
    saved.data_config = {"class_path": "VideoQADataModule", "init_args": {"sampler": {"init_args": {"seed": None}}}}
    saved.save_pretrained(tmp_path / "saved")
    run_seed(2)
    fresh = model_of()
    loaded = SpatialVLM.from_pretrained(tmp_path / "saved")
    assert fingerprint(loaded) == fingerprint(saved) != fingerprint(fresh)  # the last is the negative control
    assert torch.equal(tokens(loaded), tokens(saved)) and not torch.equal(tokens(fresh), tokens(saved))
    assert loaded.data_config["init_args"]["sampler"]["init_args"]["seed"] == 1  # of the frames that `answer` draws
    fresh.load_state_dict(saved.state_dict())  # a checkpoint of either loads into the other
