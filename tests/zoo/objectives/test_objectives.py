"""What objectives change and what they leave alone: loss, gradients, prompts, answers, saved models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from datamodules import Rooms, VideoQADataModule
from datamodules.question_sampler import TrainingItem
from tests.conftest import ROOMS
from tests.tiny import (
    MASKED_FAMILIES,
    VGGT,
    Learned,
    difference,
    learned,
    one_per_row,
    prompts_of,
    rows_of,
    tiny_backbone,
    tiny_batch,
    tiny_model,
    two_scenes,
)
from zoo import (
    CameraPrediction,
    CameraTokenFusion,
    DatasetGeometry,
    DepthPrediction,
    InputError,
    LanguageModeling,
    LearningRates,
    LoRA,
    MaskedViews,
    Objective,
    SpatialVLM,
    VideoQATask,
)
from zoo.backbones.base import VisualTokens
from zoo.checkpoints import official_tensors, unofficial_parts
from zoo.configuration import from_config
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import LoadedScene, PreparedScene
from zoo.sequences.packing import IGNORED, pack_questions

SCENES = two_scenes("Qwen2.5-VL")


def model(*objectives: Objective, **parts: Any) -> SpatialVLM:
    return SpatialVLM(tiny_backbone(), objectives=list(objectives), **parts)


def without_token(weight: float = 1.0) -> list[Objective]:
    return [CameraPrediction(token=False, weight=weight), DepthPrediction(layer=0, weight=weight)]


@pytest.mark.parametrize("family", MASKED_FAMILIES)
def test_the_published_loss_and_that_a_weight_of_zero_is_left_out_bit_for_bit(family: str) -> None:
    plain = tiny_model("plain", family=family, average="micro_batch_tokens").train()
    shown, backbone = two_scenes(family), plain.model.backbone
    asked, packed_rows = (
        tiny_batch(plain, *shown, training=True),
        pack_questions(*rows_of(plain, *shown), backbone.placeholders.visual),
    )
    assert asked.sequences is not None and packed_rows is not None
    # the published loss, written out: the mean over the supervised tokens of a batch
    inputs = plain.model.decoder_inputs(plain.model.encode_scenes(asked), asked.sequences)
    hidden = backbone.decode(inputs).last_hidden_state[:, :-1]
    targets = pad_sequence([row.labels for row in packed_rows[0]], batch_first=True, padding_value=IGNORED)[:, 1:]
    logits = backbone.lm_head(hidden[targets != IGNORED])
    loss = F.cross_entropy(logits, targets[targets != IGNORED], reduction="none").sum() / len(logits)
    expected, references = learned(plain, loss)
    plain.model.average = "questions"
    assert learned(plain, plain.loss(asked))[0] != expected

    silent = [*without_token(0.0), MaskedViews(mask_ratio=0.0)]
    choices: list[tuple[list[Objective] | None, bool]] = [(None, True), ([LanguageModeling()], True), (silent, True)]
    for objectives, is_equal in (*choices, (without_token(1.0), False), ([LanguageModeling(2.0)], False)):
        task = tiny_model("plain", family=family, objectives=objectives, average="micro_batch_tokens").train()
        found, gradients = learned(task, task.loss(asked))
        assert (found == expected) == is_equal
        assert all(torch.equal(gradients[name], each) for name, each in references.items()) == is_equal
        assert not is_equal or not any(gradients[name].any() for name in gradients.keys() - references.keys())


def test_without_a_token_prompts_and_answers_are_those_of_a_model_without_objectives() -> None:
    plain, task = tiny_model("plain"), tiny_model("plain", objectives=[*without_token(), MaskedViews(mask_ratio=0.9)])
    asked, usual = tiny_batch(task, *SCENES), tiny_batch(plain, *SCENES)
    assert task.model.extra_tokens is ExtraTokens.NONE and prompts_of(asked) == prompts_of(usual)
    records = task.predict_batch(asked)
    errors = [record.pop("objectives") for record in records]
    assert records == plain.predict_batch(usual)
    names = [
        f"CameraPrediction/{each}" for each in ("rotation_deg", "center", "neighbor_rotation_deg", "neighbor_center")
    ]
    names += ["DepthPrediction/depth_relative", "DepthPrediction/aligned_depth_relative"]
    unlearned = [name.replace("/", "/unlearned/") for name in names]
    assert errors[0].keys() == {*names, *unlearned} and errors[0] == errors[1] != errors[-1]  # of another scene
    # the control: a token is part of the prompt, one per view
    other = tiny_model("plain", objectives=[CameraPrediction()])
    longer = zip(prompts_of(tiny_batch(other, *SCENES)), prompts_of(asked), strict=True)
    assert other.model.extra_tokens is ExtraTokens.ONE
    assert [len(mine) - len(other) for mine, other in longer] == [3, 3, 3, 2]


def test_scenes_without_cameras_and_depth_are_answered_and_learned_from_but_not_they_alone(rooms_root: Any) -> None:
    task = tiny_model("plain", objectives=[CameraPrediction(), DepthPrediction()])
    bare, needs = [replace(each, geometry=None) for each in SCENES], task.model_spec()
    assert not needs.requires_cameras and not needs.requires_depth and needs.targets == ("cameras", "depth")
    assert all("objectives" not in record for record in task.predict_batch(tiny_batch(task, *bare)))
    losses = task.train().losses(tiny_batch(task, *bare, training=True))
    assert losses["CameraPrediction"] == losses["DepthPrediction"] == 0 < losses["LanguageModeling"]
    data = VideoQADataModule(Rooms(scenes=ROOMS, root=str(rooms_root), workers=1))
    data.trainer = SimpleNamespace(lightning_module=task)  # type: ignore[assignment]
    data.setup("fit")
    found = data.scenes("train")
    geometry = data.dataset(found)[0].geometry
    assert geometry is not None and geometry.depth is not None
    with pytest.MonkeyPatch.context() as patch:
        lacking = [replace(each, depth=None) for each in found]
        patch.setattr(data.source, "filtered_split", lambda *_: (lacking, 0, []))
        assert data.scenes("val") == lacking
        with pytest.raises(InputError, match="train split has depth, .*camera_source predicted"):
            data.scenes("train")
    typo = tiny_model("plain", objectives=[MaskedViews(mask_ratio_by_type={"object_countin": 1.0})])
    data.trainer = SimpleNamespace(lightning_module=typo)  # type: ignore[assignment]
    data.setup("fit")
    with pytest.raises(InputError, match=r"unknown question_type 'object_countin'.*did you mean object_counting\?"):
        data.scenes("train")
    assert data.scenes("test")  # nothing is masked there


def test_heads_without_a_rate_are_said_to_stay_random() -> None:
    def said(*objectives: Objective) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            VideoQATask(objectives=list(objectives), learning_rates=LearningRates(objective=None))
        return [str(each.message) for each in caught if "learning_rates.objective" in str(each.message)]

    assert not said() and not said(DepthPrediction(weight=0.0))
    for objective in (DepthPrediction(), CameraPrediction(weight=0.0)):  # a head, and a token
        assert [type(objective).__name__ in text for text in said(objective)] == [True]


@pytest.mark.parametrize("family", [pytest.param("Qwen2.5-VL", marks=pytest.mark.slow), "Qwen3-VL"])
def test_packed_and_checkpointed_sequences_learn_as_a_row_each(family: str) -> None:
    def made(**options: Any) -> VideoQATask:
        objectives = [CameraPrediction(layer=0), DepthPrediction(), MaskedViews(mask_ratio=0.5)]
        return tiny_model("plain", family=family, objectives=objectives, **options).train()

    scenes = two_scenes(family)
    expected = a_row_each(made(), *scenes)
    assert difference(packed(made(), *scenes), expected) < 1e-5
    assert difference(packed(made(gradient_checkpointing=True), *scenes), expected) < 1e-5
    lora = {"lora": LoRA(r=4), "gradient_checkpointing": True}
    assert difference(packed(made(**lora), *scenes), a_row_each(made(**lora), *scenes)) < 1e-4
    other = [replace(each, draw=1) for each in scenes]
    assert difference(packed(made(), *other), expected) > 1e-3  # the control: other tokens are masked


def packed(task: VideoQATask, *scenes: LoadedScene) -> Learned:
    return learned(task, task.loss(tiny_batch(task, *scenes, training=True)))


def a_row_each(task: VideoQATask, *scenes: LoadedScene) -> Learned:
    return learned(task, task.loss(one_per_row(task, *scenes)))


def reached(task: VideoQATask, loss: Tensor, *parts: str) -> set[str]:
    """Return the parts in which some parameter has a gradient other than zero."""
    names = [name for name, gradient in learned(task, loss)[1].items() if gradient.any()]
    return {part for part in parts if any(f".{part}." in f"{name}." for name in names)}


def test_gradients_reach_what_a_loss_depends_on_and_nothing_else() -> None:
    task = tiny_model("plain", objectives=[CameraPrediction(layer=0), DepthPrediction(layer=1)]).train()
    camera, depth = "objectives.CameraPrediction.head", "objectives.DepthPrediction.head"
    token, below, above = "objectives.CameraPrediction.token", "language_model.layers.0", "language_model.layers.1"
    expected = {
        "CameraPrediction": {camera, token, "visual", below},
        "DepthPrediction": {depth, token, "visual", below, above},  # later views attend to the token
        "LanguageModeling": {token, "visual", below, above, "language_model.norm"},
    }
    parts = set.union(*expected.values())
    for name, wanted in expected.items():
        losses = task.losses(tiny_batch(task, *SCENES, training=True))
        assert reached(task, losses[name], *parts) == wanted
    unsupervised = [replace(each, is_supervised=False) for each in SCENES]  # another process learns from them
    losses = task.losses(tiny_batch(task, *unsupervised, training=True))
    assert losses["loss"] == 0 and not reached(task, losses["loss"], *parts)


def test_masked_2d_tokens_are_not_seen_and_3d_tokens_are() -> None:
    def parts(share: float, shares: dict[str, float] | None = None) -> set[str]:
        task = tiny_model("AddFusion", objectives=[MaskedViews(share, shares)]).train()
        return reached(task, task.loss(tiny_batch(task, *SCENES, training=True)), "visual", "fusion", "mask_token")

    assert parts(0.0) == {"visual", "fusion"}
    assert parts(0.5) == {"visual", "fusion", "mask_token"}
    assert parts(1.0) == parts(0.0, {"object_counting": 1.0}) == {"fusion", "mask_token"}
    both = MaskedViews(0.2, {"object_counting": 1.0}).mask_ratio_of(["object_counting", "route_planning"])
    assert both == pytest.approx(0.6)


def test_masks_are_drawn_by_seed_scene_and_epoch() -> None:
    objective = MaskedViews(mask_ratio=0.25)
    objective.bind(8, 2)

    def masks(*draws: int) -> list[Tensor]:
        shown = VisualTokens(torch.ones(4, 50, 8), torch.ones(1, 4, 50, 8))
        scenes = [PreparedScene(pixel_values=torch.empty(1, 1), grid_thw=(4, 10, 20), draw=draw) for draw in draws]
        found = []
        for changed in objective.change_tokens([shown] * len(draws), scenes):
            masked = (changed.tokens != 1).all(-1)
            assert torch.equal((changed.deepstack[0] == 0).all(-1), masked)
            assert torch.equal(changed.tokens[masked], objective.mask_token.expand(int(masked.sum()), 8))
            found.append(masked)
        assert (shown.tokens == 1).all() and (shown.deepstack == 1).all()
        return found

    first, second = masks(1, 2)
    assert torch.equal(masks(2)[0], second) and not torch.equal(first, second)  # wherever in a batch a scene is
    assert 0.15 < first.float().mean() < 0.35
    items = [TrainingItem(0, (0,), epoch, seed=seed) for epoch in (0, 1) for seed in (0, 1)]
    draws = [item.draw(name) for item in items for name in ("a", "b")]
    assert len(set(draws)) == 8 and all(0 <= draw < 2**32 for draw in draws)
    assert draws == [item._replace(scene=3, questions=(1,)).draw(name) for item in items for name in ("a", "b")]


def test_objectives_survive_a_saved_model_and_the_official_layout_leaves_heads_out(tmp_path: Any) -> None:
    ours = model(
        CameraPrediction(scale="mean"), DepthPrediction(layer=0, weight=0.5), MaskedViews(mask_ratio_by_type={"a": 1.0})
    )
    ours.save_pretrained(tmp_path / "saved")
    loaded = SpatialVLM.from_pretrained(tmp_path / "saved")
    state, read = ours.state_dict(), loaded.state_dict()
    assert state.keys() == read.keys() and all(torch.equal(state[name], read[name]) for name in state)
    assert {"objectives.CameraPrediction.token", "objectives.MaskedViews.mask_token"} <= read.keys()
    read_parts: Any = loaded.objectives
    assert read_parts["DepthPrediction"].weight == 0.5 and read_parts["DepthPrediction"].layers == (0,)
    assert read_parts["CameraPrediction"].scale == "mean" and read_parts["MaskedViews"].mask_ratio_by_type == {"a": 1.0}
    assert ours.part_of("objectives.CameraPrediction.token") == "objective"
    assert unofficial_parts(ours) == ["CameraPrediction"]
    with pytest.raises(InputError, match="can't be exported"):
        official_tensors(ours)
    # heads may be dropped, and others start from scratch
    with pytest.warns(UserWarning, match="objectives.CameraPrediction.token"):
        bare = SpatialVLM.from_pretrained(tmp_path / "saved", objectives=None)
    assert list(bare.objectives) == ["LanguageModeling"]
    assert all(torch.equal(state[name], each) for name, each in bare.state_dict().items())
    with pytest.warns(UserWarning):
        other = SpatialVLM.from_pretrained(
            tmp_path / "saved", objectives=[DepthPrediction(layer=1), LanguageModeling()]
        )
    kept = other.state_dict()
    assert "objectives.CameraPrediction.token" not in kept
    assert all(torch.equal(state[name], each) for name, each in kept.items() if "DepthPrediction" in name)
    wider = SpatialVLM.from_pretrained(tmp_path / "saved", objectives=[CameraPrediction(anchors=["reference"])])
    assert torch.equal(
        wider.state_dict()["objectives.CameraPrediction.token"], state["objectives.CameraPrediction.token"]
    )
    model(DepthPrediction()).save_pretrained(tmp_path / "no_token")
    with pytest.raises(
        InputError, match=r"missing \['objectives.CameraPrediction.token'\]"
    ):  # it is part of the prompt
        SpatialVLM.from_pretrained(tmp_path / "no_token", objectives=[CameraPrediction()])
    silent = model(*without_token(), MaskedViews())
    assert unofficial_parts(silent) == [] and official_tensors(silent).keys() == official_tensors(model()).keys()


@pytest.mark.parametrize(
    "form",
    [["CameraPrediction"], ["LanguageModeling", "zoo.CameraPrediction"], [{"class_path": "CameraPrediction"}]],
    ids=str,
)
def test_objectives_may_be_names_in_a_configuration(form: list[Any]) -> None:
    config = {"class_path": "zoo.SpatialVLM", "init_args": {"objectives": form}}
    assert list(from_config(SpatialVLM, config).objectives) == ["LanguageModeling", "CameraPrediction"]


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "negative": (lambda: DepthPrediction(weight=-1.0), "DepthPrediction has weight -1.0"),
    "no language": (lambda: LanguageModeling(0.0), "LanguageModeling needs a weight above 0"),
    "share": (lambda: MaskedViews(mask_ratio_by_type={"a": 2.0}), "MaskedViews with a mask ratio of 2.0"),
    "no anchor": (lambda: CameraPrediction(anchors=[]), "CameraPrediction needs an anchor"),
    "twice": (lambda: model(DepthPrediction(), DepthPrediction()), "a class twice"),
    "layer": (lambda: model(DepthPrediction(2)), "layer 2 of a decoder with 2"),
    "two tokens": (
        lambda: model(CameraPrediction(), fusion=CameraTokenFusion, **VGGT),
        "CameraPrediction and the fusion append tokens",
    ),
    "no predicted cameras": (
        lambda: model(CameraPrediction(), geometry=DatasetGeometry, camera_source="predicted"),
        "needs a --model.geometry that predicts cameras",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_objectives_are_errors(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        make()
