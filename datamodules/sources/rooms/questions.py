"""Questions with exact answers in VSI-Bench's types and wording, without route planning.

As in VSI-Bench, questions are unambiguous: they ask about clearly visible things, with a margin to the second-best
answer. Moving things occur only in questions about appearance order. Sizes, distances and directions refer to bounding
boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from jaxtyping import Int16

from datamodules.scenes import Question
from datamodules.sources.rooms.scene import RoomScene, Thing, box_distance

SEEN_SHARE = 0.004  # a thing is seen if it covers more than this share of a frame's pixels
GLIMPSE_SHARE = 0.001  # a thing is not visible yet if it covers at most this share
ORDER_GAP = 2  # minimum number of frames between two first appearances
MIN_DISTANCE_M = 0.3
DISTANCE_MARGIN_M, DISTANCE_MARGIN = 0.15, 0.15  # between nearest and second nearest: meters and relative
ANGLE_MARGIN = np.deg2rad(12)  # to the border between two directions
STAND_APART_M = 0.5  # between the centers of things in a question about directions

ROOM = (
    "What is the size of this room (in square meters)? \n"
    "If multiple rooms are shown, estimate the size of the combined space."
)
COUNT = "How many {}(s) are in this room?"
SIZE = "What is the length of the longest dimension (length, width, or height) of the {}, measured in centimeters?"
CLOSEST = "Measuring from the closest point of each object, "
DISTANCE = CLOSEST + "what is the distance between the {} and the {} (in meters)?"
NEAREST = CLOSEST + "which of these objects ({}) is the closest to the {}?"
STANDING = "If I am standing by the {} and facing the {}, is the {} to "
EASY = STANDING + "the left or the right of the {}?"
MEDIUM = STANDING + (
    "my left, right, or back?\n"
    "An object is to my back if I would have to turn at least 135 degrees in order to face it."
)
HARD = STANDING + (
    "my front-left, front-right, back-left, or back-right?\n"
    "The directions refer to the quadrants of a Cartesian plane"
    " (if I am standing at the origin and facing along the positive y-axis)."
)
DIRECTIONS = {
    "easy": ("left", "right"),
    "medium": ("left", "right", "back"),
    "hard": ("front-left", "front-right", "back-left", "back-right"),
}
ORDER = "What will be the first-time appearance order of the following categories in the video: {}?"


@dataclass(frozen=True)
class _Visible:
    """The things that may be asked about.

    Attributes:
        single: Seen categories with one static thing.
        several: Categories with several things, all seen.
        first: Frames of the first glimpse and of first being seen, by category, with moving categories.
        moving: Categories of moving things.
    """

    single: dict[str, Thing]
    several: dict[str, list[Thing]]
    first: dict[str, tuple[int, int]]
    moving: set[str]


def ask(scene: RoomScene, prefix: str, ids: Int16[np.ndarray, "T H W"], rng: np.random.Generator) -> list[Question]:
    """Draw up to 12 questions, the room size first.

    Args:
        scene: The scene.
        prefix: Prefix of the question ids.
        ids: Object ids of all frames, see `Rendering`.
        rng: Random generator.
    """
    visible = _find_visible(scene, ids)
    questions: list[Parts] = [("room_size_estimation", ROOM, f"{scene.area:.1f}", ())]
    for kinds, limit in ((_counts, 2), (_sizes, 2), (_distances, 2), (_nearest, 1)):
        questions += _take(kinds(visible, rng), limit)
    questions += list(_directions(visible, rng))
    questions += _take(_orders(visible, rng), 1)
    return [Question(f"{prefix}-{number:02d}", *parts) for number, parts in enumerate(questions)]


def relative_angle(standing: Thing, facing: Thing, asked: Thing) -> float:
    """Return the angle in radians from the facing direction to the asked thing, positive to the left, in -pi..pi."""
    at = np.array(standing.center[:2])
    ahead, there = np.array(facing.center[:2]) - at, np.array(asked.center[:2]) - at
    return float(np.arctan2(ahead[0] * there[1] - ahead[1] * there[0], ahead @ there))


def things_distance(a: Thing, b: Thing) -> float:
    """Return the distance in meters between the closest points of two bounding boxes."""
    boxes = [np.array([value]) for thing in (a, b) for value in (thing.center, thing.size, thing.yaw)]
    return float(box_distance(*boxes)[0])


Parts = tuple[str, str, str, tuple[str, ...]]  # type, question, ground truth, options


def _take(candidates: Iterator[Parts], limit: int) -> list[Parts]:
    return [parts for parts, _ in zip(candidates, range(limit), strict=False)]


def _find_visible(scene: RoomScene, ids: np.ndarray) -> _Visible:
    pixels = ids.shape[1] * ids.shape[2]
    shown = np.stack([np.bincount(frame.ravel() + 1, minlength=len(scene.things) + 1)[1:] for frame in ids])
    groups: dict[str, list[int]] = {}
    for number, thing in enumerate(scene.things):
        groups.setdefault(thing.category, []).append(number)
    visible = _Visible({}, {}, {}, {thing.category for thing in scene.things if thing.track})
    for category, members in groups.items():
        cover = shown[:, members] / pixels
        seen, glimpsed = cover > SEEN_SHARE, cover > GLIMPSE_SHARE
        if seen.any():
            visible.first[category] = int(glimpsed.any(1).argmax()), int(seen.any(1).argmax())
        if category not in visible.moving and seen.any(0).all():
            things = [scene.things[number] for number in members]
            if len(things) == 1:
                visible.single[category] = things[0]
            else:
                visible.several[category] = things
    return visible


def _counts(visible: _Visible, rng: np.random.Generator) -> Iterator[Parts]:
    for category in _shuffled(visible.several, rng):
        yield "object_counting", COUNT.format(category), str(len(visible.several[category])), ()


def _sizes(visible: _Visible, rng: np.random.Generator) -> Iterator[Parts]:
    for category in _shuffled(visible.single, rng):
        longest = max(visible.single[category].size)
        yield "object_size_estimation", SIZE.format(category), f"{100 * longest:.0f}", ()


def _distances(visible: _Visible, rng: np.random.Generator) -> Iterator[Parts]:
    for pair in _shuffled(combinations(visible.single, 2), rng):
        a, b = _shuffled(pair, rng)
        distance = things_distance(visible.single[a], visible.single[b])
        if distance >= MIN_DISTANCE_M:
            yield "object_abs_distance", DISTANCE.format(a, b), f"{distance:.1f}", ()


def _nearest(visible: _Visible, rng: np.random.Generator) -> Iterator[Parts]:
    things = {category: [thing] for category, thing in visible.single.items()} | visible.several
    for target in _shuffled(visible.single, rng):
        others = _shuffled(things.keys() - {target}, rng)[:4]
        if len(others) < 4:
            return
        distance = {
            other: min(things_distance(visible.single[target], thing) for thing in things[other]) for other in others
        }
        best, second = sorted(distance.values())[:2]
        if second - best >= max(DISTANCE_MARGIN_M, DISTANCE_MARGIN * second):
            text = NEAREST.format(", ".join(others), target)
            yield "object_rel_distance", text, *choice(others, min(others, key=distance.__getitem__))


def _directions(visible: _Visible, rng: np.random.Generator) -> Iterator[Parts]:
    """Yield one question per difficulty. All answers that the room permits are equally likely."""
    triples: dict[str, dict[str, tuple[str, ...]]] = {level: {} for level in DIRECTIONS}
    for names in _shuffled(permutations(visible.single, 3), rng)[:80]:
        standing, facing, asked = (visible.single[name] for name in names)
        places = np.array([thing.center[:2] for thing in (standing, facing, asked)])
        if min(np.linalg.norm(a - b) for a, b in combinations(places, 2)) < STAND_APART_M:
            continue
        angle = relative_angle(standing, facing, asked)
        for level, by_answer in triples.items():
            if answer := direction(angle, level):
                by_answer.setdefault(answer, names)
    for level, text in (("easy", EASY), ("medium", MEDIUM), ("hard", HARD)):
        for answer in _shuffled(triples[level], rng)[:1]:
            names = triples[level][answer]
            letter, options = choice(_shuffled(DIRECTIONS[level], rng), answer)
            yield f"object_rel_direction_{level}", text.format(*names, names[1]), letter, options


def direction(angle: float, level: str) -> str | None:
    """Return the answer to a question about directions, or None if the angle is ambiguous.

    As in VSI-Bench, left and right of "medium" extend from straight ahead to 135 degrees.

    Args:
        angle: See `relative_angle`.
        level: "easy", "medium" or "hard".
    """
    side, turn = ("left" if angle > 0 else "right"), abs(angle)
    borders = {"easy": (0, 180), "medium": (0, 135), "hard": (0, 90, 180)}[level]
    if min(abs(turn - np.deg2rad(border)) for border in borders) < ANGLE_MARGIN:
        return None
    if level == "medium" and turn > np.deg2rad(135):
        return "back"
    return side if level != "hard" else f"{'front' if turn < np.pi / 2 else 'back'}-{side}"


def _orders(visible: _Visible, rng: np.random.Generator) -> Iterator[Parts]:
    """Yield questions about four categories, each seen before the first glimpse of the next, moving ones preferred."""
    groups = _shuffled(combinations(sorted(visible.first, key=lambda category: visible.first[category][1]), 4), rng)
    for group in sorted(groups, key=lambda group: not visible.moving & set(group)):
        times = [visible.first[category] for category in group]
        if all(seen + ORDER_GAP <= glimpse for (_, seen), (glimpse, _) in zip(times, times[1:], strict=False)):
            truth = ", ".join(group)
            orders = _shuffled((", ".join(order) for order in permutations(group)), rng)
            options = [truth, *[order for order in orders if order != truth][:3]]
            text = ORDER.format(", ".join(_shuffled(group, rng)))
            yield "obj_appearance_order", text, *choice(_shuffled(options, rng), truth)


def choice(options: Sequence[str], answer: str) -> tuple[str, tuple[str, ...]]:
    """Return the letter of the answer, and the lettered options."""
    return "ABCD"[options.index(answer)], tuple(
        f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=False)
    )


def _shuffled(items, rng):  # type: ignore[no-untyped-def]
    items = sorted(items)  # so that the result does not depend on Python's hash seed
    return [items[i] for i in rng.permutation(len(items))]
