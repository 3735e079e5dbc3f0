"""The novel-view loss of the fork: its published numbers, what learns, and a model that trains and answers with it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

from datamodules.collate import QuestionCollate
from evaluation.drawings import columns_of_views
from tests.golden.weights import init_, unit_noise
from tests.tiny import (
    QUESTIONS,
    difference,
    learned,
    one_by_one,
    one_per_row,
    replies,
    tiny_backbone,
    tiny_batch,
    tiny_model,
    tiny_scene,
)
from tests.zoo.objectives.test_held_out_views import with_targets
from zoo import GRPO, AddFusion, HeldOutViews, InputError, NovelViews, SpatialVLM, TinyVGGT, VideoQATask
from zoo.cameras import intrinsics_in_pixels
from zoo.cameras.scene_geometry import Window
from zoo.checkpoints import unofficial_parts
from zoo.geometry.cache import GeometryCache
from zoo.objectives.novel_view import (
    LVSM,
    LVSMConnector,
    perceptual_terms,
    plucker,
    posed_input,
    squares,
    targets_between,
    targets_interior,
)
from zoo.sequences.batch import Batch
from zoo.tasks.video_qa import predicted_pictures

GOLDEN = Path(__file__).parents[2] / "golden" / "novel_view"
CASE: dict[str, Any] = json.loads((GOLDEN / "nvs/two_grids_three_layers.json").read_text())
TENSORS = load_file(GOLDEN / "nvs/two_grids_three_layers.safetensors")
TABLES = json.loads((GOLDEN / "tables.json").read_text())
CONFIG = CASE["config"]
SHOWN = CONFIG["input_frames"]
FRAMES = TENSORS["frames_u8"].float() / 255
POSES, K = TENSORS["world_to_camera"], TENSORS["K"]
HEIGHT, WIDTH = FRAMES.shape[-2:]


def apart(found: Tensor, name: str) -> float:
    return float((found - TENSORS[f"out_{name}"].view_as(found)).abs().max())


def weights() -> dict[str, Tensor]:
    """Return the case's weights. Gates are open."""
    return {
        name: 0.6 + 0.1 * unit_noise(name, shape) if name.endswith("_gate") else init_(name, torch.empty(shape))
        for name, shape in CASE["param_names"].items()
    }


def renderer() -> LVSM:
    model = LVSM(CONFIG["d"], CONFIG["d_head"], CONFIG["n_layer"], CONFIG["image_size"], CONFIG["patch_size"])
    start = "lvsm_model."
    model.load_state_dict(
        {name.removeprefix(start): each for name, each in weights().items() if name.startswith(start)}
    )
    return model


def connector(kind: Any) -> LVSMConnector:
    model, start = LVSMConnector(CONFIG["d"], CONFIG["d_qwen"], kind), "connector_lvsm."
    own = {name.removeprefix(start): each for name, each in weights().items() if name.startswith(start)}
    model.load_state_dict({name: own[name] for name in model.state_dict()})
    return model


def by_grid(values: Tensor) -> list[tuple[Tensor, tuple[int, int]]]:
    """Split visual tokens by video, each with the rows and columns of its tokens."""
    grids = [(t, h // 2, w // 2) for t, h, w in TENSORS["grid_thw"].tolist()]
    parts = values.split([t * h * w for t, h, w in grids])
    return [(part.unflatten(0, (t, h * w)), (h, w)) for part, (t, h, w) in zip(parts, grids, strict=True)]


def tokens() -> list[Tensor]:
    """Return the renderer's tokens of the input frames, by video."""
    side = CONFIG["image_size"] // CONFIG["patch_size"]
    found = renderer().tokens(FRAMES[None, :SHOWN], POSES[:, :SHOWN], K[:, :SHOWN])
    return list(found[0].unflatten(0, (SHOWN, side, side)).split([2 * t for t, _, _ in TENSORS["grid_thw"].tolist()]))


def test_posed_pictures_and_tokens_are_the_published_ones() -> None:
    posed = posed_input(FRAMES[None, :SHOWN], POSES[:, :SHOWN], K[:, :SHOWN], size=CONFIG["image_size"])
    assert apart(posed, "posed_input") < 2e-6
    rays = plucker(POSES[:, SHOWN:], K[:, SHOWN:], height=HEIGHT, width=WIDTH, size=CONFIG["image_size"])
    assert apart(rays, "target_pose") < 2e-6
    assert apart(torch.cat([each.flatten(0, 2) for each in tokens()])[None], "tokens") < 2e-6


def test_tokens_added_before_the_decoder_are_the_published_ones_with_gradients() -> None:
    tie = connector("film")
    parts = zip(by_grid(TENSORS["video_embeds"]), tokens(), strict=True)
    fused = torch.cat([tie.fuse(own, rendered.detach(), grid).flatten(0, 1) for (own, grid), rendered in parts])
    assert apart(fused, "fused") < 2e-6
    (fused.square().sum() / 2).backward()
    compared(tie, "fuse", 5)


@pytest.mark.parametrize("kind", ["film", "patch_residual"])
def test_renderings_losses_and_gradients_are_the_published_ones(kind: Any) -> None:
    tie, model = connector(kind), renderer()
    hidden = TENSORS["visual_hidden"].clone().requires_grad_()
    parts = zip(by_grid(hidden), tokens(), strict=True)
    context = torch.cat([tie.context(own, base.detach(), grid).flatten(0, 2) for (own, grid), base in parts])[None]
    assert apart(context, f"{kind}_context") < 5e-6
    rendered = model.render(context, POSES[:, SHOWN:], K[:, SHOWN:], height=HEIGHT, width=WIDTH)
    rendered.retain_grad()
    assert apart(rendered, f"{kind}_rendered") < 3e-6
    target = squares(FRAMES[SHOWN:], CONFIG["image_size"])
    l2 = (rendered[0] - target).square().mean()
    vgg = {
        name.removeprefix("vgg.features."): init_(name, torch.empty(shape)) for name, shape in CASE["vgg_names"].items()
    }
    perceptual, terms = perceptual_terms(vgg, rendered[0], target)
    losses = CASE["losses"]
    assert l2.item() == pytest.approx(losses[f"{kind}_l2"], abs=2e-7)
    assert perceptual.item() == pytest.approx(losses[f"{kind}_perceptual"], abs=2e-7)
    for number, term in enumerate(terms):
        assert term.item() == pytest.approx(losses[f"{kind}_perceptual_e{number}"], abs=2e-5)
    (l2 + 0.5 * perceptual).backward()
    assert hidden.grad is not None and rendered.grad is not None
    for found, name in ((hidden.grad, "visual_hidden"), (rendered.grad, "rendered")):
        expected = TENSORS[f"grad_{kind}.{name}"].view_as(found)
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    compared(tie, kind, 5)
    other, _ = perceptual_terms(vgg, rendered[0].flip(-1), target)  # the control
    assert abs(other.item() / losses[f"{kind}_perceptual"] - 1) > 1e-3


def compared(tie: LVSMConnector, what: str, least: int) -> None:
    """Compare the connector's gradients with the published ones."""
    stored = {name: each for name, each in TENSORS.items() if name.startswith(f"grad_{what}.connector_lvsm.")}
    own = {f"grad_{what}.connector_lvsm.{name}": each.grad for name, each in tie.named_parameters()}
    assert len(stored) >= least
    for name, expected in stored.items():
        found = own[name]
        assert found is not None and (found - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1e-8)


@pytest.mark.parametrize("case", TABLES["targets_between"], ids=lambda case: str(case["random_seed"]))
def test_targets_between_are_the_published_ones(case: dict[str, Any]) -> None:
    found = targets_between(case["inputs"], case["total"], Random(case["random_seed"]))
    assert found == (case["targets"], case["is_input"])


@pytest.mark.parametrize("case", TABLES["targets_interior"], ids=lambda case: str(case["random_seed"]))
def test_targets_inside_are_the_published_ones(case: dict[str, Any]) -> None:
    found = targets_interior(case["inputs"], case["total"], Random(case["random_seed"]))
    assert found == (case["targets"], case["is_input"])


# ---- In a model ------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"width": 16, "head": 8, "layers": 1, "size": 16, "weight": 1.0}
SCENES = (
    with_targets(tiny_scene("a", QUESTIONS[1:3])),
    with_targets(tiny_scene("b", QUESTIONS[:1], steps=2, seed=1), views=1),
)


def model(**options: Any) -> VideoQATask:
    task = tiny_model("plain", objectives=[NovelViews(**SMALL | options)])
    return task.train()


@pytest.mark.parametrize("kind", ["film", "patch_residual"])
def test_a_step_learns_packed_as_a_row_each_and_other_targets_change_it(kind: Any) -> None:
    task = model(kind=kind)
    packed = learned(task, task.loss(tiny_batch(task, *SCENES, training=True)))
    assert difference(packed, learned(task, task.loss(one_per_row(task, *SCENES)))) < 1e-5
    names = {name for name, each in packed[1].items() if each.any()}
    wanted = ["nvs_gate", "mod_gate", "lvsm_proj", "view_proj", "target_pose_tokenizer", "language_model.layers.0"]
    assert all(any(part in name for name in names) for part in wanted)
    assert not any("image_tokenizer" in name for name in packed[1])
    crossed = [replace(SCENES[0], target_views=SCENES[1].target_views), SCENES[1]]
    losses = [
        float(task.losses(tiny_batch(task, *each, training=True))["NovelViews"].detach()) for each in (SCENES, crossed)
    ]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_nothing_of_the_connector_learns_from_the_published_start() -> None:
    task = model(kind="film", published_start=True)
    tie = task.model.objectives["NovelViews"].connector_lvsm
    start = LVSMConnector(SMALL["width"], 64, "film", 0.0, published=True)  # the tiny model draws matrices anew
    tie.load_state_dict(start.state_dict())  # type: ignore[union-attr, operator]
    gradients = learned(task, task.losses(tiny_batch(task, *SCENES, training=True))["NovelViews"])[1]
    names = {name for name, each in gradients.items() if each.any()}
    assert names and not any("connector_lvsm" in name or "language_model" in name for name in names)


def test_answers_read_the_frames_and_the_cameras_and_cached_ones_are_those_of_one_pass() -> None:
    task = model(gate=2.0).eval()
    spec = task.model_spec()
    assert spec.requires_frames and spec.requires_cameras and not task.model.is_pretrained
    asked = tiny_batch(task, *SCENES)
    assert [reply.ids for reply in replies(task, asked)] == one_by_one(task, asked)
    tokens = task.model.encode_scenes(asked)[0].visual.tokens
    turned = SCENES[0].change_geometry(
        lambda each: type(each)(**{**each.present(), "world_to_camera": each.world_to_camera.flip(0)})
    )
    other = task.model.encode_scenes(tiny_batch(task, turned, SCENES[1]))[0].visual.tokens
    assert (tokens - other).abs().max() > 1e-4
    errors = task.predict_batch(asked)[0]["objectives"]
    assert errors.keys() == {"NovelViews/rmse", "NovelViews/unlearned/rmse"}
    assert unofficial_parts(task.model) == ["NovelViews"]


def test_the_perceptual_loss_reads_torchvisions_names(tmp_path: Path) -> None:
    vgg = {name.removeprefix("vgg."): init_(name, torch.empty(shape)) for name, shape in CASE["vgg_names"].items()}
    save_file({**vgg, "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg19.safetensors")
    task = model(perceptual=str(tmp_path / "vgg19.safetensors"), size=32)
    losses = task.losses(tiny_batch(task, *SCENES, training=True))
    assert losses["NovelViews/perceptual"] > 0 and losses["NovelViews/l2"] > 0
    assert not any("vgg" in name for name in task.state_dict())


def test_a_saved_model_needs_no_file_of_its_training(tmp_path: Path) -> None:
    """The control: without saved weights, and in a training, the file that is gone is named."""
    start = tmp_path / "lvsm.safetensors"
    save_file(model(size=32).model.objectives["NovelViews"].lvsm_model.state_dict(), start)  # type: ignore[union-attr]
    files = {"initial": str(start), "perceptual": str(tmp_path / "vgg19.pth"), "size": 32}
    task = model(**files)
    task.model.save_pretrained(tmp_path / "saved", full=True)
    start.unlink()
    loaded = SpatialVLM.from_pretrained(tmp_path / "saved")
    asked = tiny_batch(task, *SCENES)
    expected = task.model.eval().encode_scenes(asked)[0].visual.tokens
    assert torch.equal(loaded.encode_scenes(asked)[0].visual.tokens, expected)
    with pytest.raises(InputError, match="initial .*lvsm.safetensors can't be read"):
        SpatialVLM(tiny_backbone(), objectives=[NovelViews(**SMALL | files)]).encode_scenes(asked)
    with pytest.raises(InputError, match="perceptual .*vgg19.pth can't be read"):
        task.losses(tiny_batch(task, *SCENES, training=True))


def test_it_learns_beside_held_out_views_of_the_same_frames() -> None:
    """One learns colors and the other 2D tokens, whichever comes first."""
    names = ("NovelViews", "HeldOutViews")
    for turn in (1, -1):
        task = tiny_model("plain", objectives=[NovelViews(**SMALL, views=2), HeldOutViews()][::turn]).train()
        losses = task.losses(tiny_batch(task, *SCENES, training=True))
        assert all(losses[name] > 0 for name in names)


@pytest.mark.parametrize("name", ["HeldOutViews", "NovelViews"])
def test_what_there_is_to_look_at_is_what_is_measured(name: str) -> None:
    made = HeldOutViews("pixels", width=32) if name == "HeldOutViews" else NovelViews(**SMALL, views=2)
    task = tiny_model("plain", objectives=[made]).eval()
    shown, error = SCENES[0], {"HeldOutViews": "l2", "NovelViews": "rmse"}[name]
    assert shown.target_views is not None and shown.target_views.frames is not None and shown.geometry is not None
    batch = tiny_batch(task, shown)
    pictures = predicted_pictures(task.model, batch)[f"{name}/{shown.name}"]
    target, predicted, nearest = pictures.values()
    measured = task.predict_batch(batch)[0]["objectives"][f"{name}/{error}"]
    squared = float((predicted - target).square().mean())
    assert (squared if error == "l2" else squared**0.5) == pytest.approx(measured, rel=1e-4)
    frames = shown.target_views.frames[::2].float() / 255  # two equal frames are a view
    mode = "area" if name == "HeldOutViews" else "bilinear"
    assert torch.allclose(target, interpolate(frames, target.shape[-2:], mode=mode), atol=1e-5)
    assert not torch.allclose(nearest, target, atol=0.05)
    assert columns_of_views(pictures).size[0] > 3 * 150


def test_predicted_tokens_are_no_pictures() -> None:
    task = tiny_model("plain", objectives=[HeldOutViews(width=32)]).eval()
    assert predicted_pictures(task.model, tiny_batch(task, *SCENES)) == {}


def test_rewards_are_given_to_answers_sampled_as_in_training() -> None:
    """It adds the same tokens in training and in tests."""
    task = tiny_model("plain", objectives=[NovelViews(**SMALL, gate=2.0)], algorithm=GRPO())
    asked = tiny_batch(task, *SCENES)
    tokens = [task.train(mode).model.encode_scenes(asked)[0].visual.tokens for mode in (True, False)]
    assert torch.equal(*tokens)


def test_a_cached_geometry_leaves_the_frames_to_the_renderer(tmp_path: Path) -> None:
    cache = GeometryCache(str(tmp_path / "cache"))
    parts: dict[str, Any] = {"fusion": AddFusion, "geometry": partial(TinyVGGT, embed_dim=32, depth=2, seed=0)}

    def encoded(objectives: list[Any]) -> tuple[Batch, Tensor]:
        task = tiny_model(objectives=objectives, geometry_cache=cache, **parts)
        batch = QuestionCollate(task.model_spec())([SCENES[0]])
        return batch, task.model.encode_scenes(batch)[0].visual.tokens

    (computed, first), (read, again) = (encoded([NovelViews(**SMALL)]) for _ in range(2))
    assert computed.scenes[0].cached_geometry is None and read.scenes[0].cached_geometry is not None
    assert torch.equal(first, again)
    assert encoded([])[0].scenes[0].frames is None  # the control: no other part reads them


def test_the_renderer_gets_the_cameras_of_the_frames_that_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an encoder's own frames the vision encoder sees a window, to which the dataset's cameras belong."""
    task, window, seen = model().eval(), Window(70, 98, 7, 14, 56, 84), []
    whole = torch.randint(0, 255, (6, 3, 70, 98), dtype=torch.uint8)
    part = whole[(..., *window.place)].contiguous()
    stills = replace(SCENES[0], frames=part, geometry_frames=whole, vision_window=window, kind="image")
    renderer = task.model.objectives["NovelViews"].lvsm_model
    tokens = renderer.tokens
    monkeypatch.setattr(renderer, "tokens", lambda *views: seen.append(views) or tokens(*views))
    task.model.encode_scenes(tiny_batch(task, stills))
    ((pictures, _, found),) = seen
    assert torch.equal(pictures[0], whole / 255)
    geometry = SCENES[0].geometry
    assert geometry is not None and geometry.K_normalized is not None
    expected = intrinsics_in_pixels(geometry.K_normalized, 84, 56)
    expected[:, :2, 2] += torch.tensor([14, 7])
    torch.testing.assert_close(torch.diag(torch.tensor([98.0, 70.0, 1.0])).to(found) @ found[0], expected)


def test_a_shown_frame_without_a_pose_is_an_error_of_the_scene() -> None:
    posed = torch.tensor([True, True, True, False, True, True])
    scene = SCENES[0].change_geometry(lambda each: type(each)(**{**each.present(), "has_camera": posed}))
    failed = tiny_batch(model().eval(), scene).failed
    assert all("a: frame 30 has no pose" in record["error"] for record in failed) and failed
    assert not tiny_batch(tiny_model("plain"), scene).failed  # the control: a model that does not read its pose


WRONG: dict[str, tuple[Any, str]] = {
    "heads": (lambda: NovelViews(width=20, head=8), "heads that divide the width"),
    "views": (
        lambda: SpatialVLM(objectives=[NovelViews(**SMALL), HeldOutViews()]),
        "NovelViews views 4, drawn gaps and HeldOutViews views 2, drawn gaps: they predict the same frames",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_errors(name: str) -> None:
    build, text = WRONG[name]
    with pytest.raises(InputError, match=text):
        build()


def test_it_survives_a_saved_model(tmp_path: Path) -> None:
    ours = SpatialVLM(objectives=[NovelViews(**SMALL)])
    ours.save_pretrained(tmp_path / "saved")
    read = SpatialVLM.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(each, read[name]) for name, each in ours.state_dict().items())
