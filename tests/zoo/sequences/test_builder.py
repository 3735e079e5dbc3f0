"""Where the visual tokens of scenes stand in sequences, against a walk over the tokens one by one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests.zoo.asking import build
from zoo import InputError
from zoo.cameras.scene_geometry import PatchCameras
from zoo.model_spec import ModelSpec
from zoo.sequence_builder import SequenceBuilder, visual_sources
from zoo.sequences.batch import Sequences
from zoo.sequences.layout import ExtraTokens, MediaKind, Placeholders
from zoo.sequences.loaded_scene import LoadedScene

PAD, START, END, VIDEO, IMAGE, TEXT = 0, 1, 2, 3, 4, 9
SEEDS, QUICK = range(16), 11  # of which every run takes the first


@pytest.fixture(scope="module")
def rules() -> ModelSpec:
    """Of a model without cameras, which may see videos between images."""
    return build("plain").model_spec()


@dataclass
class Expected:
    """Of each visual token in turn, or of each on a 2D grid."""

    places: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    grid_places: list[int] = field(default_factory=list)
    grid_sources: list[int] = field(default_factory=list)
    centers: list[tuple[float, float]] = field(default_factory=list)
    cameras: list[int] = field(default_factory=list)


@dataclass
class Case:
    scenes: list[LoadedScene]
    scene_index: list[list[int]]
    ids: Tensor
    mask: Tensor
    expected: Expected


def numbered(scenes: list[LoadedScene], extra: ExtraTokens) -> list[list[list[list[tuple[int, int | None]]]]]:
    """For each scene, medium and temporal patch: the number of each token, and that among the 2D tokens."""
    every, flat, found = 0, 0, []
    for scene in scenes:
        media: list[list[list[tuple[int, int | None]]]] = []
        for _ in range(1 if scene.kind == "video" else scene.num_steps):
            steps: list[list[tuple[int, int | None]]] = []
            for _ in range(scene.num_steps if scene.kind == "video" else 1):
                size = scene.grid_thw[1] * scene.grid_thw[2] // 4
                view: list[tuple[int, int | None]] = [(every + i, flat + i) for i in range(size)]
                more = {ExtraTokens.NONE: 0, ExtraTokens.END: 0, ExtraTokens.ALL: size}.get(extra, 1)
                view += [(every + size + i, None) for i in range(more)]
                every, flat = every + size + more, flat + size
                steps.append(view)
            if scene.kind == "video" and extra in (ExtraTokens.END, ExtraTokens.LAST_AND_END):
                steps[-1].append((every, None))
                every += 1
            media.append(steps)
        found.append(media)
    return found


def drawn_scene(draw: random.Random) -> LoadedScene:
    kind: MediaKind = draw.choice(("video", "image"))
    grid = (draw.randint(1, 3), draw.choice((2, 4)), draw.choice((2, 4, 6)))
    return LoadedScene(pixel_values=torch.empty(0, 0), grid_thw=grid, kind=kind)


def in_order(
    draw: random.Random, scenes: list[LoadedScene], shown: list[int], mixed: bool
) -> Iterator[tuple[int, int]]:
    """Scene and medium, as a sequence shows them: those of a kind in order, the kinds in any, or scene by scene."""
    queues: dict[str, list[tuple[int, int]]] = {"video": [], "image": []}
    for number in shown:
        media = [(number, i) for i in range(len(scenes[number].media_grids))]
        queues[scenes[number].kind if mixed else "video"] += media
    while any(queues.values()):
        yield queues[draw.choice([kind for kind, queue in queues.items() if queue])].pop(0)


def drawn_case(seed: int, extra: ExtraTokens, in_spans: bool, mixed: bool = True) -> Case:
    """Several scenes per row, the same scene in several rows, rows of text; in random order, padded on either side."""
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
                for cell, (every, flat) in enumerate(view):
                    center = (cell % width + 0.5) / width - 0.5, (cell // width + 0.5) / height - 0.5
                    own.append((len(ids), every, flat, center, step_of_row))
                    ids.append(token)
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
@pytest.mark.parametrize("extra", ExtraTokens)
@pytest.mark.parametrize("seed", [pytest.param(n, marks=() if n < QUICK else pytest.mark.slow) for n in SEEDS])
def test_each_visual_token_is_where_a_walk_finds_it(
    seed: int, extra: ExtraTokens, in_spans: bool, rules: ModelSpec
) -> None:
    case, makes = drawn_case(seed, extra, in_spans), builder(rules, extra, in_spans)
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
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    scattered = made.scatter_points(points)
    assert_at(scattered, points[torch.tensor(expected.grid_sources).long()], made, torch.nan)


def assert_at(values: Tensor, expected: Tensor, made: Sequences, fill: float) -> None:
    flat = torch.full((made.input_ids.numel(), values.shape[-1]), fill, dtype=values.dtype)
    flat[made.grid_places] = expected.to(values.dtype)
    torch.testing.assert_close(values.flatten(0, 1), flat, equal_nan=True)


def test_cases_are_of_every_kind() -> None:
    """The control: what the walk has been compared on."""
    cases = [drawn_case(seed, ExtraTokens.NONE, False) for seed in SEEDS[:QUICK]]
    kinds = [[[case.scenes[i].kind for i in row] for row in case.scene_index] for case in cases]
    assert any(row.count("image") > 1 and row.count("video") > 1 for rows in kinds for row in rows)
    assert any(not row for rows in kinds for row in rows) and any(len(rows) > 2 for rows in kinds)
    assert any(len({i for row in case.scene_index for i in row}) < sum(map(len, case.scene_index)) for case in cases)
    assert {bool(case.mask[:, 0].all()) for case in cases} == {True, False}


def with_cameras(scene: LoadedScene, has_camera: Tensor) -> LoadedScene:
    count = scene.num_steps
    cameras = PatchCameras(torch.eye(4).repeat(count, 1, 1), torch.eye(3).repeat(count, 1, 1), has_camera)
    return replace(scene, cameras=cameras)


def test_tokens_of_invalid_cameras_have_none_and_text_neither(rules: ModelSpec) -> None:
    """Scene by scene, as rows with cameras show them."""
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

    def scenes() -> list[LoadedScene]:
        return [
            LoadedScene(pixel_values=torch.empty(0, 0), grid_thw=(n, 2, 2), kind=kind)
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


# ---- prompts -----------------------------------------------------------------------------------------------------


def test_prompts_about_the_same_scenes_share_a_prefix_up_to_their_question(rules: ModelSpec) -> None:
    makes = builder(rules, ExtraTokens.NONE, False)
    scenes = [LoadedScene(pixel_values=torch.empty(0, 0), grid_thw=(steps, 2, 2)) for steps in (2, 1)]
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
