"""Pretraining of Spa3R's field: tables of the published code, baselines, resuming, and weights that a model reads."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from callbacks import Checkpoint
from callbacks.checkpoint import CheckpointFiles
from datamodules import FixedWidthStills, PixelBounds, RandomSteps, Rooms, VideoQADataModule
from datamodules.samplers.uniform import random_steps
from datamodules.scenes import Scene
from datamodules.video import Video, even_steps
from run_folder.configs import merge_configs
from tests.conftest import ROOMS
from tests.processes import run_in_process
from tests.test_two_processes import REPOSITORY
from tests.tiny import replies, tiny_backbone, tiny_batch, tiny_model, two_scenes
from tests.zoo import sharded
from tests.zoo.fused_golden import load_case
from tests.zoo.geometry.test_pretraining import batch, loader, steady, trainer
from tests.zoo.released import GOLDEN
from tests.zoo.test_fsdp2 import check
from tests.zoo.test_spa3r import cases
from zoo import GeometryCache, InputError, LearningRates, PretrainedSpa3R, TinySpa3R, TinyVGGT
from zoo.checkpoints import official_tensors
from zoo.configuration import flatten
from zoo.geometry import SceneGeometry
from zoo.published.spa3_vlm import PREFIX, Spa3RFusion, Spa3VLM
from zoo.published.spa3r_pretraining import DINOv3, Spa3RPretraining, resized_patches, target_mask
from zoo.sequences.batch import Batch
from zoo.tasks import GeometryPretraining
from zoo.weights.checkpoint import saved_names

TABLES = json.loads((GOLDEN / "spa3r/preprocess/tables.json").read_text())
SIZES: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "features": 8, "dim": 16, "queries": 4}
SMALL = partial(TinySpa3R, **SIZES, layers=(1, 1), semantic_channels=16, seed=0)


# ---- tables of the published code ------------------------------------------------------------------------------


def test_masks_equal_the_published_ones() -> None:
    """The control: the smallest numbers in place of the largest."""
    for case in TABLES["masks"]:
        draw, other = (torch.Generator().manual_seed(case["torch_seed"]) for _ in range(2))
        drawn = [target_mask(case["views"], draw) for _ in case["target"]]
        assert [each.int().tolist() for each in drawn] == case["target"]
        assert all(int((~each).sum()) == case["context_views"] and not each[0] for each in drawn)
        if case["views"] > 3:
            smallest = [torch.rand(case["views"] - 1, generator=other).argsort() for _ in drawn]
            count = case["views"] - case["context_views"]
            assert any(not own[1 + order[:count]].all() for own, order in zip(drawn, smallest, strict=True))


def test_frames_equal_the_published_ones() -> None:
    """The control: the steps before the start. A scene with too few frames repeats its last one here, not any."""

    def drawn(case: dict[str, Any], draw: random.Random) -> list[int]:
        return random_steps(case["images"], case["frames"], *case["interval"], draw)

    known = [case for case in TABLES["pretraining_frames"] if case["images"] >= case["frames"]]
    assert len(known) == 27
    for case in known:
        assert drawn(case, random.Random(case["random_seed"])) == case["indices"]
        other = random.Random(case["random_seed"] + 1)
        assert drawn(case, other) != case["indices"] or case["images"] in (12, 30, 141)  # almost or all of them
    # The published sampler keeps the reduced step of a short scene for all later ones. The zoo does not.
    about = TABLES["pretraining_frames_one_dataset"]
    draw, (short, long) = random.Random(about["random_seed"]), about["calls"]
    assert drawn({**short, "interval": (20, 60)}, draw) == short["indices"]
    state = draw.getstate()
    assert drawn({**long, "interval": short["interval_afterwards"]}, draw) == long["indices"]
    draw.setstate(state)
    assert drawn({**long, "interval": (20, 60)}, draw) != long["indices"]


def test_random_steps_are_drawn_anew_in_each_epoch(rooms_root: Path) -> None:
    (scene, *_) = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("train")
    sampler = RandomSteps(seed=0)
    first = sampler(Video(scene.video), 8)
    steps = [after - before for before, after in zip(first, first[1:], strict=False)]
    assert len(first) == 8 and all(2 <= step <= 6 for step in steps) and len({*steps}) > 1
    assert sampler(Video(scene.video), 8) == first != RandomSteps(seed=1)(Video(scene.video), 8)
    with pytest.raises(InputError, match="RandomSteps has steps of 3 to 2"):
        RandomSteps(3, 2)


def test_sizes_and_frames_of_the_model_equal_the_published_ones() -> None:
    for case in TABLES["vlm_sizes"]:
        shown = FixedWidthStills()(torch.zeros(1, 3, *case["hw"], dtype=torch.uint8), 28)
        assert [*shown.geometry_frames.shape[-2:]] == case["geometry_hw"]
        assert [1, *(side // 14 for side in shown.frames.shape[-2:])] == case["training_grid"]
    for case in TABLES["vlm_evaluation_frames"]:  # of protocol_vg_llm.yaml
        assert even_steps(case["total"], 32) == case["indices"]


@pytest.mark.parametrize("case", cases("field"))
def test_semantic_targets_equal_the_published_ones(case: str) -> None:
    meta, t = load_case(f"spa3r/field/{case}")
    found = resized_patches(t["dino_patches"], (meta["grid"][0], meta["grid"][1]))
    assert (found - t["sem_target"].flatten(0, -3)).abs().max() < 1e-5


# ---- one step --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rooms(rooms_root: Path) -> list[Scene]:
    return Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("train")


def task(geometry: TinySpa3R | None = None, rate: float = 2e-3, **options: Any) -> Spa3RPretraining:
    return Spa3RPretraining(geometry or SMALL(), learning_rates=LearningRates(geometry=rate), **options)


def quiet(pretraining: Spa3RPretraining) -> Spa3RPretraining:
    pretraining.log = pretraining.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return pretraining


def test_context_features_are_those_of_the_context_alone_masked_or_not() -> None:
    """With the mask, targets see all views. Context that sees all is the control."""
    encoder, images = SMALL(), torch.rand(2, 5, 3, 28, 42)
    is_target = torch.stack([target_mask(5, torch.Generator().manual_seed(seed)) for seed in (0, 3)])
    assert not torch.equal(*is_target)
    seen, every, _ = encoder.observe(images, is_target, is_masked=False, cameras=False)
    masked, targets, found = encoder.observe(images, is_target, is_masked=True, cameras=False)
    assert (seen - masked).abs().max() < 1e-5 and found is None  # cameras were not asked for
    own = torch.stack([each[~of] for each, of in zip(targets, is_target, strict=True)])
    assert torch.equal(own, masked)
    unmasked = torch.stack([each[~of] for each, of in zip(every, is_target, strict=True)])
    assert (unmasked - seen).abs().max() > 1e-4


def test_losses_are_means_over_all_views_and_train_the_field_alone(rooms: list[Scene]) -> None:
    pretraining = quiet(task())
    given = batch(rooms[:2])
    given.scenes[1] = replace(given.scenes[1], draw=3)
    loss = pretraining.training_step(given, 0)
    loss.backward()
    (group,) = pretraining._views(given)
    assert loss.item() == pytest.approx(sum(each.mean().item() for each in group.losses.values()), rel=1e-5)
    trained = {name for name, each in pretraining.named_parameters() if each.grad is not None and each.grad.any()}
    wanted = {name for name, each in pretraining.named_parameters() if each.requires_grad}
    assert trained == wanted and all(name.startswith("geometry.field.") for name in wanted)
    assert not any("heads.sem" in name for name in wanted)  # without DINOv3
    hidden = group.target_losses(0)["geo_l1"]
    assert hidden == group.losses["geo_l1"][0][group.is_target[0]].mean() != group.losses["geo_l1"][0].mean()


def test_the_nearest_view_is_copied_by_pose(rooms: list[Scene]) -> None:
    pretraining = quiet(task())
    (group,) = pretraining._views(batch(rooms[:1]))
    hidden = group.is_target[0]
    group.world_to_camera = group.world_to_camera.clone()
    group.world_to_camera[0, hidden] = group.world_to_camera[0, 0].clone()  # where the first view is
    group.geo = group.geo.clone()
    group.geo[0, hidden] = group.context[0, 0]
    found = group.target_losses(0)
    assert found["nearest_view/geo_l1"] == 0 < found["unlearned/geo_l1"]


@pytest.mark.parametrize("camera_source", ["dataset", "predicted"])
def test_cameras_matter_whatever_their_source(camera_source: Any, rooms: list[Scene]) -> None:
    """The world does not matter, as the first view is the origin. A pose relative to it does."""
    pretraining = quiet(task(SMALL(heads=("camera", "depth")), camera_source=camera_source))
    given = batch(rooms[:1])
    loss = pretraining.training_step(given, 0).item()
    geometry = given.scenes[0].geometry
    moved, turned = torch.eye(4).double(), torch.eye(4).double()
    moved[:3, 3] = turned[:3, 3] = torch.tensor([1.0, 2.0, 3.0])

    def with_poses(poses: Tensor) -> float:
        scene = replace(given.scenes[0], geometry=SceneGeometry(**geometry.present() | {"world_to_camera": poses}))
        return pretraining.training_step(Batch([scene], num_answers=[1]), 0).item()

    poses = geometry.world_to_camera
    assert with_poses(poses @ moved) == pytest.approx(loss, rel=1e-5)
    one = poses.clone()
    one[1] = turned @ one[1]
    assert (abs(with_poses(one) - loss) > 1e-6) == (camera_source == "dataset")
    spec = pretraining.model_spec()
    assert spec.requires_cameras == spec.requires_depth == (camera_source == "dataset")


def test_bad_options_and_scenes_are_errors(rooms: list[Scene], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learning_rates.geometry"):
        Spa3RPretraining(SMALL(), learning_rates=LearningRates())
    with pytest.raises(InputError, match="no depth head"):
        task(camera_source="predicted")
    with pytest.raises(InputError, match="lacks heads that pretraining needs"):
        GeometryPretraining(SMALL(), learning_rates=LearningRates(geometry=1e-3))
    with pytest.raises(InputError, match=r"dinov3.*--model.semantics.path"):
        DINOv3(str(tmp_path / "absent"))
    with pytest.raises(InputError, match=f"--model.semantics.path {tmp_path}: "):
        DINOv3(str(tmp_path))
    with pytest.raises(InputError, match=r"fit --config spa3r_tiny.yaml`"):
        SMALL(str(tmp_path))
    with pytest.raises(InputError, match=r"fit --config geometry_tiny.yaml`"):
        SMALL(vggt=str(tmp_path))
    with pytest.raises(InputError, match="^: 1 view: give two or more, --data.num_frames"):
        task().training_step(batch(rooms[:1], frames=(4,)), 0)
    lost = batch(rooms[:1])
    known = lost.scenes[0].geometry.present()
    lost.scenes[0] = replace(lost.scenes[0], geometry=SceneGeometry(**known | {"has_camera": torch.arange(4) != 1}))
    with pytest.raises(InputError, match="a frame has no camera"):
        task().training_step(lost, 0)


# ---- DINOv3 ----------------------------------------------------------------------------------------------------


def test_dinov3_is_a_second_target(rooms: list[Scene], tmp_path: Path) -> None:
    config = DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_register_tokens=4
    )
    torch.manual_seed(0)
    DINOv3ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"32 channels.* set --model.geometry.semantic_channels 32"):
        task(semantics=DINOv3(str(tmp_path)))
    pretraining = quiet(task(SMALL(semantic_channels=32), semantics=DINOv3(str(tmp_path))))
    given = batch(rooms[:1])
    pretraining.training_step(given, 0).backward()
    (group,) = pretraining._views(given)
    assert list(group.losses) == ["geo_l1", "geo_cos", "sem_l1", "sem_cos", "depth_prob"]
    assert {"nearest_view/sem_cos", "unlearned/sem_l1"} <= group.target_losses(0).keys()
    grads = {name: each.grad for name, each in pretraining.named_parameters()}
    assert grads["geometry.field.heads.sem.fc1.weight"] is not None
    assert all(grad is None for name, grad in grads.items() if not name.startswith("geometry.field."))
    assert not any(name.startswith("semantics.") for name in saved_names(pretraining, pretraining.restored_by_files))
    assert list(pretraining.frozen_weights) == ["semantics"] and not pretraining.semantics.vit.training
    white = pretraining.semantics(torch.ones(1, 3, 56, 56), (4, 4))
    assert white.shape == (1, 16, 32) and not torch.equal(
        white, pretraining.semantics(torch.zeros(1, 3, 56, 56), (4, 4))
    )


# ---- trainings -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_beats_the_baselines_on_a_scene_and_writes_weights_that_a_model_reads(
    rooms: list[Scene], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    seen = batch(rooms[:1], frames=(0, 6, 12, 18, 24, 30))
    pretraining = task(SMALL(dim=32, queries=16), rate=5e-3)
    run: Trainer = trainer(tmp_path, steps=150)
    before = run.validate(pretraining, loader([seen]), verbose=False)[0]
    run.fit(pretraining, loader([seen] * 150), loader([seen]))
    after = {name: float(value) for name, value in run.callback_metrics.items()}
    for name in ("geo_l1", "geo_cos"):
        baselines = [after[f"val/{who}/{name}"] for who in ("nearest_view", "unlearned")]
        assert after[f"val/{name}"] < min(baselines)
        assert baselines == [before[f"val/{who}/{name}"] for who in ("nearest_view", "unlearned")]
    assert before["val/geo_cos"] > before["val/unlearned/geo_cos"]  # the control
    said = capsys.readouterr().out
    assert "no --model.semantics" in said and "a copy of the nearest context view: geo_l1" in said
    again = SMALL(str(tmp_path), dim=32, queries=16)
    frames = [each.frames.float() / 255 for each in seen.scenes]
    (first,), (second,) = again(frames, [None]), pretraining.geometry.eval()(frames, [None])
    assert torch.equal(first.latents, second.latents.detach())


@pytest.mark.slow
def test_a_resumed_pretraining_equals_an_uninterrupted_one(rooms_root: Path, tmp_path: Path) -> None:
    pixels = PixelBounds(784, 65536, legacy_folder_resize=False)

    def fit(folder: str, steps: int) -> dict[str, Tensor]:
        data = VideoQADataModule(
            Rooms(scenes=ROOMS, root=str(rooms_root)), 4, train_sampler=RandomSteps(), pixels=pixels, num_workers=0
        )
        last, own = tmp_path / folder / "checkpoints/last.ckpt", task(scheduler=steady)
        saving: dict[str, Any] = {"callbacks": [Checkpoint(1)], "plugins": [CheckpointFiles()]}
        run = trainer(tmp_path / folder, steps, limit_val_batches=0, enable_checkpointing=True, **saving)
        run.fit(own, data, ckpt_path=str(last) if last.exists() else None)
        return own.state_dict()

    whole = fit("whole", 4)
    torch.manual_seed(1)
    half = fit("run", 2)
    torch.manual_seed(2)
    resumed = fit("run", 4)
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
    assert any(not torch.equal(half[name], weight) for name, weight in whole.items())


# ---- as the geometry encoder of a model ------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What a pretraining writes."""
    save_file({name: each.contiguous() for name, each in SMALL(seed=5).official_state_dict().items()},
              tmp_path / "model.safetensors")  # fmt: skip
    return tmp_path


def vlm(geometry: Any, **options: Any) -> Any:
    return tiny_model("plain", geometry=geometry, fusion=Spa3RFusion, **options)


def test_a_model_reads_the_weights_of_a_pretraining_and_the_published_ones(run_folder: Path) -> None:
    """Spa3R's own checkpoint has `model.` in front of each name, and DINOv3 and the biases of stock VGGT beside."""
    own = load_file(run_folder / "model.safetensors")
    published = {f"model.{name}": each for name, each in own.items()}
    published |= {
        "model.dino.norm.weight": torch.zeros(2),
        "model.aggregator.global_blocks.0.attn.q_norm.bias": torch.zeros(16),
    }
    other = run_folder / "published.safetensors"
    save_file(published, other)
    expected = SMALL(seed=5).state_dict()
    for path in (run_folder, other):
        encoder = SMALL(str(path))
        assert all(torch.equal(each, expected[name]) for name, each in encoder.state_dict().items())
        assert encoder.files and encoder.path == str(path)
    assert any(not torch.equal(each, expected[name]) for name, each in SMALL(seed=6).state_dict().items())
    trained = Spa3VLM(backbone=tiny_backbone(), geometry=partial(SMALL, str(run_folder)), allow_untrained=True)
    assert list(trained.frozen_weights) == ["geometry"]
    assert not any(".geometry." in name for name in saved_names(trained, trained.restored_by_files))
    exported = {
        name.removeprefix(PREFIX): each for name, each in official_tensors(trained.model).items() if PREFIX in name
    }
    assert exported.keys() == own.keys() and all(torch.equal(exported[name], each) for name, each in own.items())
    del published["model.encoder.norm.bias"]
    save_file(published, other)
    with pytest.raises(InputError, match="1 missing: model.encoder.norm.bias|1 missing: encoder.norm.bias"):
        SMALL(str(other))


def test_a_new_field_over_a_pretrained_vggt_is_saved_and_vggt_is_not(tmp_path: Path) -> None:
    tiny = TinyVGGT(**{name: SIZES[name] for name in ("embed_dim", "depth", "num_heads")}, seed=3)
    save_file(tiny.vggt.official_state_dict(), tmp_path / "model.safetensors")
    encoder = SMALL(vggt=str(tmp_path))
    read = encoder.vggt.state_dict()
    assert all(torch.equal(each, read[name]) for name, each in tiny.vggt.state_dict().items() if name in read)
    assert encoder.vggt.files and not encoder.files  # a model saves all of it
    pretraining = task(encoder)
    saved = saved_names(pretraining, pretraining.restored_by_files)
    assert saved and all(name.startswith("geometry.field.") for name in saved)
    assert list(pretraining.frozen_weights) == ["geometry"]


def test_cached_latents_answer_as_computed_ones(tmp_path: Path) -> None:
    plain, cached = vlm(SMALL).eval(), vlm(SMALL, geometry_cache=GeometryCache(str(tmp_path))).eval()
    cached.load_state_dict(plain.state_dict(), strict=False)
    asked = tiny_batch(plain, *two_scenes())
    expected = [reply.ids for reply in replies(plain, asked)]
    assert [reply.ids for reply in replies(cached, asked)] == expected
    assert cached.model.geometry.num_computed == 2
    assert [reply.ids for reply in replies(cached, asked)] == expected and cached.model.geometry.num_computed == 2


def test_the_published_size_has_the_published_names() -> None:
    """On the meta device. A trained one is read from one file, and a new field is built over VGGT-1B."""
    known = json.loads((GOLDEN / "spa3r/manifests/spa3r.json").read_text())["tensors"]
    with torch.device("meta"):
        for path in ("weights/spa3r", None):
            names = {name: [*each.shape] for name, each in PretrainedSpa3R(path).official_state_dict().items()}
            own = {name: shape for name, shape in names.items() if not name.startswith("aggregator.")}
            assert own == {name: shape for name, shape in known.items() if name in own} and len(own) > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_trains_with_shards_as_without(tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cases(released: Path, run: str = "one") -> dict[str, Any]:
        return {
            "latents": lambda: Spa3VLM(
                backbone=sharded.OLD(),
                geometry=SMALL,
                learning_rates=LearningRates(decoder=1e-2, connector=1e-2),
                defer_weights=run in sharded.SHARDED,
                optimizer=sharded.adamw,
                scheduler=sharded.constant,
                max_new_tokens=3,
                allow_untrained=True,
            )
        }

    monkeypatch.setattr(sharded, "cases", cases)
    run_in_process(sharded.main, tmp_path, str(rooms_root), ["latents"], limit_s=1700)
    check(tmp_path / "latents")


# ---- the published training of the model -----------------------------------------------------------------------


def test_the_recipe_holds_the_published_settings() -> None:
    configs = ["spa3_vlm.yaml", "scale_spa3_vlm_3b.yaml", str(REPOSITORY / "recipes/spa3_vlm.yaml")]
    found = flatten(merge_configs(configs).settings)
    expected = {
        **{"model.learning_rates.decoder": 1e-5, "model.learning_rates.connector": 1e-5},
        **{"model.learning_rates.vision": None, "model.learning_rates.vision_merger": "vision"},
        **{"model.optimizer.weight_decay": 0.01, "model.fusion.published_start": True},
        **{"model.geometry.class_path": "PretrainedSpa3R", "model.geometry.path": "weights/spa3r"},
        **{"data.num_frames": 8, "data.frames_as": "image", "data.still_resize.class_path": "FixedWidthStills"},
        **{"data.source.parts.0.path": "data/annotations/vsi_590k.jsonl", "data.batch_size": 1},
        **{"trainer.max_epochs": 1, "trainer.accumulate_grad_batches": 8},
    }
    assert {option: found[option] for option in expected} == expected and "data.source.parts.1.path" not in found
    other = flatten(merge_configs(["spa3_vlm.yaml", "scale_3b.yaml", configs[2]]).settings)
    assert other["model.geometry.class_path"] == "PretrainedVGGT"  # the control: without latents
