"""Prediction of views that the model does not see, as a training objective."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.cameras.poses import pose_distance
from zoo.cameras.rays import patch_directions
from zoo.cameras.scene_geometry import PatchCameras
from zoo.encodings.base import ViewMixer
from zoo.encodings.view_mixers import ViewAttention
from zoo.errors import InputError, check_choice
from zoo.geometry.base import unit_colors
from zoo.objectives.base import Decoded, Objective, decoder_layer
from zoo.precision import to_float32
from zoo.scene_encoding import EncodedScene
from zoo.sequences.loaded_scene import Grid
from zoo.sequences.target_views import Drawn, TargetViews

Predicted = Literal["tokens", "pixels"]
COLUMNS = ("target", "prediction", "nearest shown view")  # of pictures


class ViewPredictor(nn.Module):
    """A small transformer between context tokens and the rays of one target view.

    Each block is attention between the views by a view mixer, which knows the camera of each view, and an MLP. The
    target's tokens start as embeddings of their rays in the camera's frame, so its pose enters by the attention alone.

    Args:
        inputs: Channels of the context tokens.
        outputs: Channels of a prediction.
        width: Channels of the transformer.
        depth: Number of blocks.
        attention: Builds the attention of a block from the width.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, depth: int, attention: Callable[[int], ViewMixer]
    ) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.RMSNorm(inputs, eps=1e-6), nn.Linear(inputs, width))
        self.embed_rays = nn.Linear(3, width)
        self.attention = nn.ModuleList(attention(width) for _ in range(depth))
        self.mlp = nn.ModuleList(
            nn.Sequential(
                nn.RMSNorm(width, eps=1e-6), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            for _ in range(depth)
        )
        self.write = nn.Sequential(nn.RMSNorm(width, eps=1e-6), nn.Linear(width, outputs))

    def forward(
        self,
        context: Float[Tensor, "B t n inputs"],
        cameras: Cameras,
        has_camera: Bool[Tensor, "B views"],
        size: tuple[int, int],
    ) -> Float[Tensor, "B n outputs"]:
        """Predict one target view per row.

        Args:
            context: Tokens of the t views that are seen.
            cameras: Cameras of these views and, as the last one, of the target.
            has_camera: Views with a valid camera. The others are not attended to.
            size: Rows and columns of tokens in a view.
        """
        rays = F.normalize(patch_directions(cameras.K_normalized[:, -1], *size), dim=-1).flatten(1, 2)
        queries = self.embed_rays(rays.to(self.embed_rays.weight.dtype))
        x = torch.cat((self.read(context), queries[:, None]), 1)
        shape, grid = x.shape, (x.shape[1], *size)
        x = x.flatten(0, 2)
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            x = attention(x, cameras, grid, has_camera)
            x = x + mlp(x)
        return self.write(x.view(shape)[:, -1])


class Target(NamedTuple):
    """What is predicted of a scene.

    Attributes:
        scene: The scene.
        states: Hidden states of its 2D tokens in each of its sequences.
        shown: Cameras of the views that are seen.
        context: Contents of these views.
        cameras: Cameras of the target views.
        values: Contents of the target views, which are predicted.
        size: Rows and columns of tokens in a view.
    """

    scene: EncodedScene
    states: Float[Tensor, "rows t n D"]
    shown: PatchCameras
    context: Float[Tensor, "t n outputs"]
    cameras: PatchCameras
    values: Float[Tensor, "v n outputs"]
    size: tuple[int, int]


class HeldOutViews(Objective):
    """Predict views of the scene that the decoder does not see, from its hidden states and the target's camera.

    Target views are frames between the shown ones (`views`, `drawn`). No token of theirs enters the decoder. A small
    transformer predicts them from the hidden states at the 2D tokens of the shown views. It knows the camera of each
    view by a view mixer, `ViewAttention` with PRoPE by default. A model that helps it must know what stands where. The
    idea is Spa3R's (arXiv 2602.21186), which pretrains a spatial latent in this way. The prompt and inference are
    unchanged. A scene without cameras is left out, and a scene without a frame between the shown ones is an error.

    Two quantities can be predicted:

    - `tokens`: 2D tokens of the vision encoder. The loss is 1 - cosine plus the squared error as a share of the mean
      square of the view's tokens. No gradient reaches the targets. If the vision encoder is trained, they move.
    - `pixels`: colors from 0 to 1 of each token, averaged over `pixels_per_token` x `pixels_per_token` cells. The loss
      is the mean squared error.

    Args:
        predicts: What is predicted.
        views: Maximum number of target views per scene and step.
        drawn: Where they are drawn, see `TargetViews`.
        layer: Decoder layer counted from 0, or from the end if negative.
        width: Channels of the predictor.
        depth: Blocks of the predictor.
        attention: Builds the attention of a block, such as `ViewAttention` with `GTA`, or `RayAttention`.
        context_cameras: Whether the predictor knows the cameras of the shown views. Otherwise it knows the target's
            camera relative to the first shown view, as in Spa3R, and the hidden states must tell what stands where.
        pixels_per_token: Side of the predicted picture of a token.
        shuffled: A control: a scene gets the target views of another scene of the batch, if one has equal sizes.
        weight: See `Objective`.

    Raises:
        InputError: A choice is unknown, or a number is below 1.
    """

    targets = ("cameras",)

    def __init__(
        self,
        predicts: Predicted = "tokens",
        views: int = 2,
        drawn: Drawn = "gaps",
        layer: int = -1,
        width: int = 256,
        depth: int = 2,
        attention: Callable[[int], ViewMixer] | None = None,
        context_cameras: bool = True,
        pixels_per_token: int = 4,
        shuffled: bool = False,
        weight: float = 0.1,
    ) -> None:
        super().__init__(weight)
        check_choice("--model.objectives: predicts", predicts, Predicted)
        check_choice("--model.objectives: drawn", drawn, Drawn)
        numbers = {"views": views, "width": width, "depth": depth, "pixels_per_token": pixels_per_token}
        for name, value in numbers.items():
            if value < 1:
                raise InputError(f"--model.objectives: HeldOutViews has {name} {value}: give a number from 1 on")
        self.target_views = TargetViews(views, drawn, tokens=predicts == "tokens")
        self.predicts, self.layer, self.width, self.depth = predicts, layer, width, depth
        self.attention = attention or ViewAttention
        self.context_cameras, self.pixels_per_token, self.shuffled = context_cameras, pixels_per_token, shuffled

    def bind(self, width: int, num_layers: int) -> None:
        """Create the predictor."""
        super().bind(width, num_layers)
        self.layers = (decoder_layer(self, self.layer, num_layers),)
        outputs = width if self.predicts == "tokens" else 3 * self.pixels_per_token**2
        self.predictor = ViewPredictor(width, outputs, self.width, self.depth, self.attention)

    def tokens_per_target(self, num_frames: int, visual_tokens: int) -> int:
        """Return the tokens that the predictor processes for each target view, for `plan`."""
        return visual_tokens

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`. Returns `cosine` and `l2`, or `l2` alone for pixels."""
        names = ("cosine", "l2") if self.predicts == "tokens" else ("l2",)
        terms: dict[str, list[tuple[EncodedScene, Tensor, Tensor]]] = {name: [] for name in names}
        for target, predicted in self.predicted_views(decoded):
            known = torch.ones(predicted.shape[1:3], dtype=torch.bool, device=predicted.device)
            for name, values in self._losses(predicted, target.values).items():
                terms[name].append((target.scene, values, known))
        return {name: decoded.mean_over_scenes(losses) for name, losses in terms.items()}

    def errors(self, decoded: Decoded) -> dict[str, Tensor]:
        """Return the losses of one scene, and for comparison the losses of the mean and of the nearest shown view.

        Returns:
            `cosine` and `l2`, or `l2` alone for pixels. `unlearned/<name>` is the mean's, and `nearest_view_<name>` is
            the copy's.
        """
        found: dict[str, Tensor] = {}
        for target, predicted in self.predicted_views(decoded):
            mean = target.context.mean(0).expand_as(target.values)
            copies = target.context[nearest_views(target.shown, target.cameras)]
            for prefix, each in (("", predicted), ("nearest_view_", copies[None]), ("unlearned/", mean[None])):
                for name, values in self._losses(each, target.values).items():
                    found[f"{prefix}{name}"] = values.mean()
        return found

    def pictures(self, decoded: Decoded) -> dict[str, Float[Tensor, "v 3 _H _W"]]:
        """See `Objective`. Pixels of the target views, of their predictions, and of the nearest shown views."""
        for target, predicted in self.predicted_views(decoded) if self.predicts == "pixels" else ():
            copies = target.context[nearest_views(target.shown, target.cameras)]
            columns = zip(COLUMNS, (target.values, predicted[0], copies), strict=True)
            return {name: uncut(each, target.size, self.pixels_per_token) for name, each in columns}
        return {}

    def _losses(
        self, predicted: Float[Tensor, "rows v n outputs"], values: Float[Tensor, "v n outputs"]
    ) -> dict[str, Float[Tensor, "rows v n"]]:
        squared = (predicted - values).square().mean(-1)
        if self.predicts == "pixels":
            return {"l2": squared}
        cosine = F.cosine_similarity(predicted, values.expand_as(predicted), dim=-1)
        return {"cosine": 1 - cosine, "l2": squared / values.square().mean((-2, -1))[:, None]}

    def _targets(self, decoded: Decoded) -> Iterator[Target]:
        """Yield the scenes with target views."""
        for scene, states in decoded.views(self.layers[0]):
            views = scene.scene.target_views
            if views is None or views.cameras is None or scene.target_cameras is None:
                continue
            _, *size = grid = scene.scene.token_grid
            own = states[:, :, : scene.scene.tokens_per_step]  # without extra tokens
            if self.predicts == "pixels":
                assert views.frames is not None
                every = cells(views.frames, grid, self.pixels_per_token).to(own.dtype)
                values, context = every[: views.num_steps], every[views.num_steps :]
            else:
                assert scene.target_tokens is not None
                values, context = (to_float32(each) for each in scene.target_tokens)
            yield Target(scene, own, scene.target_cameras, context, views.cameras, values, (size[0], size[1]))

    def predicted_views(self, decoded: Decoded) -> Iterator[tuple[Target, Float[Tensor, "rows v n outputs"]]]:
        """Yield the target views of each scene with their predictions. Scenes of one shape are predicted together."""
        alike: dict[tuple[int, tuple[int, int]], list[Target]] = defaultdict(list)
        for target in self._targets(decoded):
            alike[target.states.shape[1], target.size].append(target)
        for (_, size), group in alike.items():
            if self.shuffled:
                others = [*group[1:], *group[:1]] if len(group) > 1 else []
                group = [
                    own._replace(cameras=other.cameras, values=other.values)
                    for own, other in zip(group, others, strict=False)
                ]
                if not group:
                    continue
            inputs = [self._rows(target) for target in group]
            context, poses, K, has_camera = (torch.cat(each) for each in zip(*inputs, strict=True))
            found = to_float32(self.predictor(context, Cameras.trusted(poses, K), has_camera, size))
            counts = [len(each[0]) for each in inputs]
            for target, own in zip(group, found.split(counts), strict=True):
                yield target, own.unflatten(0, (-1, len(target.values)))

    def _rows(self, target: Target) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return states, poses, intrinsics and masks for each pair of a sequence and a target view, as one row each."""
        shown, targets = target.shown, target.cameras
        rows, count = len(target.states), len(targets.world_to_camera)
        poses, K = shown.world_to_camera, shown.K_normalized
        target_poses = targets.world_to_camera.double()
        if not self.context_cameras:  # the first camera's frame is the world
            target_poses = target_poses @ torch.linalg.inv(poses[:1].double())
            poses, K = (torch.eye(side).to(each).expand_as(each) for each, side in ((poses, 4), (K, 3)))

        def joined(own: Tensor, of_target: Tensor) -> Tensor:
            every = torch.cat((own.expand(count, *own.shape).to(of_target.dtype), of_target[:, None]), 1)
            return every.repeat(rows, *[1] * (every.ndim - 1))

        known = shown.has_camera if self.context_cameras else torch.ones_like(shown.has_camera)
        context = target.states.repeat_interleave(count, 0, output_size=rows * count)
        return context, joined(poses, target_poses), joined(K, targets.K_normalized), joined(known, targets.has_camera)


def nearest_views(shown: PatchCameras, targets: PatchCameras) -> Int[Tensor, " v"]:
    """Return the number of the shown view that is nearest to each target, by angle and center distance.

    Distances are divided by their mean, so that both count alike. Views without a camera are never nearest.
    """
    angle, distance = pose_distance(targets.world_to_camera[:, None].double(), shown.world_to_camera[None].double())
    apart = angle + distance / distance.mean().clamp(min=1e-9)
    return apart.masked_fill(~shown.has_camera, torch.inf).argmin(1)


def cells(frames: Shaped[Tensor, "S 3 H W"], grid: Grid, side: int) -> Float[Tensor, "S n outputs"]:
    """Return the mean colors from 0 to 1 of `side` x `side` cells of each token of frames, row by row.

    Frames are bytes, or floats from 0 to 1. `grid` has the rows and columns of tokens in a frame.
    """
    _, rows, columns = grid
    small = F.interpolate(unit_colors(frames), (rows * side, columns * side), mode="area")
    patches = small.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # (S, 3, rows, side, columns, side)
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def uncut(values: Float[Tensor, "S n outputs"], size: tuple[int, int], side: int) -> Float[Tensor, "S 3 h w"]:
    """Return the pictures of the colors that `cells` returns. `size` has the rows and columns of tokens."""
    patches = values.unflatten(1, size).unflatten(3, (side, side, 3))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
