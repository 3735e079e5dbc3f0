"""The settings of the ablation as words of the command line, and the order in which they are made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks.runs import QUESTION, Results, Run, seeded

BUDGET = ("--data.num_frames=16", "--trainer.max_steps=100", "--trainer.limit_val_batches=0")
SEEDS, PATHS = (0, 1, 2), ("loop", "local")

TESTS: dict[str, tuple[str, ...]] = {
    "": (),
    "focal +1 %": ("--data.source=benchmarks.perturbed.WrongIntrinsics", "--data.source.error=0.01"),
    "focal +5 %": ("--data.source=benchmarks.perturbed.WrongIntrinsics", "--data.source.error=0.05"),
    "focal +20 %": ("--data.source=benchmarks.perturbed.WrongIntrinsics", "--data.source.error=0.2"),
    "views shuffled": ("--data.frame_pairing=benchmarks.perturbed.ShuffledSteps",),
    "frame ids shuffled": ("--data=benchmarks.perturbed.ShuffledFrameIds",),
    "cameras of another room": ("--data.source=benchmarks.room_size.SwappedRooms",),
}
INTRINSICS = ("focal +1 %", "focal +5 %", "focal +20 %")
MOVING = ("--data.source.dynamic_objects=true", "--data.question_types=[obj_appearance_order]")
FIXED = "--data.train_sampler=null"  # the same frames each epoch, so that VGGT sees each room once
CACHED = ("--model.geometry_cache=GeometryCache", "--model.geometry_cache.folder=cache/geometry", FIXED)
VGGT = ("--config=concat_split.yaml", *CACHED)
RAYS = ("--model.geometry=DatasetGeometry", "--model.geometry.depth=false")
POINTS = ("--config=concat_split.yaml", "--model.geometry=DatasetGeometry")
SHAPE = (*POINTS, "--model.geometry.unit=scene")  # what VGGT would say if it never erred
STOCK = ("--config=qwen25_vl.yaml",)
BARE = (
    "--config=prope.yaml",
    "--model.fusion=null",
    "--model.view_mixer=null",
    "--model.camera_encoding=null",
)  # 2D tokens alone


@dataclass(frozen=True)
class Setting:
    """A model of the ablation.

    Attributes:
        words: of its `fit`, without those that all settings have.
        tests: what the trained model is tested on as well, names of `TESTS`.
        core: it is made first.
        hard: one of those that might see the size on `local` paths, where a camera's own way says nothing of it.
        kind: of question that its score is of.
    """

    words: tuple[str, ...]
    tests: tuple[str, ...] = ()
    core: bool = False
    hard: bool = False
    kind: str = QUESTION

    @property
    def paths(self) -> tuple[str, ...]:
        """The camera paths that it is made on."""
        return PATHS if self.core or self.hard else PATHS[:1]


def encoded(name: str, *more: str, **arguments: Any) -> tuple[str, ...]:
    """The words for an encoding and its arguments."""
    options = [f"--model.camera_encoding.{key}={_word(value)}" for key, value in arguments.items()]
    return (*BARE, f"--model.camera_encoding={name}", *options, *more)


def viewed(name: str, **arguments: Any) -> tuple[str, ...]:
    """The words for what the views learn of their cameras before the decoder."""
    return (
        f"--model.view_mixer={name}",
        *(f"--model.view_mixer.{key}={_word(value)}" for key, value in arguments.items()),
    )


def part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


NO_TIME = "--model.time_index=ConstantIndex"
FRAME_ID = "--model.time_index=FrameNumberIndex"
CONNECTOR = viewed("ViewAttention", encoding="PRoPE")
T_SECTION, LOW_W, LOW_H = (
    part("TemporalSection"),
    part("LowFrequencies", section="w"),
    part("LowFrequencies", section="h"),
)

# the order is that in which they are made, and that of the table
SETTINGS: dict[str, Setting] = {
    "none": Setting(STOCK, ("views shuffled",), core=True),
    "PRoPE": Setting(encoded("PRoPE"), (*INTRINSICS, "views shuffled", "cameras of another room"), core=True),
    "PRoPE on the connector": Setting((*BARE, *CONNECTOR), INTRINSICS, core=True),
    "PRoPE on both": Setting(encoded("PRoPE", *CONNECTOR), core=True),
    "rays added": Setting((*BARE, *viewed("RayEmbedding")), INTRINSICS, core=True),
    "GTA": Setting(encoded("GTA"), core=True),
    "CaPE": Setting(encoded("CaPE"), core=True),
    "PoseALiBi": Setting(encoded("PoseALiBi"), core=True),
    "PRoPE, T section": Setting(encoded("PRoPE", NO_TIME, placement="TemporalSection"), core=True),
    "PRoPE, a quarter of the channels": Setting(encoded("PRoPE", placement=part("ChannelRange", stop=0.25)), core=True),
    "PRoPE, low frequencies": Setting(encoded("PRoPE", placement=LOW_W), core=True),
    "PRoPE, high frequencies": Setting(encoded("PRoPE", placement=part("HighFrequencies", section="w")), core=True),
    "PRoPE, appended channels": Setting(encoded("PRoPE", placement="ExtraChannels"), core=True),
    "PRoPE, rotation": Setting(encoded("PRoPE", pose_component="rotation"), core=True),
    "PRoPE, translation": Setting(encoded("PRoPE", pose_component="translation"), core=True),
    "PRoPE, qk": Setting(encoded("PRoPE", apply_to="qk"), core=True),
    "PRoPE, vo": Setting(encoded("PRoPE", apply_to="vo"), core=True),
    "none, no time": Setting((*STOCK, NO_TIME)),
    "PRoPE, no time": Setting(encoded("PRoPE", NO_TIME)),
    "frame ids": Setting((*STOCK, FRAME_ID), ("views shuffled", "frame ids shuffled")),
    "frame ids and PRoPE": Setting(encoded("PRoPE", FRAME_ID), ("views shuffled", "frame ids shuffled")),
    "pose index": Setting((*STOCK, "--model.time_index=PoseDistanceIndex")),
    "pose index, rotation": Setting(
        (*STOCK, "--model.time_index=PoseDistanceIndex", "--model.time_index.measure=rotation")
    ),
    "pose index, center": Setting(
        (*STOCK, "--model.time_index=PoseDistanceIndex", "--model.time_index.measure=center")
    ),
    "pose path": Setting((*STOCK, "--model.time_index=PathLengthIndex")),
    "PRoPE, data world": Setting((*BARE, f"--model.camera_encoding={_word(part('PRoPE', reference=None))}")),
    "PRoPE, middle view": Setting(encoded("PRoPE", reference="middle")),
    "PRoPE, medoid": Setting(encoded("PRoPE", reference="medoid")),
    "PRoPE, saddle-balanced view": Setting(encoded("PRoPE", reference="saddle_balanced")),
    "PRoPE, unit of mean distance": Setting(encoded("PRoPE", scale="mean")),
    "GTA, translations x 100": Setting(encoded("GTA", translation_scale=100)),
    "GTA, translations x 0.01": Setting(encoded("GTA", translation_scale=0.01)),
    "GTA, learned scale": Setting(encoded("GTA", learn_scale=True)),
    "PoseALiBi, rotation": Setting(encoded("PoseALiBi", measure="rotation")),
    "PoseALiBi, learned slopes": Setting(encoded("PoseALiBi", slopes="learned")),
    "RayEncoding": Setting(encoded("RayEncoding")),
    "ValueRoPE": Setting(encoded("ValueRoPE")),
    "ValueRoPE and GTA": Setting(encoded("Compose", encodings=[part("ValueRoPE"), part("GTA")])),
    "PRoPE, x and y in turns": Setting(encoded("PRoPE", placement=part("AlternateAxes", placements=[LOW_W, LOW_H]))),
    "PRoPE, every other layer": Setting(encoded("LayerSubset", encoding="PRoPE")),
    "PRoPE, one of two groups of heads": Setting(encoded("HeadSubset", encoding="PRoPE", key_value_heads=[0])),
    "directions added": Setting((*BARE, *viewed("RayEmbedding", rays="directions"))),
    "rays as 3D tokens": Setting(("--config=concat_split.yaml", *RAYS), INTRINSICS),
    "rays as 3D tokens and PRoPE": Setting(("--config=concat_split.yaml", *RAYS, "--model.camera_encoding=PRoPE")),
    "camera token alone": Setting(("--config=spatial_mllm.yaml", *RAYS, "--model.fusion=CameraTokenFusion")),
    "none, the same frames each epoch": Setting((*STOCK, FIXED)),
    "VGGT tokens": Setting(VGGT),
    "VGGT tokens added": Setting(("--config=spatial_mllm.yaml", *CACHED)),
    "VGGT tokens and PRoPE": Setting((*VGGT, "--model.camera_encoding=PRoPE")),
    "VGGT tokens and PRoPE by VGGT cameras": Setting(
        (*VGGT, "--model.camera_encoding=PRoPE", "--model.camera_source=predicted")
    ),
    "PointRoPE": Setting(encoded("PointRoPE"), hard=True),
    "PointRoPE, qkvo": Setting(encoded("PointRoPE", apply_to="qkvo"), hard=True),
    "points as 3D tokens": Setting(POINTS, hard=True),
    "shape as 3D tokens": Setting(SHAPE, hard=True),
    "shape as 3D tokens and PRoPE": Setting((*SHAPE, "--model.camera_encoding=PRoPE"), hard=True),
    "shape as 3D tokens and PointRoPE": Setting((*SHAPE, "--model.camera_encoding=PointRoPE"), hard=True),
    "moving: none": Setting((*STOCK, *MOVING), ("views shuffled",), kind="obj_appearance_order"),
    "moving: none, no time": Setting((*STOCK, NO_TIME, *MOVING), kind="obj_appearance_order"),
    "moving: PRoPE": Setting(encoded("PRoPE", *MOVING), ("views shuffled",), kind="obj_appearance_order"),
    "moving: PRoPE, no time": Setting(encoded("PRoPE", NO_TIME, *MOVING), kind="obj_appearance_order"),
}


def planned(
    settings: Sequence[str], paths: Sequence[str], seeds: Sequence[int], overrides: Sequence[str] = ()
) -> list[Run]:
    """The runs in the order in which they are made: what answers most comes first, all settings of a seed together."""
    rounds = (("loop", True), ("loop", False), ("local", False), ("local", True))
    return [
        run(name, path, seed, overrides)
        for (path, core), seed, name in product(rounds, seeds, settings)
        if path in paths and path in SETTINGS[name].paths and SETTINGS[name].core == core
    ]


def run(name: str, path: str, seed: int, overrides: Sequence[str] = ()) -> Run:
    """One training of a setting, and its tests."""
    setting, on_path = SETTINGS[name], f"--data.source.trajectory={path}"
    tests = {}
    for test in ("", *setting.tests):
        again = (on_path,) if TESTS[test] and TESTS[test][0].startswith("--data.source=") else ()
        tests[test] = (*TESTS[test], *again)
    folder = "".join(c if c.isalnum() else "-" for c in name)
    return Run(f"{folder}-{path}-{seed}", (*setting.words, *BUDGET, *seeded(seed), on_path, *overrides), tests)


def scored(results: Results, name: str, path: str, test: str = "") -> list[float]:
    """One a seed, of those that are done."""
    return results.scores([run(name, path, seed) for seed in SEEDS], test, SETTINGS[name].kind)
