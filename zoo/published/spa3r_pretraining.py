"""Pretraining of Spa3R's field (arXiv 2602.21186): features of all views, predicted from latents of half of them.

`python main.py fit --config spa3r_tiny.yaml`. VGGT's features of the context views become latents. From them the
features of every view are predicted, given its camera. VGGT and DINOv3 are frozen and give the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import DINOv3ViTModel

from zoo.cameras.poses import invert_se3
from zoo.cameras.scene_geometry import PatchCameras
from zoo.configuration import Configurable
from zoo.errors import InputError, check_choice
from zoo.geometry.base import same_shape
from zoo.geometry.layers import normalize
from zoo.model_spec import ModelSpec
from zoo.objectives.held_out_views import nearest_views
from zoo.published.spa3r import LOSSES, Spa3REncoder, TinySpa3R, feature_losses
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import PreparedScene
from zoo.tasks.base import LearningRates, WarmupCosine, fused_adamw
from zoo.tasks.geometry_pretraining import Pretraining
from zoo.weights.checkpoint import fingerprints
from zoo.weights.load import find_folder

__all__ = ["DINOv3", "Spa3RPretraining"]

SIDE = 224  # pixels of a picture for DINOv3
RATES = LearningRates(geometry=2e-3)


def adamw(parameters: Any) -> Optimizer:
    """Return AdamW with the published weight decay."""
    return fused_adamw(parameters, weight_decay=1e-4)


def target_mask(views: int, draw: torch.Generator) -> Bool[Tensor, " views"]:
    """Draw the target views: all but half of the views. The first view is always context."""
    drawn = torch.rand(views - 1, generator=draw).topk(views - views // 2).indices
    mask = torch.zeros(views, dtype=torch.bool)
    mask[1 + drawn] = True
    return mask


class DINOv3(Configurable, nn.Module):
    """The normalized patch tokens of a frozen DINOv3, resized to the patches of a picture.

    Args:
        path: A local folder of `facebook/dinov3-vitl16-pretrain-lvd1689m`, in the layout of transformers.

    Raises:
        InputError: There is no such folder, or it holds another model.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        folder = find_folder(path, "facebook/dinov3-vitl16-pretrain-lvd1689m", "--model.semantics.path")
        try:
            self.vit = DINOv3ViTModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise InputError(f"--model.semantics.path {path}: {str(error).partition(chr(10))[0]}") from error
        self.files = tuple(sorted(folder.glob("*.safetensors")))
        self.requires_grad_(False)

    @property
    def width(self) -> int:
        """Channels of the tokens."""
        return int(self.vit.config.hidden_size)

    def train(self, mode: bool = True) -> DINOv3:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "N 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "N patches C"]:
        """Return the tokens of pictures in 0..1 of `grid` rows and columns of patches."""
        small = F.interpolate(images, (SIDE, SIDE), mode="bilinear")
        found = self.vit(normalize(small)).last_hidden_state[:, 1 + self.vit.config.num_register_tokens :]
        return resized_patches(found, grid)


def resized_patches(patches: Float[Tensor, "N square C"], grid: tuple[int, int]) -> Float[Tensor, "N patches C"]:
    """Resize a square grid of patches."""
    side = round(patches.shape[1] ** 0.5)
    return F.interpolate(patches.mT.unflatten(2, (side, side)), grid, mode="bilinear").flatten(2).mT


@dataclass(eq=False)
class Views:
    """B scenes of V views of one shape.

    Attributes:
        members: Number of each scene in the batch.
        is_target: Target views. The others are context.
        context: VGGT's features of the context views.
        geo: VGGT's features of all views.
        sem: DINOv3's features of all views. None without it.
        world_to_camera: Poses.
        K_normalized: Intrinsics.
        losses: Losses of each view by name.
    """

    members: list[int]
    is_target: Bool[Tensor, "B V"]
    context: Float[Tensor, "B context N C"]
    geo: Float[Tensor, "B V N C"]
    sem: Float[Tensor, "B V N S"] | None
    world_to_camera: Float[Tensor, "B V 4 4"]
    K_normalized: Float[Tensor, "B V 3 3"]
    losses: dict[str, Float[Tensor, "B V"]]

    def target_losses(self, number: int) -> dict[str, Float[Tensor, ""]]:
        """Return the mean losses of a scene's target views, and those of the baselines, which know its context."""
        is_target, poses, K = self.is_target[number], self.world_to_camera[number], self.K_normalized[number]
        seen, hidden = (PatchCameras(poses[of], K[of], of[of]) for of in (~is_target, is_target))  # all are valid
        nearest = nearest_views(seen, hidden)
        found = {name: each[number][is_target].mean() for name, each in self.losses.items()}
        known = {"geo": (self.context[number], self.geo[number])}
        if self.sem is not None:
            known["sem"] = self.sem[number][~is_target], self.sem[number]
        for name, (context, every) in known.items():
            hidden_features = every[is_target]
            mean = context.mean(0).expand_as(hidden_features)
            for prefix, guess in (("nearest_view/", context[nearest]), ("unlearned/", mean)):
                losses = feature_losses(name, guess, hidden_features)
                found |= {f"{prefix}{each}": value.mean() for each, value in losses.items()}
        return found


class Spa3RPretraining(Pretraining):
    """Train the field of a Spa3R: predict the features of all views from latents of half of them.

    At the end of `fit` it writes model.safetensors with the official names to the run's folder, for
    `TinySpa3R(path=<run>)` or `PretrainedSpa3R(path=<run>)`, the geometry encoders of a `Spa3VLM`.

    It logs the losses of the target views, which the encoder does not see, as `val/geo_l1` and so on. Beside them are
    the losses of two baselines, which know the context views alone: `val/nearest_view/...` copies the features of the
    nearest context view, and `val/unlearned/...` is their mean. `depth_prob` reads depth from what was decoded, and
    trains nothing else.

    Args:
        geometry: The Spa3R whose field is trained. The default is a `TinySpa3R`.
        semantics: `DINOv3`, whose features are a second target. null trains without.
        asymmetric_masking: Run VGGT once, with a mask between the views: targets attend to all views, and context views
            to each other. false runs it a second time, on the context views alone, as published.
        camera_source: Source of cameras and depth: the `dataset`, or `predicted` by VGGT's heads, as published.
        learning_rates: Only the rate of the geometry is used.
        optimizer: Builds the optimizer from the parameter groups.
        scheduler: Builds the scheduler from the optimizer and the number of optimizer steps. It is stepped once per
            optimizer step.
    """

    baselines: ClassVar[Mapping[str, str]] = {
        "": "",
        "nearest_view/": "a copy of the nearest context view",
        "unlearned/": "the mean of the context",
    }
    errors: ClassVar[Mapping[str, str]] = {name: f"{name} {{:.4f}}" for name in LOSSES}
    geometry: Spa3REncoder

    def __init__(
        self,
        geometry: Spa3REncoder | None = None,
        semantics: DINOv3 | None = None,
        asymmetric_masking: bool = False,
        camera_source: Literal["dataset", "predicted"] = "dataset",
        learning_rates: LearningRates = RATES,
        optimizer: Callable[[Any], Optimizer] = adamw,
        scheduler: Callable[[Optimizer, int], LRScheduler] = WarmupCosine,
    ) -> None:
        check_choice("--model.camera_source", camera_source, Literal["dataset", "predicted"])
        encoder = geometry or TinySpa3R()
        super().__init__(encoder, learning_rates, optimizer, scheduler)
        self.semantics, self.asymmetric_masking, self.camera_source = semantics, asymmetric_masking, camera_source
        if camera_source == "predicted":
            for head in ("camera", "depth"):
                encoder.enable_head(head)
        encoder.vggt.requires_grad_(False)
        semantic: Any = encoder.field.heads["sem"]
        if semantics is None:
            semantic.requires_grad_(False)
        elif semantics.width != semantic.fc2.out_features:
            raise InputError(
                f"--model.semantics has {semantics.width} channels, and --model.geometry predicts "
                f"{semantic.fc2.out_features}: set --model.geometry.semantic_channels {semantics.width}"
            )
        sources = {"geometry": (encoder.path or "VGGT", encoder.vggt.files)} if encoder.vggt.files else {}
        if semantics is not None:
            sources["semantics"] = semantics.path, semantics.files
        self.frozen_weights = fingerprints(sources)
        self.train()

    def model_spec(self, *, training: bool = False) -> ModelSpec:
        given = self.camera_source == "dataset"
        return ModelSpec(requires_cameras=given, requires_depth=given, requires_frames=True)

    def restored_by_files(self, name: str) -> bool:
        is_vggt = name.startswith("geometry.vggt.") and bool(self.geometry.vggt.files)
        return is_vggt or name.startswith("semantics.")

    def on_fit_start(self) -> None:
        """Say whether there is a semantic target."""
        if self.semantics is None:
            self.print("no --model.semantics: the field predicts VGGT's features alone, not DINOv3's")

    def _views(self, batch: Batch) -> Iterator[Views]:
        """Yield the scenes of a batch, those of one shape together.

        Raises:
            InputError: A scene has no camera, or fewer than two views.
        """
        self.check_scenes(batch)
        frames = [scene.frames for scene in batch.scenes if scene.frames is not None]
        for members in same_shape(frames):
            scenes = [batch.scenes[i] for i in members]
            images = torch.stack([frames[i] for i in members]).float() / 255
            views = images.shape[1]
            if views < 2:
                raise InputError(f"{scenes[0].name}: 1 view: give two or more, --data.num_frames")
            draws = [torch.Generator().manual_seed(scene.draw) for scene in scenes]
            is_target = torch.stack([target_mask(views, draw) for draw in draws]).to(images.device, non_blocking=True)
            predicts = self.camera_source == "predicted"
            context, geo, predicted = self.geometry.observe(
                images, is_target, is_masked=self.asymmetric_masking, cameras=predicts
            )
            poses, K, depth = predicted or dataset_geometry(scenes)
            patch = self.geometry.patch_size
            grid = images.shape[-2] // patch, images.shape[-1] // patch
            small = F.interpolate(depth, grid).flatten(2)[..., None]  # nearest neighbors
            field, sem = self.geometry.field, None
            if self.semantics is not None:
                sem = self.semantics(images.flatten(0, 1), grid).unflatten(0, (-1, views))
            decoded = field.decode(field.encode(context, grid), poses, K, grid)
            losses = field.losses(decoded, geo, sem, small)
            yield Views(members, is_target, context, geo, sem, poses, K, losses)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses, each a mean over all views, context and targets (`mean_loss`)."""
        groups = self._views(batch)
        return self.mean_loss(
            batch, [({name: each.mean(1) for name, each in group.losses.items()}, group.members) for group in groups]
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Accumulate the losses of target views, and those of the baselines. Return no prediction records."""
        for group in self._views(batch):
            for number in range(len(group.members)):
                self.count_errors({name: each[None] for name, each in group.target_losses(number).items()})
        return []


def dataset_geometry(
    scenes: Sequence[PreparedScene],
) -> tuple[Float[Tensor, "B V 4 4"], Float[Tensor, "B V 3 3"], Float[Tensor, "B V H W"]]:
    """Return the dataset's poses in the frame of the first view, intrinsics and depth of scenes of one shape."""
    known = [geometry for scene in scenes if (geometry := scene.target_geometry) is not None]
    poses, K, depth = (
        torch.stack([each for geometry in known if (each := getattr(geometry, name)) is not None])
        for name in ("world_to_camera", "K_normalized", "depth")
    )
    poses = poses.double()
    return (poses @ invert_se3(poses[:, :1])).float(), K.float(), depth.float()
