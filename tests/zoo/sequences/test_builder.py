"""Where the tokens of scenes stand in sequences, against a walk over the tokens one by one; batches at the edges."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datamodules.scenes import Question, RawQuestion
from tests.tiny import QUESTIONS, VGGT, replies, tiny_batch, tiny_model, tiny_scene
from tests.zoo.two_videos import cameras, sequences
from zoo import (
    Cameras,
    ConstantIndex,
    InputError,
    PathLengthIndex,
    PoseDistanceIndex,
    PRoPE,
    SpatialVLM,
    TinyQwen25VL,
    VideoQATask,
)
from zoo.cameras.scene_geometry import PatchCameras
from zoo.encodings.testing import random_cameras
from zoo.geometry import SceneGeometry
from zoo.model_spec import ModelSpec
from zoo.sequence_builder import SequenceBuilder, visual_sources
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.layout import ExtraTokens, MediaKind, Placeholders
from zoo.sequences.loaded_scene import PreparedScene
from zoo.sequences.position_ids import DeferredPositions, layout_position_ids, valid_index
from zoo.sequences.time_index import PoseTimeIndex

PAD, START, END, VIDEO, IMAGE, TEXT = 0, 1, 2, 3, 4, 9


@pytest.fixture(scope="module")
def rules() -> ModelSpec:
    """Return the spec of a model without cameras, which may see videos between images."""
    return tiny_model("plain").model_spec()


KINDS = [
    *(ExtraTokens.NONE, ExtraTokens.ONE, ExtraTokens.LAST, ExtraTokens.ALL),
    *(ExtraTokens.END, ExtraTokens.LAST_AND_END, ExtraTokens(per_row=1)),
    *(ExtraTokens(per_row=1, per_view=1), ExtraTokens(per_row=2, per_token=1), ExtraTokens(per_row=1, at_end=1)),
]


@dataclass
class Expected:
    """What the walk finds of each visual token, and of each token on a 2D grid."""

    places: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    grid_places: list[int] = field(default_factory=list)
    grid_sources: list[int] = field(default_factory=list)
    centers: list[tuple[float, float]] = field(default_factory=list)
    cameras: list[int] = field(default_factory=list)


@dataclass
class Case:
    scenes: list[PreparedScene]
    scene_index: list[list[int]]
    ids: Tensor
    mask: Tensor
    expected: Expected


def numbered(scenes: list[PreparedScene], extra: ExtraTokens) -> list[list[list[list[tuple[int, int | None]]]]]:
    """Number the tokens of each scene, medium and temporal patch: among all tokens, and among the 2D tokens."""
    every, flat, found = 0, 0, []
    for scene in scenes:
        media: list[list[list[tuple[int, int | None]]]] = []
        for _ in range(1 if scene.kind == "video" else scene.num_steps):
            steps: list[list[tuple[int, int | None]]] = []
            for _ in range(scene.num_steps if scene.kind == "video" else 1):
                rows, columns = (side // 2 for side in scene.grid_thw[1:])
                kinds = [*[True] * columns, *[False] * extra.per_row] * rows
                kinds += [False] * (extra.per_view + extra.per_token * rows * columns)
                view: list[tuple[int, int | None]] = []
                for is_2d in kinds:
                    view.append((every, flat if is_2d else None))
                    every, flat = every + 1, flat + is_2d
                steps.append(view)
            for _ in range(extra.at_end if scene.kind == "video" else 0):
                steps[-1].append((every, None))
                every += 1
            media.append(steps)
        found.append(media)
    return found


def drawn_scene(draw: random.Random) -> PreparedScene:
    kind: MediaKind = draw.choice(("video", "image"))
    grid = (draw.randint(1, 3), draw.choice((2, 4)), draw.choice((2, 4, 6)))
    return PreparedScene(pixel_values=torch.empty(0, 0), grid_thw=grid, kind=kind)


def in_order(
    draw: random.Random, scenes: list[PreparedScene], shown: list[int], mixed: bool
) -> Iterator[tuple[int, int]]:
    """Yield scene and medium in the order of a sequence: the media of one kind in order, and the kinds mixed or not."""
    queues: dict[str, list[tuple[int, int]]] = {"video": [], "image": []}
    for number in shown:
        media = [(number, i) for i in range(len(scenes[number].media_grids))]
        queues[scenes[number].kind if mixed else "video"] += media
    while any(queues.values()):
        yield queues[draw.choice([kind for kind, queue in queues.items() if queue])].pop(0)


def drawn_case(seed: int, extra: ExtraTokens, in_spans: bool, mixed: bool = True) -> Case:
    """Draw rows with several scenes, scenes in several rows, and rows of text, padded on either side."""
    draw = random.Random(seed)
    scenes = [drawn_scene(draw) for _ in range(draw.randint(1, 5))]
    index = [
        draw.sample(range(len(scenes)), draw.randint(0 if mixed else 1, len(scenes))) for _ in range(draw.randint(1, 4))
    ]
    numbers, expected, rows = numbered(scenes, extra), Expected(), []
    found: list[list[tuple[int, int, int | None, tuple[float, float], int]]] = []
    for shown in index:
        ids, own, step_of_row = [TEXT], [], 0
        for scene, medium in in_order(draw, scenes, shown, mixed):
            token, steps = VIDEO if scenes[scene].kind == "video" else IMAGE, numbers[scene][medium]
            height, width = (side // 2 for side in scenes[scene].grid_thw[1:])
            for step, view in enumerate(steps):
                if step == 0 or in_spans:
                    ids += [TEXT] * draw.randint(0, 2) + [START]
                cell = 0  # among the 2D tokens
                for every, flat in view:
                    center = (cell % width + 0.5) / width - 0.5, (cell // width + 0.5) / height - 0.5
                    own.append((len(ids), every, flat, center, step_of_row))
                    ids.append(token)
                    cell += flat is not None
                if in_spans:
                    ids.append(END)
                step_of_row += 1
            ids += [END, TEXT]
        rows.append(ids)
        found.append(own)
    longest, left = max(map(len, rows)), draw.choice((True, False))
    for row, (ids, own) in enumerate(zip(rows, found, strict=True)):
        first = row * longest + (longest - len(ids) if left else 0)
        for place, every, flat, center, step in own:
            expected.places.append(first + place)
            expected.sources.append(every)
            if flat is not None:
                expected.grid_places.append(first + place)
                expected.grid_sources.append(flat)
                expected.centers.append(center)
                expected.cameras.append(step)
    padded = pad_sequence(
        [torch.tensor(ids) for ids in rows],
        batch_first=True,
        padding_value=PAD,
        padding_side="left" if left else "right",
    )
    return Case(scenes, index, padded, padded != PAD, expected)


def builder(rules: ModelSpec, extra: ExtraTokens, in_spans: bool) -> SequenceBuilder:
    return SequenceBuilder(replace(rules, placeholders=Placeholders(VIDEO, IMAGE, START, in_spans), extra_tokens=extra))


@pytest.mark.parametrize("in_spans", [False, True], ids=["a span per video", "a span per temporal patch"])
@pytest.mark.parametrize("extra", KINDS, ids=str)
def test_each_visual_token_is_where_a_walk_finds_it(extra: ExtraTokens, in_spans: bool, rules: ModelSpec) -> None:
    for seed in range(11):
        check_places(drawn_case(seed, extra, in_spans), builder(rules, extra, in_spans), extra)


def check_places(case: Case, makes: SequenceBuilder, extra: ExtraTokens) -> None:
    rows = [[case.scenes[i] for i in row] for row in case.scene_index]
    layout = makes.layout(case.ids, case.mask, rows)
    sources, grid_sources = visual_sources(layout, case.scenes, case.scene_index, extra)
    expected = case.expected
    assert sources.tolist() == expected.sources and grid_sources.tolist() == expected.grid_sources
    made = makes.build(case.ids, case.mask, case.scenes, case.scene_index)
    assert torch.equal(made.visual_sources, sources) and torch.equal(made.grid_sources, grid_sources)
    assert made.visual_places.tolist() == expected.places and made.grid_places.tolist() == expected.grid_places
    assert made.visual_counts == [sum(case.scenes[i].num_tokens(extra) for i in row) for row in case.scene_index]
    assert made.lengths == case.mask.sum(1).tolist() and made.scene_index == case.scene_index
    is_right = all(not row.tolist()[: int(row.sum())].count(False) for row in case.mask)
    assert (made.padding_mask is None) == is_right
    assert made.padding_mask is None or torch.equal(made.padding_mask, case.mask)
    # the centers and the cameras of the tokens on a grid, and nothing elsewhere
    assert_at(made.patch_centers(), torch.tensor(expected.centers).view(-1, 2), made, 0.0)
    assert_at(made.camera_index[..., None], torch.tensor(expected.cameras).view(-1, 1), made, -1)
    count = sum(scene.num_steps * scene.tokens_per_step for scene in case.scenes)
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    scattered = made.scatter_points(points)
    assert_at(scattered, points[torch.tensor(expected.grid_sources).long()], made, torch.nan)


def assert_at(values: Tensor, expected: Tensor, made: Sequences, fill: float) -> None:
    flat = torch.full((made.input_ids.numel(), values.shape[-1]), fill, dtype=values.dtype)
    flat[made.grid_places] = expected.to(values.dtype)
    torch.testing.assert_close(values.flatten(0, 1), flat, equal_nan=True)


def with_cameras(scene: PreparedScene, has_camera: Tensor) -> PreparedScene:
    count = scene.num_steps
    cameras = PatchCameras(torch.eye(4).repeat(count, 1, 1), torch.eye(3).repeat(count, 1, 1), has_camera)
    return replace(scene, cameras=cameras)


def test_tokens_of_invalid_cameras_have_none_and_text_neither(rules: ModelSpec) -> None:
    """Rows with cameras show their scenes one after another."""
    makes = builder(replace(rules, uses_cameras=True), ExtraTokens.ONE, False)
    lost = 0
    for seed in range(20):
        case = drawn_case(seed, ExtraTokens.ONE, False, mixed=False)
        generator = torch.Generator().manual_seed(seed)
        case.scenes = [
            with_cameras(scene, torch.rand(scene.num_steps, generator=generator) < 0.6) for scene in case.scenes
        ]
        try:
            made = makes.build(case.ids, case.mask, case.scenes, case.scene_index)
        except InputError as error:
            assert "a video between its images" in str(error)
            continue
        known = [torch.cat([case.scenes[i].cameras.has_camera for i in row]) for row in case.scene_index]
        row = [place // case.ids.shape[1] for place in case.expected.grid_places]
        expected = [step if known[n][step] else -1 for n, step in zip(row, case.expected.cameras, strict=True)]
        assert_at(made.camera_index[..., None], torch.tensor(expected)[:, None], made, -1)
        lost += expected.count(-1)
        assert made.camera_runs is not None
        marked = torch.zeros(case.ids.numel(), dtype=torch.bool)
        for places in made.camera_runs.places:
            marked[places] = True
        assert torch.equal(marked, made.camera_index.flatten() >= 0)
    assert lost > 20


def test_cameras_of_some_scenes_alone_or_around_a_video_are_errors(rules: ModelSpec) -> None:
    makes = builder(replace(rules, uses_cameras=True), ExtraTokens.NONE, False)

    def scenes() -> list[PreparedScene]:
        return [
            PreparedScene(pixel_values=torch.empty(0, 0), grid_thw=(n, 2, 2), kind=kind)
            for n, kind in ((2, "image"), (1, "video"))
        ]

    def made(ids: list[int], known: int, by: SequenceBuilder = makes) -> Sequences:
        shown = [with_cameras(scene, torch.ones(scene.num_steps).bool()) for scene in scenes()[:known]]
        shown += scenes()[known:]
        row = torch.tensor([ids])
        return by.build(row, torch.ones_like(row).bool(), shown, [[0, 1]])

    side_by_side = [TEXT, START, IMAGE, END, START, IMAGE, END, START, VIDEO, END, TEXT]
    between = [TEXT, START, IMAGE, END, START, VIDEO, END, START, IMAGE, END, TEXT]
    assert made(side_by_side, 2).camera_index.tolist() == [[-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1]]
    with pytest.raises(InputError, match="put the images side by side"):
        made(between, 2)
    with pytest.raises(InputError, match="a scene without cameras beside others that have some"):
        made(side_by_side, 1)
    assert made(between, 0).camera_index.amax() == 2  # no cameras, no rule
    predicts = builder(replace(rules, uses_cameras=True, may_predict_cameras=True), ExtraTokens.NONE, False)
    made(side_by_side, 1, predicts)
    with pytest.raises(InputError, match="put the images side by side"):
        made(between, 0, predicts)


def test_prompts_about_the_same_scenes_share_a_prefix_up_to_their_question(rules: ModelSpec) -> None:
    makes = builder(rules, ExtraTokens.NONE, False)
    scenes = [PreparedScene(pixel_values=torch.empty(0, 0), grid_thw=(steps, 2, 2)) for steps in (2, 1)]
    of_a, of_b = [TEXT, START, VIDEO, VIDEO, END], [TEXT, START, VIDEO, END]
    prompts = [[*of_a, 10], [*of_b, 10], [*of_a, 11, 12], [*of_a, 11, 13], [TEXT, 14, 15]]
    made = makes.prompts(prompts, [[0], [1], [0], [0], []], scenes, questions_per_pass=2)
    assert [(prompt.scenes, prompt.rows) for prompt in made] == [([0], (0, 2, 3)), ([1], (1,)), ([], (4,))]
    assert [[len(questions) for questions in prompt.passes] for prompt in made] == [[2, 1], [1], [1]]
    for prompt in made:
        prefix, questions = prompt.prefix.input_ids[0].tolist(), [each for some in prompt.passes for each in some]
        assert [[*prefix, *question] for question in questions] == [prompts[row] for row in prompt.rows]
        assert all(questions) and not any(VIDEO in question for question in questions)
        assert prompt.prefix.position_ids is not None
        assert prompt.next_position == prompt.prefix.position_ids[:, 0, -1].amax() + 1
    assert made[0].prefix.input_ids.tolist() == [of_a]
    # other words before the video: nothing is shared
    apart = makes.prompts([[*of_a, 10], [TEXT, *of_a, 10]], [[0], [0]], scenes)
    assert [prompt.rows for prompt in apart] == [(0,), (1,)]
    with pytest.raises(InputError, match="a prompt that ends with its video"):
        makes.prompts([of_a[:-1]], [[0]], scenes)


# ---- batches at the edges --------------------------------------------------------------------------------------------


SMALL = {"layers": 2, "hidden_size": 64, "heads": 2, "key_value_heads": 1, "vision_hidden_size": 32}
BY_CAMERAS: dict[str, dict[str, Any]] = {
    "auto": {"camera_encoding": PRoPE, "camera_source": "auto", **VGGT},
    "predicted": {"camera_encoding": PRoPE, "camera_source": "predicted", **VGGT},
    "pose index": {"time_index": PoseDistanceIndex, "camera_source": "predicted", **VGGT},
}


@torch.no_grad()
@pytest.mark.parametrize("name", BY_CAMERAS)
def test_text_alone_needs_no_cameras(name: str) -> None:
    """On text alone the model equals the stock model bit for bit."""
    parts = {key: part() if isinstance(part, type) else part for key, part in BY_CAMERAS[name].items()}
    ours, plain = (SpatialVLM(TinyQwen25VL(**SMALL, seed=0), **each).eval() for each in (parts, {}))
    ids = torch.tensor([[50, 60, 70, 80]])
    mask = torch.ones_like(ids)
    assert torch.equal(ours.logits(ids, mask), plain.logits(ids, mask))
    assert ours.generate_ids(ids, mask, max_new_tokens=3) == plain.generate_ids(ids, mask, max_new_tokens=3)


def test_answers_refuse_cameras_that_they_would_ignore() -> None:
    model, given = SpatialVLM(TinyQwen25VL(**SMALL), camera_encoding=PRoPE()).eval(), sequences()
    assert len(model.generate_ids(**given, cameras=cameras(1), max_new_tokens=2)) == 2
    with pytest.raises(ValueError, match="cameras per sample"):
        model.generate_ids(**given, cameras=cameras(1).span(0, 1), max_new_tokens=2)
    index = torch.full(given["input_ids"].shape, -1)
    with pytest.raises(InputError, match="not an index"):
        model.generate_ids(**given, cameras=cameras(1).with_index(index), max_new_tokens=2)


def test_a_refused_question_and_one_that_fails_are_recorded_once_and_spoil_no_other() -> None:
    task = tiny_model("plain")
    refused = Question("0", "", "How <|im_end|> many?")
    broken = RawQuestion("1", "", "<video> and <video>")
    made = tiny_batch(task, tiny_scene("a", (refused, broken, QUESTIONS[2])))
    assert [record["id"] for record in made.failed] == ["0", "1"]
    assert [record["id"] for record in made.records] == [QUESTIONS[2].id]


@pytest.mark.parametrize(("name", "training"), [("PRoPE, ChannelRange", False), ("PoseDistanceIndex", True)])
def test_a_scene_without_a_valid_camera_is_a_record(name: str, training: bool) -> None:
    task, bad = tiny_model(name), tiny_scene("a", QUESTIONS[:1])
    assert bad.geometry is not None
    bad.geometry.has_camera = torch.zeros(6, dtype=torch.bool)
    sound = replace(tiny_scene("b", QUESTIONS[1:2]))
    made = tiny_batch(task, bad, sound, training=training)
    (failed,) = made.failed
    assert "a: no cameras" in failed["error"] and "cameras.json" in failed["error"]
    assert [record["scene"] for record in made.records] == ["b"]


def test_pickled_sequences_hold_their_tensors_by_value() -> None:
    """A data worker shares each tensor by a file descriptor, and the tensors of many prompts would exhaust them."""
    task = tiny_model("prope.yaml")
    made = tiny_batch(task, tiny_scene("a"), tiny_scene("b"), training=True, pack_scenes=True)
    before, after = made.sequences, pickle.loads(pickle.dumps(made)).sequences
    assert before is not None and torch.equal(before.input_ids, after.input_ids)
    assert before.scene_index == after.scene_index and torch.equal(before.packing.places, after.packing.places)
    assert isinstance(before.__reduce__()[1][0], bytes)


# ---- positions by poses: in the worker by the dataset's cameras, in the step by predicted ones -----------------------


INDICES = ["PoseDistanceIndex", "PathLengthIndex"]
SCENES = tiny_scene("a", QUESTIONS[:3]), tiny_scene("b", QUESTIONS[:1], steps=2, seed=1)


def with_lost_frames() -> Any:
    """The first patch and one frame of the second have no camera."""
    shown = tiny_scene("a", QUESTIONS[:3], steps=4)
    assert shown.geometry is not None
    shown.geometry.has_camera = torch.tensor([False, False, False, True, True, True, True, True])
    return shown


def predicting(task: VideoQATask, geometries: Sequence[SceneGeometry | None]) -> VideoQATask:
    """Let the task's encoder predict these cameras."""
    assert task.model.geometry is not None
    task.model.geometry.forward = lambda *_, **__: list(geometries)  # type: ignore[method-assign]
    return task


def sequences_of(made: Batch) -> Sequences:
    assert made.sequences is not None
    return made.sequences


def positions(task: VideoQATask, made: Batch) -> Tensor:
    with torch.no_grad():
        return task.model.decoder_inputs(task.model.encode_scenes(made), sequences_of(made))["position_ids"]


@pytest.mark.parametrize(
    ("name", "packing", "shown"),
    [
        ("PoseDistanceIndex", {}, SCENES),
        ("PathLengthIndex", {"pack_scenes": True}, (with_lost_frames(), SCENES[1])),
    ],
)
def test_positions_by_predicted_cameras_are_those_by_equal_cameras_of_the_dataset(
    name: str, packing: dict[str, bool], shown: Any
) -> None:
    """The questions share sequences."""
    by_dataset = tiny_model(name)
    asked = tiny_batch(by_dataset, *shown, training=True, **packing)
    known = sequences_of(asked).position_ids
    assert (
        known is not None and sequences_of(asked).deferred_positions is None and sequences_of(asked).group is not None
    )
    task = predicting(tiny_model(name, camera_source="predicted", **VGGT), [each.geometry for each in shown])
    bare = tiny_batch(task, *(replace(each, geometry=None) for each in shown), training=True, **packing)
    assert sequences_of(bare).position_ids is None and sequences_of(bare).deferred_positions is not None
    assert torch.equal(positions(task, bare), positions(by_dataset, asked))
    # the control: the time of visual tokens alone follows the cameras
    others = [tiny_scene("c", steps=len(each.frame_indices) // 2, seed=5).geometry for each in shown]
    differs = positions(predicting(task, others), bare) != positions(by_dataset, asked)
    assert differs.any()


@pytest.mark.parametrize(
    ("index", "after", "in_spans"),
    [(PoseDistanceIndex(span=20), "max_thw", False), (PathLengthIndex(span=20), "max_hw", True)],
)
def test_they_are_those_of_the_host(index: PoseTimeIndex, after: Any, in_spans: bool) -> None:
    """The positions of the step equal those of the data worker, for mixed media, padding and views without cameras."""
    base, shifted = tiny_model("plain").model_spec(), 0
    for seed, extra in product(range(5), KINDS):
        case = drawn_case(seed, extra, in_spans)
        makes = builder(replace(base, time_index=index, text_after_vision=after), extra, in_spans)
        rows = [[case.scenes[i] for i in row] for row in case.scene_index]
        layout = makes.layout(case.ids, case.mask, rows)
        if not layout.media:
            continue
        poses, K = random_cameras(len(rows), max(int(layout.camera_index().max()) + 1, 1), seed)
        known = torch.rand(poses.shape[:2], generator=torch.Generator().manual_seed(seed)) < 0.7
        offset = torch.randint(3, case.ids.shape, generator=torch.Generator().manual_seed(seed)) * (case.ids == TEXT)
        cameras = Cameras(poses, K, valid_index(layout.camera_index(), known))
        expected = layout_position_ids(layout, index, text_after_vision=after, cameras=cameras) - offset
        at_time_0 = builder(replace(base, time_index=ConstantIndex(), text_after_vision=after), extra, in_spans)
        still = at_time_0.build(case.ids, case.mask, case.scenes, case.scene_index, position_offset=offset)
        assert still.position_ids is not None
        deferred = DeferredPositions(layout, still.position_ids, index, after)
        found = deferred.compute(poses.requires_grad_(), known)
        assert torch.equal(found, expected) and not found.requires_grad
        shifted += not torch.equal(found[1:], deferred.position_ids[1:])
    assert (shifted > 5) == (after == "max_thw")


def test_a_batch_of_images_alone_has_no_time_by_predicted_poses() -> None:
    """A video's positions follow from its poses in the step; images have none, and keep theirs."""
    parts: dict[str, Any] = {"time_index": PoseDistanceIndex(), "camera_source": "predicted", **VGGT}
    task = tiny_model("plain", **parts)
    images = replace(SCENES[0], geometry=None, kind="image", frame_times=None)
    assert len(predicting(task, [SCENES[0].geometry]).predict_batch(tiny_batch(task, images))) == len(images.questions)


@pytest.mark.parametrize(
    ("index", "after"),
    [(PoseDistanceIndex(), "max_thw"), (PathLengthIndex(), "max_hw"), (PathLengthIndex(span=40), "max_hw")],
)
def test_answers_are_those_by_equal_cameras_of_the_dataset(index: PoseTimeIndex, after: Any) -> None:
    """The step also computes the position behind the prefix."""
    parts: dict[str, Any] = {"time_index": index, "text_after_vision": after}
    by_dataset = tiny_model("plain", **parts)
    asked = tiny_batch(by_dataset, *SCENES)
    task = predicting(
        tiny_model("plain", camera_source="predicted", **VGGT, **parts), [each.geometry for each in SCENES]
    )
    bare = tiny_batch(task, *(replace(each, geometry=None) for each in SCENES))
    assert all(prompt.next_position is not None for prompt in asked.prompts)
    assert all(prompt.next_position is None for prompt in bare.prompts)
    assert replies(task, bare) == replies(by_dataset, asked)


@pytest.mark.parametrize("name", INDICES)
def test_auto_waits_for_predicted_cameras_where_the_dataset_has_none(name: str) -> None:
    task, shown = tiny_model(name, camera_source="auto", **VGGT), SCENES
    assert sequences_of(tiny_batch(task, *shown, training=True)).position_ids is not None
    bare = replace(shown[1], geometry=None)
    mixed = tiny_batch(task, shown[0], bare, training=True)
    assert sequences_of(mixed).position_ids is None and mixed.scenes[0].cameras is not None
    predicting(task, [tiny_scene("c", seed=5).geometry, shown[1].geometry])  # the first is not taken
    expected = positions(tiny_model(name), tiny_batch(tiny_model(name), *shown, training=True))
    assert torch.equal(positions(task, mixed), expected)
