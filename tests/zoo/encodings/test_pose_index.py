"""PoseIndex: the T of the position ids is the pose, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from jsonargparse import ArgumentParser

from tests.zoo.test_attention import HEAD_DIM, MROPE_SECTION, TOKENS, Example, logits, tiny_model
from zoo.cameras import Cameras
from zoo.encodings import CameraEncoding, PoseALiBi, PoseIndex, PRoPE, RayEncoding, Stack, TSection, VORoPE, XYZRoPE
from zoo.errors import InputError
from zoo.positions import mrope_position_ids
from zoo.time_index import FrameId, Pose, PosePath, Seconds, TimeIndex


class Clip(Example):
    def with_time(self, time: TimeIndex) -> Clip:
        cameras = Cameras(self.poses, self.K, self.index)
        self.position_ids, self.deltas = mrope_position_ids(
            self.input_ids,
            self.attention_mask,
            video_grid_thw=torch.tensor([[3, 4, 4], [2, 4, 4]]),
            **TOKENS,
            time_index=time,
            cameras=cameras,
            text_after_vision="max_hw",
        )
        return self


@pytest.mark.parametrize("index", [Pose(span=9), PosePath("rotation", span=20), Pose(reference="medoid")])
@torch.no_grad()
def test_only_the_time_of_visual_tokens_changes(index: Pose | PosePath) -> None:
    encoding = PoseIndex(index)
    assert encoding.time_index is index and not encoding.needs_constant_time
    stock, posed = Clip().with_time(Seconds()), Clip().with_time(encoding.time_index)
    assert torch.equal(stock.position_ids[1:], posed.position_ids[1:])
    text = stock.index < 0
    assert torch.equal(stock.position_ids[:, text], posed.position_ids[:, text])
    assert not torch.equal(stock.position_ids[0, ~text], posed.position_ids[0, ~text])
    t = posed.position_ids[0, 0, posed.index[0] >= 0]
    assert int(t.max() - t.min()) == index.span


@torch.no_grad()
def test_the_attention_stays_stock_but_the_model_sees_the_poses() -> None:
    model = tiny_model()
    example = Clip().with_time(PoseIndex().time_index)
    cameras = Cameras(example.poses, example.K, example.index)
    encoded = PoseIndex().encode(cameras, head_dim=HEAD_DIM, mrope_section=MROPE_SECTION)
    posed = logits(model, example)
    assert torch.equal(logits(model, example, camera_encoding=encoded), posed)
    assert encoded.decoding() is None and encoded.repeated(2) is encoded
    assert (posed - logits(model, Clip().with_time(Seconds()))).abs().max() > 1e-3
    example.poses = example.poses.flip(1)
    assert (posed - logits(model, example.with_time(Pose()))).abs().max() > 1e-3


def test_one_time_in_a_stack() -> None:
    index = PosePath()
    assert Stack([PRoPE(), PoseIndex(index)]).time_index is index
    assert Stack([PRoPE(), PoseALiBi()]).time_index is None
    with pytest.raises(InputError, match="there is one time"):
        Stack([PoseIndex(), PoseIndex()])
    assert Stack([PRoPE(TSection()), PoseIndex()]).needs_constant_time  # the model then refuses, as with any time


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"class_path": "zoo.encodings.PoseALiBi", "init_args": {"measure": "log", "scale": "rms"}}, PoseALiBi),
        ({"class_path": "zoo.encodings.PoseALiBi", "init_args": {"slopes": "learned"}}, PoseALiBi),
        ({"class_path": "zoo.encodings.XYZRoPE", "init_args": {"terms": "qkvo", "reference": "middle"}}, XYZRoPE),
        ({"class_path": "zoo.encodings.VORoPE"}, VORoPE),
        (
            {
                "class_path": "zoo.encodings.RayEncoding",
                "init_args": {"placement": {"class_path": "zoo.encodings.TSection"}, "scale": "mean"},
            },
            RayEncoding,
        ),
        (
            {
                "class_path": "zoo.encodings.PoseIndex",
                "init_args": {"index": {"class_path": "zoo.time_index.PosePath", "init_args": {"span": 7}}},
            },
            PoseIndex,
        ),
    ],
)
def test_built_from_a_config(config: dict, kind: type) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--encoding", type=CameraEncoding)
    built = parser.instantiate(parser.parse_object({"encoding": config})).encoding
    assert type(built) is kind


def test_times_built_from_a_config() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--time", type=TimeIndex)
    for name, arguments in (("FrameId", {"span": 5}), ("Pose", {"reference": "medoid"}), ("PosePath", {})):
        config = {"class_path": f"zoo.time_index.{name}", "init_args": arguments}
        built = parser.instantiate(parser.parse_object({"time": config})).time
        assert type(built) in (FrameId, Pose, PosePath) and type(built).__name__ == name
