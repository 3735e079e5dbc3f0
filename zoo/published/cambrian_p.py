"""Cambrian-P (arXiv 2605.22819): Cambrian-S that learns to predict the pose of each frame.

A camera token follows the tokens of each frame. A head like VGGT's camera head reads the decoder's states at these
tokens and predicts VGGT's pose encodings. The reference is cambrian-mllm/cambrian-p, state b3c15527. The released
files were not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from zoo.backbones.base import AttentionImplementation, BackboneLoader, DType, License
from zoo.backbones.pretrained import EmptyBackbone
from zoo.cameras.poses import intrinsics_in_pixels, invert_se3, pose_distance
from zoo.cameras.scene_geometry import Window
from zoo.checkpoints.from_tensors import load_backbone
from zoo.errors import InputError, check_choice
from zoo.geometry.vggt import CameraHead, cameras_to_pose_encoding, pose_encoding_to_cameras
from zoo.model import SpatialVLM
from zoo.objectives.base import Decoded, Objective
from zoo.precision import full_precision, to_float32
from zoo.published.cambrian_s import (
    CambrianBackbone,
    CambrianPreprocessor,
    OfficialCambrian,
    PretrainedCambrianS,
    TinyCambrianS,
    grid_in_patches,
    known_settings,
    square_pictures,
    token_side,
)
from zoo.published.release import refuse_others
from zoo.scene_encoding import EncodedScene
from zoo.sequence_builder import SequenceBuilder
from zoo.sequences.loaded_scene import PreparedScene
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.load import Layout, NameTable, ReleasedWeights, Tensors, first_tensor, load_weights

__all__ = [
    "CambrianP",
    "PosePrediction",
    "PretrainedCambrianP",
    "TinyCambrianP",
    "load_cambrian_p",
]

PoseLoss = Literal["l1", "l2"]
PoseTokens = Literal["always", "training"]
Rescaled = Literal["target", "prediction"]
PROJECTOR, HEAD = "projector_list.0.0.", "camera_head."  # prefixes of the official names
ITERATION_DECAY = 0.6
MAX_ERROR = 100.0  # bound on the error of a translation component
SCALE_RANGE = (0.01, 100.0)
MIN_PATH = 0.1


class PoseHead(nn.Module):
    """VGGT's camera head over the views of a scene, applied to a linear projection of the decoder's states.

    Args:
        width: Width of the decoder.
        dim: Width of the head, a multiple of `num_heads`.
        trunk_depth: Number of blocks over the views.
        causal: Mask later views, for streaming.
        num_heads: Heads of the blocks' attention.
    """

    def __init__(
        self, width: int, dim: int = 2048, trunk_depth: int = 4, causal: bool = False, num_heads: int = 16
    ) -> None:
        super().__init__()
        self.projector = nn.Linear(width, dim)
        self.camera_head = CameraHead(dim, trunk_depth, num_heads, causal=causal)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], *, trunk_depth: int, causal: bool) -> PoseHead:
        """Build the head from official tensors, in their dtype. All other tensors are ignored."""
        dim, width = state_dict[f"{PROJECTOR}weight"].shape
        head = cls(width, dim, trunk_depth, causal).to(state_dict[f"{PROJECTOR}weight"].dtype)
        own = {name: state_dict[official] for name, official in head._official_names()}
        head.load_state_dict(own)
        return head

    def named_official_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters with their official names."""
        parameters = dict(self.named_parameters())
        return ((official, parameters[name]) for name, official in self._official_names())

    def _official_names(self) -> Iterator[tuple[str, str]]:
        for name, _ in self.named_parameters():
            yield name, name.replace("projector.", PROJECTOR)

    def forward(self, states: Float[Tensor, "B S W"]) -> Float[Tensor, "iterations B S 9"]:
        """Predict VGGT's pose encoding of each view, after each of four iterations."""
        return self.camera_head(self.projector(states))


def camera_loss(
    predictions: Float[Tensor, "iterations B S 9"],
    world_to_camera: Float[Tensor, "B S _ 4"],
    K_px: Float[Tensor, "B S 3 3"],
    image_size_hw: Sequence[int],
    *,
    kind: PoseLoss = "l1",
    weights: Sequence[float] = (1.0, 1.0, 0.5),
    valid: Bool[Tensor, "B S"] | None = None,
    align_scale: Bool[Tensor, " B"] | None = None,
    rescale: Rescaled = "target",
    balance: bool = False,
) -> dict[str, Float[Tensor, ""]]:
    """Compare predicted pose encodings with cameras, in the frame of each scene's first view.

    Iteration s of n has the weight 0.6^(n - 1 - s), and the sum over iterations is divided by n, as published.

    Args:
        predictions: Predictions after each iteration of the head.
        world_to_camera: Poses in any world frame, with three or four rows.
        K_px: Intrinsics in pixels.
        image_size_hw: Size of the images.
        kind: `l1`: mean absolute error of all components. `l2`: mean norm of the errors of translation, quaternion and
            fields of view.
        weights: Weights of translation, rotation (quaternion), and fields of view.
        valid: The views that count. None is all.
        align_scale: Scenes without metric scale. Their prediction and target are compared up to the best-fitting scale,
            fitted anew for each iteration.
        rescale: Whether to divide the `target` by that scale or multiply the `prediction` by it.
        balance: Divide the translation loss by the mean length of the scenes' camera paths.

    Returns:
        Unweighted `translation`, `rotation` and `focal`, and their weighted sum `total`.
    """
    check_choice("kind", kind, PoseLoss)
    check_choice("rescale", rescale, Rescaled)
    target = _first_view_encoding(world_to_camera, K_px, image_size_hw).to(predictions)
    known = torch.ones_like(target[..., 0], dtype=torch.bool) if valid is None else valid
    decay = [ITERATION_DECAY**power for power in reversed(range(len(predictions)))]
    sums = predictions.new_zeros(3)
    for factor, predicted in zip(decay, predictions, strict=True):
        own, aimed = predicted[..., :3], target[..., :3]
        if align_scale is not None:
            scale = best_scale(own, aimed, known, align_scale)
            own, aimed = (own, aimed / scale) if rescale == "target" else (own * scale, aimed)
        rest = predicted[..., 3:] - target[..., 3:]
        if kind == "l1":
            parts = ((own - aimed).abs().clamp(max=MAX_ERROR), rest[..., :4].abs(), rest[..., 4:].abs())
        else:
            errors = (own - aimed, rest[..., :4], rest[..., 4:])
            parts = tuple(each.norm(dim=-1, keepdim=True) for each in errors)
            parts = (parts[0].clamp(max=MAX_ERROR), *parts[1:])
        sums = sums + factor * torch.stack([_mean(part, known) for part in parts])
    translation, rotation, focal = sums / len(predictions)
    if balance:
        translation = translation / mean_path(world_to_camera)
    total = weights[0] * translation + weights[1] * rotation + weights[2] * focal
    return {"translation": translation, "rotation": rotation, "focal": focal, "total": total}


def mean_path(world_to_camera: Float[Tensor, "B S _ 4"]) -> Float[Tensor, ""]:
    """Return the mean length of the scenes' camera paths, each of which is at least `MIN_PATH`."""
    with full_precision(world_to_camera.device):
        centers = invert_se3(_relative_to_first(world_to_camera))[..., :3, 3]
    return (centers[:, 1:] - centers[:, :-1]).norm(dim=-1).sum(1).clamp(min=MIN_PATH).mean()


def _relative_to_first(world_to_camera: Tensor) -> Float[Tensor, "B S 4 4"]:
    poses = to_float32(world_to_camera)
    if poses.shape[-2] == 3:
        poses = torch.cat((poses, poses.new_tensor((0.0, 0.0, 0.0, 1.0)).expand(*poses.shape[:-2], 1, 4)), -2)
    with full_precision(poses.device):
        return poses @ invert_se3(poses[:, :1])


def _first_view_encoding(world_to_camera: Tensor, K_px: Tensor, image_size_hw: Sequence[int]) -> Float[Tensor, "B S 9"]:
    """Encode cameras in the frame of the first view of each scene."""
    height, width = image_size_hw
    return cameras_to_pose_encoding(_relative_to_first(world_to_camera), K_px, (height, width))


@torch.no_grad()
def best_scale(
    predicted: Float[Tensor, "B S 3"], target: Float[Tensor, "B S 3"], known: Bool[Tensor, "B S"], aligned: Tensor
) -> Float[Tensor, "B 1 1"]:
    """Fit the factor of each aligned scene's predicted translations by least squares. It is 1 for other scenes."""
    own, aimed = predicted * known[..., None], target * known[..., None]
    scale = (own * aimed).sum((1, 2)) / (own.square().sum((1, 2)) + 1e-8)
    is_fitted = aligned & (known.sum(1) >= 2)
    return torch.where(is_fitted, scale.clamp(*SCALE_RANGE), 1.0)[:, None, None]


def _mean(values: Float[Tensor, "B S n"], known: Bool[Tensor, "B S"]) -> Float[Tensor, ""]:
    """Return the mean over all components of the known views. 0 without known views."""
    return torch.where(known[..., None], values, 0.0).sum() / (known.sum() * values.shape[-1]).clamp(min=1)


# ---- Camera prediction by one head across all views, as in Cambrian-P (arXiv 2605.22819) ----------------------------

NUM_HEADS = 16
UNIT = (1, 1)  # image size 1: with normalized intrinsics the field of view is the same


class PosePrediction(Objective):
    """Predict pose and fields of view of each view from a learned token after its 2D tokens.

    Unlike in `CameraPrediction`, one head with attention across the views refines all cameras of a scene in four
    iterations, in the frame of the first view. The first view has its own token. This is Cambrian-P's loss.

    Differences from the published training: `align_scale` applies to all scenes of a run, not only to those without
    metric scale. A view counts if its camera is known, independent of its depth. Scenes without cameras have tokens as
    well. Tokens are initialized with a standard deviation of 0.02 instead of 1e-6.

    Args:
        token: `always`: the tokens are part of all prompts. `training`: they are part of training prompts alone. It is
            not known in which way Cambrian-P was evaluated.
        kind: See `camera_loss`, also for the options below.
        translation_weight: Weight of the translation.
        rotation_weight: Weight of the quaternion.
        focal_weight: Weight of the fields of view.
        align_scale: Compare translations up to the best-fitting scale, for data without metric scale.
        rescale: What is rescaled with `align_scale`.
        balance: Divide the translation loss by the mean path length in each process's micro-batch, as published. The
            loss then depends on the number of devices and of accumulated batches.
        dim: Width of the head, a multiple of 16.
        trunk_depth: Number of blocks of the head.
        causal: Mask later views in the head.
        weight: See `Objective`.

    Raises:
        InputError: The width is not a multiple of 16, or a choice is unknown.
    """

    targets = ("cameras",)
    adds_token = has_first_token = True

    def __init__(
        self,
        kind: PoseLoss = "l1",
        translation_weight: float = 1.0,
        rotation_weight: float = 1.0,
        focal_weight: float = 0.5,
        align_scale: bool = False,
        rescale: Rescaled = "target",
        balance: bool = False,
        dim: int = 2048,
        trunk_depth: int = 4,
        causal: bool = False,
        token: PoseTokens = "always",
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        check_choice("--model.objectives: PosePrediction.kind", kind, PoseLoss)
        check_choice("--model.objectives: PosePrediction.rescale", rescale, Rescaled)
        if dim % NUM_HEADS:
            raise InputError(f"--model.objectives: PosePrediction.dim {dim}: a multiple of {NUM_HEADS}")
        self.kind, self.rescale, self.balance, self.align_scale = kind, rescale, balance, align_scale
        self.weights = (translation_weight, rotation_weight, focal_weight)
        self.uses_lengths = not align_scale
        self.dim, self.trunk_depth, self.causal = dim, trunk_depth, causal
        self.token_in_training_only = token == "training"

    def bind(self, width: int, num_layers: int) -> None:
        """See `Objective`."""
        super().bind(width, num_layers)
        self.head = PoseHead(width, self.dim, self.trunk_depth, self.causal, NUM_HEADS)
        self.head.camera_head.init_identity_pose()

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`."""
        terms: dict[str, list[tuple[EncodedScene, Tensor, Tensor]]] = {"translation": [], "rotation": [], "focal": []}
        pairs = list(self._pairs(decoded))
        weights: list[float | Tensor] = list(self.weights)
        if self.balance and pairs:  # by the mean over the batch, so scenes with long paths still count more
            weights[0] /= torch.stack([mean_path(poses[None]) for _, _, poses, _, _ in pairs]).mean()
        for scene, predicted, poses, K, known in pairs:
            aligned = torch.tensor([self.align_scale]).to(poses.device, non_blocking=True)
            rows: list[Sequence[Tensor]] = []
            for row in range(predicted.shape[1]):
                found = camera_loss(
                    predicted[:, row, None],
                    poses[None],
                    intrinsics_in_pixels(K, *UNIT)[None],
                    UNIT,
                    kind=self.kind,
                    valid=known[None],
                    align_scale=aligned,
                    rescale=self.rescale,
                )
                rows.append([factor * found[name] for name, factor in zip(terms, weights, strict=True)])
            for own, values in zip(terms.values(), zip(*rows, strict=True), strict=True):
                own.append((scene, torch.stack(values)[:, None], known.any()[None]))
        return {name: decoded.mean_over_scenes(own) for name, own in terms.items()}

    def errors(self, decoded: Decoded) -> dict[str, Tensor]:
        """Return mean errors of one scene relative to its first view, and those of a camera that never moves.

        With `align_scale` the predicted centers are first scaled by the best-fitting factor, as in the loss.
        """
        found: dict[str, Tensor] = {}
        for _, predicted, poses, _, known in self._pairs(decoded):
            true = poses @ invert_se3(poses[:1])
            later = known & (torch.arange(len(known), device=known.device) > 0)
            if not later.any():
                continue
            last = predicted[-1]
            if self.align_scale:
                rows = len(last)
                aimed, is_known = true[:, :3, 3].to(last).expand(rows, -1, -1), known.expand(rows, -1)
                scale = best_scale(last[..., :3], aimed, is_known, torch.ones_like(is_known[:, 0]))
                last = torch.cat((last[..., :3] * scale, last[..., 3:]), -1)
            cameras, _ = pose_encoding_to_cameras(last, UNIT)
            still = torch.eye(4, device=true.device).expand_as(cameras)
            for each, prefix in ((cameras, ""), (still, "unlearned/")):
                angle, distance = pose_distance(each, true.to(each))
                found[f"{prefix}rotation_deg"] = angle[:, later].mean().rad2deg()
                found[f"{prefix}center"] = distance[:, later].mean()
        return found

    def _pairs(
        self, decoded: Decoded
    ) -> Iterator[
        tuple[
            EncodedScene,
            Float[Tensor, "iterations rows t 9"],
            Float[Tensor, "t 4 4"],
            Float[Tensor, "t 3 3"],
            Bool[Tensor, " t"],
        ]
    ]:
        """Yield each scene with cameras: predicted encodings, true poses and intrinsics, and which are known.

        A view without a camera repeats the last known pose, so it adds nothing to the path. Views before the first
        camera get the first camera's pose, so the world is that camera's frame.
        """
        for scene, states in decoded.views(None):
            if (cameras := scene.target_cameras) is None or states.shape[2] == scene.scene.tokens_per_step:
                continue  # without cameras, or in a prompt without camera tokens
            with full_precision(states.device):
                predicted = self.head(states[:, :, -1])
            known = cameras.has_camera
            number = torch.arange(len(known), device=known.device)
            last = torch.where(known, number, known.int().argmax()).cummax(0).values
            poses = to_float32(cameras.world_to_camera)[last]
            yield scene, predicted, poses, to_float32(cameras.K_normalized), known


# ---- Pictures: squares whose padding stays, or stretched ones --------------------------------------------------------

Squares = Literal["padded", "stretched"]


def stretched_pictures(pictures: UInt8[Tensor, "N 3 H W"], side: int) -> UInt8[Tensor, "N pixels"]:
    """Resize pictures to squares with Pillow's bicubic filter, whatever their shape."""
    images = (Image.fromarray(each.permute(1, 2, 0).numpy()) for each in pictures.cpu())
    resized = [np.array(image.resize((side, side), Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).flatten(1)


SQUARES = {"padded": square_pictures, "stretched": stretched_pictures}


class CambrianPPreprocessor(CambrianPreprocessor):
    """Each frame becomes a square of which all tokens are kept.

    Attributes:
        squares: `padded`: with gray margins. `stretched`: without.
    """

    title = "Cambrian-P"
    squares: Squares = "padded"

    def make_square(self, pictures: UInt8[Tensor, "N 3 H W"]) -> UInt8[Tensor, "N pixels"]:
        return SQUARES[self.squares](pictures, self.side)

    @staticmethod
    def kept_grid(width: int, height: int, side: int) -> tuple[int, int]:
        return side, side

    def shown_window(self, height: int, width: int) -> Window:
        """See `Preprocessor`. The margins are outside of the image."""
        if self.squares == "stretched":
            return Window(height, width, 0, 0, height, width)
        longer = max(height, width)
        return Window(height, width, -((longer - height) // 2), -((longer - width) // 2), longer, longer)


class CambrianPBackbone(CambrianBackbone):
    """Cambrian-S's backbone, for frames whose margins are kept."""

    preprocessor_class = CambrianPPreprocessor


# ---- The model -------------------------------------------------------------------------------------------------------


class TinyCambrianP(TinyCambrianS):
    """A tiny Cambrian-P with random weights. See `TinyCambrianS` for the other options.

    Args:
        squares: How frames become squares, see `PretrainedCambrianP`.
        options: Options of `TinyCambrianS`.
    """

    def __init__(self, squares: Squares = "padded", **options: Any) -> None:
        super().__init__(**options)
        self.squares: Squares = squares

    @property
    def release(self) -> type[PretrainedCambrianS]:
        return PretrainedCambrianP

    def load(self) -> CambrianBackbone:
        return with_squares(super().load(), self.squares)


def with_squares(backbone: CambrianBackbone, squares: Squares) -> CambrianBackbone:
    """Return a backbone whose preprocessor, if it has one, makes squares in this way."""
    if isinstance(own := getattr(backbone, "preprocessor", None), CambrianPPreprocessor):
        own.squares = squares
    return backbone


class CambrianP(VideoQATask):
    """Cambrian-P (arXiv 2605.22819): a Cambrian-S with a camera token per frame, from which it predicts poses.

    cambrian_p.yaml shows each frame as an image, as published.

    Args:
        backbone: The video-language model. The default is tiny and randomly initialized.
        objectives: The training losses. The default adds `PosePrediction`, which is small for a tiny backbone.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self, backbone: BackboneLoader | None = None, objectives: list[Objective] | None = None, **parts: Any
    ) -> None:
        backbone = backbone or TinyCambrianP()
        if objectives is None:
            is_tiny = isinstance(backbone, TinyCambrianP)
            objectives = [PosePrediction(dim=64, trunk_depth=2) if is_tiny else PosePrediction()]
        super().__init__(backbone=backbone, objectives=objectives, **parts)


# ---- The published folders -------------------------------------------------------------------------------------------

OWN = "objectives.PosePrediction."  # prefix of the head and the tokens in a `SpatialVLM`
REC = "model.rec_head."
LAYOUT: Layout = {
    f"{REC}camera_tokens": f"{OWN}token",
    f"{REC}{PROJECTOR}": f"{OWN}head.projector.",
    f"{REC}{HEAD}": f"{OWN}head.{HEAD}",
}
VISION = "model.vision_tower.vision_tower.vision_model."
FIXED: dict[str, tuple[Any, ...]] = {  # settings of the published code, as released
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_layer": (-2,),
    "mm_newline_position": ("grid",),
    "mm_spatial_pool_mode": ("bilinear",),
    "mm_use_im_start_end": (False,),
}
POSE_FIXED: dict[str, tuple[Any, ...]] = {  # settings of the pose head
    "camera_tokens_mode": ("camera_tokens",),
    "camera_tokens_place": ("append_to_frame",),
    "token_num": (2,),
    "rec_projector_type": ("mlp1x_gelu",),
    "enable_camera": (True,),
    "enable_point": (False,),
    "enable_depth": (False,),
}
POSE_SETTINGS = (
    "load_rec_model",
    "use_camera_tokens",
    "rec_embed_dim",
    "rec_camera_trunk_depth",
    "rec_camera_causal_attn",
)
FRAME_TOKENS, OF_CAMBRIAN_S = "mm_img_tok_num", "miv_token_len"  # number of tokens of a frame


class PretrainedCambrianP(PretrainedCambrianS):
    """Released weights of Cambrian-P, or of Cambrian-S, from which Cambrian-P was trained.

    The pose head and the camera tokens are read if `PosePrediction` is among the objectives. Without it, and with
    `token: training`, frames have no camera tokens in tests, as in the published evaluation by its code.

    Args:
        path: A hub id (`nyu-visionx/Cambrian-P-7B`) or a local folder with config, safetensors and tokenizer.
        squares: How frames become squares. `padded`: with gray margins, as in the published evaluation. `stretched`: as
            in the published training.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
        supervises_marks: See `PretrainedCambrianS`.
        vision_path: See `PretrainedCambrianS`.
    """

    title = backbone_title = "Cambrian-P"
    family, released, architecture = "llava_qwen", "nyu-visionx/Cambrian-P-7B", "LlavaQwenForCausalLM"
    backbone_class = CambrianPBackbone
    licensed = License(
        "`nyu-visionx/Cambrian-P-7B`, `-32f`, `-Mix-MA`, `-Mix-3R`, `-Mix-CamS`",
        "unknown (their files were not seen; the code is Apache-2.0, with parts of VGGT under its license). Made of "
        "Cambrian-S-7B",
    )
    fixed, vision_prefixes = FIXED, (VISION, *PretrainedCambrianS.vision_prefixes)
    renamed = {**PretrainedCambrianS.renamed, VISION: "model.vision_tower."}
    skip = (REC,)
    released_objectives = (PosePrediction,)
    config_keys = (*POSE_SETTINGS, *POSE_FIXED)
    known_configs = {
        "Cambrian-P-7B": (
            "",
            {
                **known_settings("7B"),
                "model_type": "llava_qwen",
                "mm_img_tok_num": 64,
                "load_rec_model": True,
                "rec_embed_dim": 2048,
                "rec_camera_trunk_depth": 4,
                "camera_tokens_place": "append_to_frame",
            },
        )
    }

    def __init__(
        self,
        path: str = released,
        squares: Squares = "padded",
        attn_implementation: AttentionImplementation = "sdpa",
        dtype: DType = "bfloat16",
        supervises_marks: bool = False,
        vision_path: str | None = None,
    ):
        super().__init__(path, attn_implementation, dtype, supervises_marks, vision_path)
        self.squares: Squares = squares

    @classmethod
    def reads(cls, config: Mapping[str, Any], names: Any = ()) -> bool:
        """See `BackboneLoader`. Other models of this family have no fixed number of tokens per frame."""
        return config.get("model_type") == cls.family and FRAME_TOKENS in config

    @classmethod
    def read_config(cls, settings: Mapping[str, Any], source: str = "the config") -> Any:
        """See `PretrainedCambrianS`."""
        return super().read_config(_renamed(settings, FRAME_TOKENS, OF_CAMBRIAN_S), source)

    @classmethod
    def written_config(cls, config: Any) -> dict[str, Any]:
        written = super().written_config(config)
        del written["si_token_len"]
        return _renamed(written, OF_CAMBRIAN_S, FRAME_TOKENS)

    @classmethod
    def released_parts(cls, path: str) -> dict[str, Any]:
        loader = cls(path)
        return {"backbone": loader, **({"objectives": [pose_prediction(loader.settings)]} if loader.has_head else {})}

    @property
    def has_head(self) -> bool:
        """Whether the folder has a pose head."""
        if self.lacks_folder:
            return bool(self.settings.get("load_rec_model"))
        return any(name.startswith(REC) for name in self.tensors)

    def load(self) -> CambrianBackbone:
        return with_squares(super().load(), self.squares)

    def load_objective(self, objective: nn.Module) -> bool:
        """Load the pose head and the camera tokens."""
        if not isinstance(objective, PosePrediction) or not self.has_head:
            return False
        refuse_others(self.settings, POSE_FIXED)
        if not self.lacks_folder:
            load_pose_prediction(objective, self.tensors)
        return True

    @classmethod
    def layout_of(cls, model: SpatialVLM) -> Layout | None:
        plain = super().layout_of(model)
        return LAYOUT if plain is not None and _objective_of(model) else plain

    @classmethod
    def whole_config(cls, model: SpatialVLM, stock: dict[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
        if FRAME_TOKENS not in stock:  # a Cambrian-S, of which it was made
            headings = {name: stock[name] for name in ("model_type", "architectures")}
            stock = cls.written_config(model.backbone.vlm.config) | headings
        if (own := _objective_of(model)) is None:
            return stock
        sizes = zip(POSE_SETTINGS, (True, True, own.dim, own.trunk_depth, own.causal), strict=True)
        kept = {name: source[name] for name in cls.config_keys if name in source}
        return stock | {name: values[0] for name, values in POSE_FIXED.items()} | kept | dict(sizes)


def _objective_of(model: SpatialVLM) -> PosePrediction | None:
    """Return the objective with the pose head."""
    return next((each for each in model.objectives.values() if isinstance(each, PosePrediction)), None)


def _renamed(settings: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in settings.items()}


def pose_prediction(settings: Mapping[str, Any], token: PoseTokens = "always") -> PosePrediction:
    """Return the objective with the sizes and the loss that a config.json states."""
    return PosePrediction(
        token=token,
        kind=settings.get("rec_camera_loss_type", "l1"),
        align_scale=settings.get("use_scale_alignment", False),
        rescale="prediction" if settings.get("rescale_pred_not_gt") else "target",
        balance=settings.get("use_trajectory_balance", False),
        dim=settings.get("rec_embed_dim", 2048),
        trunk_depth=settings.get("rec_camera_trunk_depth", 4),
        causal=settings.get("rec_camera_causal_attn", False),
    )


def load_pose_prediction(objective: PosePrediction, tensors: Tensors) -> None:
    """Load the head and the camera tokens.

    Args:
        objective: The objective, bound to the decoder.
        tensors: Tensors by official names. Others than those of the head are ignored.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape.
    """
    own = {theirs: ours.removeprefix(OWN) for theirs, ours in LAYOUT.items()}
    names = NameTable.by_prefix(own)
    load_weights(objective, ReleasedWeights(tensors, "pose head", names, lambda name: not name.startswith(REC)))


# ---- For outside checks: sequences of the published code -------------------------------------------------------------


class States(NamedTuple):
    """What the decoder makes of a sequence.

    Attributes:
        logits: Logits of all tokens.
        poses: Pose encodings of the frames after each iteration. None without camera tokens.
    """

    logits: Float[Tensor, "M vocabulary"]
    poses: Float[Tensor, "iterations 1 F 9"] | None


class OfficialCambrianP(OfficialCambrian):
    """A Cambrian-P that takes the published code's sequences, see `OfficialCambrian`. It sees no single images.

    Its camera tokens are those of training prompts, so a sequence has them while the model is in training mode.
    """

    squares: Squares = "padded"

    @property
    def sequence_builder(self) -> SequenceBuilder:
        return SequenceBuilder(self.model_spec(training=self.training))

    def inputs_of(self, ids: Tensor, media: Sequence[Tensor], *, camera_tokens: bool = False) -> Tensor:
        with self._shows(camera_tokens):
            return super().inputs_of(ids, media)

    def logits_of(self, ids: Tensor, media: Sequence[Tensor], *, camera_tokens: bool = False) -> Tensor:
        return self.states_of(ids, media, camera_tokens=camera_tokens).logits

    def answer_of(
        self, ids: Tensor, media: Sequence[Tensor], *, max_new_tokens: int, camera_tokens: bool = False
    ) -> list[int]:
        with self._shows(camera_tokens):
            return super().answer_of(ids, media, max_new_tokens=max_new_tokens)

    def poses_of(
        self, ids: Int[Tensor, " L"], media: Sequence[UInt8[Tensor, "F 3 _H _W"]]
    ) -> Float[Tensor, "iterations 1 F 9"]:
        """Return the pose encodings of the frames after each iteration."""
        poses = self.states_of(ids, media, camera_tokens=True).poses
        assert poses is not None
        return poses

    def states_of(
        self,
        ids: Int[Tensor, " L"],
        media: Sequence[UInt8[Tensor, "F 3 _H _W"]],
        *,
        camera_tokens: bool,
        padded: bool = True,
    ) -> States:
        """Return logits and poses of a sequence with one video.

        Args:
            ids: See `OfficialCambrian`.
            media: The video.
            camera_tokens: Whether a camera token follows each frame.
            padded: Whether frames are padded to squares, or stretched as in the published training.
        """
        with self._shows(camera_tokens, "padded" if padded else "stretched"):
            decoded = self.hidden_states(*self._encoded(ids, media))
        logits = self.backbone.lm_head(decoded.last_hidden_state)[0]
        if not camera_tokens:
            return States(logits, None)
        ((_, states),) = decoded.views_of(decoded.last_hidden_state)
        head: Any = self.objectives["PosePrediction"].head
        return States(logits, head(states[:, :, -1]))

    @contextmanager
    def _shows(self, camera_tokens: bool, squares: Squares = "padded") -> Iterator[None]:
        before = self.training, self.squares
        self.train(camera_tokens)
        self.squares = squares
        try:
            yield
        finally:
            self.train(before[0])
            self.squares = before[1]

    def _scene(self, medium: Tensor) -> PreparedScene:
        if medium.ndim == 3:
            raise InputError("Cambrian-P sees videos alone: show a picture as a video of one frame")
        config = self.backbone.vlm.config
        side = token_side(config, "miv_token_len")
        return PreparedScene(
            pixel_values=SQUARES[self.squares](medium, config.vision_config.image_size),
            grid_thw=grid_in_patches(medium.shape, side, side),
            kind="image",
        )


def load_cambrian_p(config: dict[str, Any], state_dict: Tensors) -> OfficialCambrianP:
    """Return a Cambrian-P with these weights, in their dtype. All parameters are trainable.

    Args:
        config: Its config.json, with the sizes of another vision encoder than SigLIP2-so400m as `vision_config`.
        state_dict: Tensors by official names. The vision encoder's may have the names of Cambrian-S. A tied lm_head may
            be absent or present.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape, or a setting was not released.
    """
    kind = PretrainedCambrianP
    has_head = bool(config.get("load_rec_model"))
    objectives: list[Objective] = []
    if has_head:
        refuse_others(config, POSE_FIXED)
        own = pose_prediction(config, token="training")
        objectives.append(own)
    empty = EmptyBackbone(kind, kind.read_config(config), first_tensor(state_dict).dtype)
    model = OfficialCambrianP(empty, objectives=objectives)
    load_backbone(kind, model, state_dict, skip=(REC,))
    if has_head:
        load_pose_prediction(own, state_dict)
    return model
