"""The novel-view loss of the researcher's fork of Spatial-MLLM: a renderer of views, tied to the decoder both ways.

An LVSM (Jin et al., ICLR 2025) renders target views from tokens of the posed input frames. A connector adds these
tokens to the 2D tokens before the decoder, and changes them by the decoder's hidden states before they are rendered.
Formulas and names of tensors follow Jinjing98/Spatial-MLLM, states 9aa2a90 (`film`) and 36d80f8 (`patch_residual`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.base import VisualTokens
from zoo.cameras.scene_geometry import PatchCameras
from zoo.errors import InputError, check_choice
from zoo.geometry.base import unit_colors
from zoo.geometry.cache import geometry_of_frames
from zoo.objectives.base import Decoded, Objective
from zoo.objectives.held_out_views import COLUMNS, nearest_views
from zoo.precision import full_precision, to_float32
from zoo.scene_encoding import EncodedScene
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import PreparedScene
from zoo.sequences.target_views import Drawn, TargetViews, frames_between, frames_inside

Kind = Literal["film", "patch_residual"]
EPS = 1e-5
MEANS = (123.68, 116.779, 103.939)  # of VGG-19's colors
RELUS = {
    3: 2.6,
    8: 4.8,
    13: 3.7,
    22: 5.6,
    31: 0.15,
}  # layers of VGG-19, and what differences behind them are divided by
POOLS = (4, 9, 18, 27)
L2_WEIGHT, PERCEPTUAL_WEIGHT = 1.0, 0.5


# ---- Posed pictures --------------------------------------------------------------------------------------------------


def plucker(
    world_to_camera: Float[Tensor, "B V _ 4"], K_px: Float[Tensor, "B V 3 3"], *, height: int, width: int, size: int
) -> Float[Tensor, "B V 6 size size"]:
    """Compute Plücker coordinates of each pixel's ray, moment first, in square pictures of `size` pixels.

    Args:
        world_to_camera: Poses (3, 4) or (4, 4).
        K_px: Intrinsics in pixels of the original pictures. Their aspect ratio is not kept.
        height: Height of the original pictures.
        width: Width of the original pictures.
        size: Side of the square pictures.
    """
    scale = torch.tensor([size / width, size / height, 1.0]).to(K_px)
    K = K_px * scale[:, None]
    place = torch.arange(size, device=K.device, dtype=K.dtype) + 0.5
    y, x = torch.meshgrid(place, place, indexing="ij")
    pixels = torch.stack((x, y, torch.ones_like(x)), -1)
    rotation, translation = world_to_camera[..., :3, :3], world_to_camera[..., :3, 3:]
    to_world = rotation.mT @ torch.linalg.inv(K)
    direction = F.normalize(torch.einsum("bvij,hwj->bvhwi", to_world, pixels), dim=-1)
    origin = -(rotation.mT @ translation)[..., 0][:, :, None, None].expand_as(direction)
    return torch.cat((torch.linalg.cross(origin, direction), direction), -1).movedim(-1, 2)


def posed_input(
    images: Float[Tensor, "B V 3 h w"],
    world_to_camera: Float[Tensor, "B V _ 4"],
    K_px: Float[Tensor, "B V 3 3"],
    *,
    size: int,
) -> Float[Tensor, "B V 9 size size"]:
    """Return pictures in the renderer's size from -1 to 1, followed by the Plücker coordinates of their pixels."""
    height, width = images.shape[-2:]
    colors = squares(images.flatten(0, 1), size).unflatten(0, images.shape[:2])
    rays = plucker(world_to_camera, K_px, height=height, width=width, size=size)
    return torch.cat((2 * colors - 1, rays.to(colors)), 2)


def squares(images: Float[Tensor, "V 3 h w"], size: int) -> Float[Tensor, "V 3 size size"]:
    """Resize pictures to squares, without antialiasing."""
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)


def patches(pictures: Float[Tensor, "B V c S S"], side: int) -> Float[Tensor, "B tokens inputs"]:
    """Cut pictures into patches row by row; a patch is ordered by row, column and channel."""
    cut = pictures.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))  # (B, V, c, rows, side, columns, side)
    return cut.permute(0, 1, 3, 5, 4, 6, 2).flatten(4).flatten(1, 3)


# ---- The renderer ----------------------------------------------------------------------------------------------------


class _Attention(nn.Module):  # names as in LVSM's file
    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.to_qkv, self.fc = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(head, eps=EPS), nn.RMSNorm(head, eps=EPS)

    def forward(self, x: Float[Tensor, "B L d"]) -> Float[Tensor, "B L d"]:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, -1, self.head)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.fc(mixed.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first, last = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.mlp = nn.Sequential(first, nn.GELU(), last)

    def forward(self, x: Float[Tensor, "B L d"]) -> Float[Tensor, "B L d"]:
        return self.mlp(x)


class _Block(nn.Module):
    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=EPS, bias=False) for _ in range(2))
        self.attn, self.mlp = _Attention(width, head), _MLP(width)

    def forward(self, x: Float[Tensor, "B L d"]) -> Float[Tensor, "B L d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LVSM(nn.Module):
    """LVSM's decoder-only renderer with its official names: 170.8 M parameters at full size.

    Args:
        width: Channels.
        head: Channels per head.
        layers: Number of blocks.
        size: Side of the square pictures in pixels.
        patch: Side of a patch in pixels.
    """

    def __init__(self, width: int = 768, head: int = 64, layers: int = 24, size: int = 256, patch: int = 8) -> None:
        super().__init__()
        self.size, self.patch = size, patch
        self.image_tokenizer, self.target_pose_tokenizer = (
            nn.Sequential(nn.Identity(), nn.Linear(channels * patch**2, width, bias=False)) for channels in (9, 6)
        )
        self.transformer_input_layernorm = nn.LayerNorm(width, eps=EPS, bias=False)
        self.transformer_blocks = nn.ModuleList(_Block(width, head) for _ in range(layers))
        norm, write = nn.LayerNorm(width, eps=EPS, bias=False), nn.Linear(width, 3 * patch**2, bias=False)
        self.image_token_decoder = nn.Sequential(norm, write, nn.Sigmoid())

    def tokens(
        self, images: Float[Tensor, "B N 3 h w"], world_to_camera: Float[Tensor, "B N _ 4"], K_px: Tensor
    ) -> Float[Tensor, "B tokens d"]:
        """Return the tokens of posed input frames in 0..1, ordered by frame, row and column."""
        posed = posed_input(images, world_to_camera, K_px, size=self.size)
        return self.image_tokenizer(patches(posed, self.patch))

    def render(
        self,
        context: Float[Tensor, "B tokens d"],
        world_to_camera: Float[Tensor, "B M _ 4"],
        K_px: Float[Tensor, "B M 3 3"],
        *,
        height: int,
        width: int,
    ) -> Float[Tensor, "B M 3 S S"]:
        """Render target views in 0..1, each by itself. `K_px` is in pixels of pictures of this height and width."""
        rays = plucker(world_to_camera, K_px, height=height, width=width, size=self.size).to(context)
        batch, count = rays.shape[:2]
        queries = self.target_pose_tokenizer(patches(rays.flatten(0, 1)[:, None], self.patch))
        x = torch.cat((context.repeat_interleave(count, 0, output_size=batch * count), queries), 1)
        x = self.transformer_input_layernorm(x)
        for block in self.transformer_blocks:
            x = block(x)
        side, rows = self.patch, self.size // self.patch
        colors = self.image_token_decoder(x[:, -queries.shape[1] :])
        cut = colors.unflatten(-1, (side, side, 3)).unflatten(1, (rows, rows))  # (V, rows, columns, side, side, 3)
        return cut.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3).unflatten(0, (batch, count))


# ---- The connector ---------------------------------------------------------------------------------------------------


class LVSMConnector(nn.Module):
    """Ties the renderer to the decoder both ways, with the fork's official names.

    Args:
        renderer: Channels of the renderer.
        decoder: Channels of the decoder.
        kind: How hidden states change the renderer's tokens.
        gate: Both gates at the start, before tanh. The fork's first state starts at 0 with zero heads, so that nothing
            of the connector gets a gradient (`published`).
        published: Start as that state does.
    """

    def __init__(self, renderer: int, decoder: int, kind: Kind, gate: float = 0.1, published: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.nvs_gate, self.mod_gate = (nn.Parameter(torch.full((1,), gate)) for _ in range(2))
        self.lvsm_norm, self.lvsm_proj = nn.LayerNorm(renderer), nn.Linear(renderer, decoder)
        self.view_norm, self.view_proj = nn.LayerNorm(decoder), nn.Linear(decoder, renderer)
        linear = [self.lvsm_proj, self.view_proj]
        if kind == "film":
            self.gamma_head, self.beta_head = nn.Linear(renderer, renderer), nn.Linear(renderer, renderer)
            linear += [self.gamma_head, self.beta_head]
        for layer in linear:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if published:
            for parameter in (
                self.nvs_gate,
                self.mod_gate,
                *(each.weight for each in linear if each is not self.view_proj),
            ):
                nn.init.zeros_(parameter)

    def fuse(
        self, tokens: Float[Tensor, "T n D"], rendered: Float[Tensor, "N s s d"], grid: tuple[int, int]
    ) -> Float[Tensor, "T n D"]:
        """Add the renderer's tokens of the input frames to the 2D tokens, before the decoder.

        `grid` has the rows and columns of 2D tokens in a temporal patch.
        """
        pairs = rendered.unflatten(0, (-1, TEMPORAL_PATCH_SIZE)).mean(1)
        pooled = F.adaptive_avg_pool2d(pairs.movedim(-1, 1), grid).movedim(1, -1).flatten(1, 2)
        added = self.lvsm_proj(self.lvsm_norm(pooled)) / tokens.shape[-1] ** 0.5
        return tokens + (torch.tanh(self.nvs_gate) * added).to(tokens.dtype)

    def context(
        self, states: Float[Tensor, "T n D"], rendered: Float[Tensor, "N s s d"], grid: tuple[int, int]
    ) -> Float[Tensor, "N s s d"]:
        """Change the renderer's tokens of the input frames by the decoder's hidden states at the 2D tokens."""
        gate = torch.tanh(self.mod_gate)
        if self.kind == "film":
            of_view = self.per_view(states)[:, None, None]
            return rendered * (1 + gate * self.gamma_head(of_view)) + gate * self.beta_head(of_view)
        own = self.view_proj(self.view_norm(states)).unflatten(1, grid).movedim(-1, 1)
        size = (rendered.shape[1], rendered.shape[2])
        resized = F.interpolate(own, size, mode="bilinear", align_corners=False).movedim(1, -1)
        return rendered + gate * resized.repeat_interleave(TEMPORAL_PATCH_SIZE, 0)

    def per_view(self, states: Float[Tensor, "T n D"]) -> Float[Tensor, "N d"]:
        """Return the mean state of each temporal patch in the renderer's width, once for each of its frames."""
        return self.view_proj(self.view_norm(states.mean(1))).repeat_interleave(TEMPORAL_PATCH_SIZE, 0)


# ---- The loss --------------------------------------------------------------------------------------------------------


def perceptual_terms(
    features: Mapping[str, Tensor], rendered: Float[Tensor, "V 3 S S"], target: Float[Tensor, "V 3 S S"]
) -> tuple[Float[Tensor, ""], list[Float[Tensor, ""]]]:
    """Compute LVSM's perceptual loss, of VGG-19 with average pooling.

    Args:
        features: Weights of torchvision's `vgg19().features`: `{layer}.weight` and `{layer}.bias`.
        rendered: Pictures in 0..1.
        target: True pictures in 0..1.

    Returns:
        The loss, and its six differences: of the colors, and behind five ReLUs.
    """
    means = torch.tensor(MEANS).to(rendered)[:, None, None]
    x, y = (255 * each - means for each in (rendered, target))
    terms = [(x - y).abs().mean()]
    for layer in range(max(RELUS) + 1):
        if f"{layer}.weight" in features:
            weight, bias = (features[f"{layer}.{kind}"].to(x) for kind in ("weight", "bias"))
            x, y = (F.conv2d(each, weight, bias, padding=1) for each in (x, y))
        else:
            x, y = (F.avg_pool2d(each, 2) if layer in POOLS else each.relu() for each in (x, y))
        if layer in RELUS:
            terms.append((x - y).abs().mean() / RELUS[layer])
    return torch.stack(terms).sum() / 255, terms


# ---- The objective ---------------------------------------------------------------------------------------------------


class Views(NamedTuple):
    """Pictures of a scene with their cameras, for the renderer.

    Attributes:
        pictures: Pictures in 0..1.
        world_to_camera: Their poses.
        K: Intrinsics in units of the picture's width and height, from its upper left corner.
    """

    pictures: Float[Tensor, "V 3 h w"]
    world_to_camera: Float[Tensor, "V 4 4"]
    K: Float[Tensor, "V 3 3"]

    @classmethod
    def of(cls, frames: Tensor, world_to_camera: Tensor, K_normalized: Tensor) -> Views:
        """Return frames, bytes or in 0..1, with cameras in the project's convention."""
        K = to_float32(K_normalized).clone()
        K[:, :2, 2] += 0.5
        return cls(unit_colors(frames), to_float32(world_to_camera), K)


class NovelViews(Objective):
    """Render target views from the decoder's hidden states, the loss of the researcher's fork of Spatial-MLLM.

    An `LVSM` reads the shown frames with their cameras. Its tokens are added to the 2D tokens before the decoder, in
    training and in every answer. The decoder's last hidden states change them again (`kind`), and LVSM renders the
    target views from the result. The loss is the mean squared error of the colors, plus 0.5 times the perceptual loss
    with `perceptual`. `HeldOutViews` has the same idea with a smaller predictor, and leaves answers alone.

    Here cameras come from the dataset, and a scene or a shown frame without them is an error. The fork takes VGGT's
    cameras of input and target frames in one pass.

    Args:
        kind: `film`: a scale and a shift per frame (state 9aa2a90). `patch_residual`: a sum per patch (36d80f8).
        views: Maximum number of target views per scene and step.
        drawn: Where they are drawn, see `TargetViews`: `gaps` in state 9aa2a90, `inside` later.
        width: Channels of the renderer. The defaults are LVSM's at full size.
        head: Its channels per head.
        layers: Its number of blocks.
        size: Side of its square pictures in pixels.
        patch: Side of its patches in pixels.
        gate: Both gates at the start, before tanh.
        published_start: Start as state 9aa2a90, with gates and heads at zero. Only LVSM learns then.
        perceptual: File with torchvision's weights of VGG-19, for the perceptual loss. null leaves it out.
        initial: File with LVSM's released weights, as safetensors. null starts at random.
        weight: See `Objective`.

    Raises:
        InputError: A choice is unknown, or sizes do not fit.
    """

    targets = ("cameras",)
    changes_answers = True

    def __init__(
        self,
        kind: Kind = "patch_residual",
        views: int = 4,
        drawn: Drawn = "gaps",
        width: int = 768,
        head: int = 64,
        layers: int = 24,
        size: int = 256,
        patch: int = 8,
        gate: float = 0.1,
        published_start: bool = False,
        perceptual: str | None = None,
        initial: str | None = None,
        weight: float = 0.1,
    ) -> None:
        super().__init__(weight)
        check_choice("--model.objectives: kind", kind, Kind)
        check_choice("--model.objectives: drawn", drawn, Drawn)
        if views < 1 or width % head or size % patch:
            raise InputError(
                f"--model.objectives: NovelViews with {views} views, width {width}, head {head}, size {size} and patch "
                f"{patch}: at least one view, heads that divide the width, and patches that divide the size"
            )
        self.target_views = TargetViews(views, drawn, tokens=False)
        self.kind, self.gate, self.published_start = kind, 0.0 if published_start else gate, published_start
        self.lvsm_model = LVSM(width, head, layers, size, patch)
        self.lvsm_model.image_tokenizer.requires_grad_(False)  # its tokens are detached
        self.perceptual, self.initial, self.vgg = perceptual, initial, nn.Module()
        self.unread: InputError | None = None  # why the initial weights are not there
        if initial is not None:
            try:
                self.lvsm_model.load_state_dict(read_tensors(initial, "initial"))
            except InputError as error:  # a saved model has its own weights, wherever the file of its training is
                self.unread = error
                self.lvsm_model.register_load_state_dict_post_hook(lambda *_: setattr(self, "unread", None))

    def bind(self, width: int, num_layers: int) -> None:
        """Create the connector."""
        super().bind(width, num_layers)
        renderer = self.lvsm_model.transformer_input_layernorm.weight.shape[0]
        self.connector_lvsm = LVSMConnector(renderer, width, self.kind, self.gate, self.published_start)

    def tokens_per_target(self, num_frames: int, visual_tokens: int) -> int:
        """Return the tokens that the renderer processes for each target view, for `plan`."""
        return (num_frames + 1) * (self.lvsm_model.size // self.lvsm_model.patch) ** 2

    def change_tokens(self, visual: Sequence[VisualTokens], scenes: Sequence[PreparedScene]) -> Sequence[VisualTokens]:
        """Add the renderer's tokens of the shown frames, see `Objective`."""
        changed = []
        for own, scene in zip(visual, scenes, strict=True):
            rendered = self._rendered(scene)
            fused = self.connector_lvsm.fuse(own.tokens, rendered, (scene.token_grid[1], scene.token_grid[2]))
            changed.append(own._replace(tokens=fused))
        return changed

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`. Returns `l2`, and with `perceptual` also `perceptual`."""
        terms: dict[str, list[tuple[EncodedScene, Tensor, Tensor]]] = {"l2": []}
        if self.perceptual is not None:
            terms["perceptual"] = []
        features = {} if self.perceptual is None else self._vgg_features(decoded.last_hidden_state.device)
        for scene, target, rendered in self._renderings(decoded):
            known = torch.ones(len(target), dtype=torch.bool, device=target.device)
            errors = (rendered - target).square().mean((-3, -2, -1))
            terms["l2"].append((scene, L2_WEIGHT * errors, known))
            if self.perceptual is not None:
                own = [
                    [perceptual_terms(features, a[None], b[None])[0] for a, b in zip(row, target, strict=True)]
                    for row in rendered
                ]
                values = torch.stack([torch.stack(row) for row in own])
                terms["perceptual"].append((scene, PERCEPTUAL_WEIGHT * values, known))
        return {name: decoded.mean_over_scenes(own) for name, own in terms.items()}

    def _vgg_features(self, device: torch.device) -> dict[str, Tensor]:
        """Return VGG-19's tensors by their names in torchvision. Their file is read when a training first needs it.

        Raises:
            InputError: It can't be read.
        """
        if self.perceptual is not None and not len([*self.vgg.buffers()]):
            for name, tensor in read_tensors(self.perceptual, "perceptual").items():
                if name.startswith("features."):
                    key = name.removeprefix("features.").replace(".", "_")
                    self.vgg.register_buffer(key, tensor.to(device), persistent=False)
        return {name.replace("_", "."): each for name, each in self.vgg.named_buffers()}

    def errors(self, decoded: Decoded) -> dict[str, Tensor]:
        """Return the root mean square error of the colors of a scene, and the error of its mean shown frame."""
        found: dict[str, Tensor] = {}
        for scene, target, rendered in self._renderings(decoded):
            shown = squares(self._views(scene.scene).pictures, self.lvsm_model.size).mean(0)
            for name, each in (("rmse", rendered), ("unlearned/rmse", shown)):
                found[name] = (each - target).square().mean().sqrt()
        return found

    def pictures(self, decoded: Decoded) -> dict[str, Float[Tensor, "v 3 _H _W"]]:
        """See `Objective`. The target views, their renderings, and the nearest shown views."""
        for scene, target, rendered in self._renderings(decoded):
            shown, targets = self._views(scene.scene), scene.scene.target_views
            assert targets is not None and targets.cameras is not None
            every = torch.ones(len(shown.K), dtype=torch.bool, device=shown.K.device)
            near = nearest_views(PatchCameras(shown.world_to_camera, shown.K, every), targets.cameras)
            copies = squares(shown.pictures, self.lvsm_model.size)[near]
            return dict(zip(COLUMNS, (target, rendered[0], copies), strict=True))
        return {}

    def _renderings(
        self, decoded: Decoded
    ) -> Iterator[tuple[EncodedScene, Float[Tensor, "v 3 S S"], Float[Tensor, "rows v 3 S S"]]]:
        """Yield each scene with target views, their pictures, and their renderings in each of its sequences."""
        for scene, states in decoded.views(None):
            targets = scene.scene.target_views
            if targets is None or targets.cameras is None:
                continue
            assert targets.frames is not None
            own = states[:, :, : scene.scene.tokens_per_step]  # without extra tokens
            grid = (scene.scene.token_grid[1], scene.scene.token_grid[2])
            base = self._rendered(scene.scene)
            wanted = Views.of(
                targets.frames[: targets.num_steps], targets.cameras.world_to_camera, targets.cameras.K_normalized
            )
            contexts = torch.stack([self.connector_lvsm.context(row, base, grid).flatten(0, 2) for row in own])
            rows = len(contexts)
            rendered = self.lvsm_model.render(
                contexts,
                wanted.world_to_camera.expand(rows, -1, -1, -1),
                wanted.K.expand(rows, -1, -1, -1),
                height=1,
                width=1,
            )
            yield scene, squares(wanted.pictures, self.lvsm_model.size), to_float32(rendered)

    @torch.no_grad()
    def _rendered(self, scene: PreparedScene) -> Float[Tensor, "N s s d"]:
        """Return the renderer's tokens of the shown frames.

        Raises:
            InputError: The renderer has neither its initial weights nor those of a saved model.
        """
        if self.unread is not None:
            raise self.unread
        views, model = self._views(scene), self.lvsm_model
        side = model.size // model.patch
        with full_precision(views.pictures.device):  # rays
            found = model.tokens(*(each[None] for each in views))
        return found[0].unflatten(0, (-1, side, side))

    def _views(self, scene: PreparedScene) -> Views:
        """Return the shown frames with their cameras.

        Raises:
            InputError: The scene has no frames or no cameras.
        """
        frames = scene.frames
        geometry = None if frames is None else geometry_of_frames(scene.geometry, frames, scene.vision_window)
        if frames is None or geometry is None or not geometry.has_cameras:
            raise InputError(
                f"{scene.name}: NovelViews reads the frames of a scene and their cameras: give it a cameras.json"
            )
        poses, K, _ = geometry.cameras()
        return Views.of(frames, poses, K)


def read_tensors(path: str, option: str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a file of torch without code.

    Raises:
        InputError: The file can't be read.
    """
    try:
        found: Any = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"--model.objectives: {option} {path} can't be read ({error})") from error
    return dict(found)


# ---- Target frames, as the fork draws them ---------------------------------------------------------------------------


def targets_between(inputs: Sequence[int], total: int, rng: Random) -> tuple[list[int] | None, list[int] | None]:
    """Draw one target from each gap between input frames, or from all other frames if no gap has room.

    Returns:
        The targets, and for each frame in the order that the geometry encoder sees whether it is an input. None if
        the video has no other frame.
    """
    targets = frames_between(inputs, range(total), rng)
    if not targets:
        others = [frame for frame in range(total) if frame not in inputs]
        targets = sorted(rng.sample(others, min(max(1, len(inputs) - 1), len(others))))
    return (targets, is_input(inputs, targets)) if targets else (None, None)


def targets_interior(inputs: Sequence[int], total: int, rng: Random) -> tuple[list[int], list[int]]:
    """Draw as many targets between the first and the last input as there are inputs, or repeat the middle input.

    Returns:
        See `targets_between`.
    """
    targets = frames_inside(inputs, range(total), rng) or [inputs[len(inputs) // 2]]
    return targets, is_input(inputs, targets)


def is_input(inputs: Sequence[int], targets: Sequence[int]) -> list[int]:
    """Return 1 for inputs and 0 for targets: each target follows the last input before it, but not the last of all."""
    behind = [0] * len(inputs)
    for target in targets:
        place = max([0, *(i for i, frame in enumerate(inputs) if frame < target)])
        behind[min(place, len(inputs) - 2)] += 1
    return [mark for count in behind for mark in (1, *[0] * count)]
