"""The any-view model: tokens, cameras, depth and rays of views with or without cameras."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from zoo.geometry.da3.camera_coding import CameraDecoder, CameraEncoder, pose_encoding_to_cameras
from zoo.geometry.da3.heads import DualDPT
from zoo.geometry.da3.output import DA3Output
from zoo.geometry.da3.reference import Strategy
from zoo.geometry.da3.trunk import Trunk
from zoo.geometry.images import normalize
from zoo.geometry.transformer_blocks import layer_index
from zoo.precision import full_precision

CamerasPx = tuple[Float[Tensor, "B S 4 4"], Float[Tensor, "B S 3 3"]]  # world_to_camera, K_px
DENSE = {"depth", "ray"}  # both by the one dense head


class AnyView(nn.Module):
    """The trunk with the heads that a config names, under the official names.

    Args:
        net: Arguments of `Trunk`.
        head: Arguments of `DualDPT`; None builds no such head.
        cam_enc: Arguments of `CameraEncoder`; None builds none.
        cam_dec: Arguments of `CameraDecoder`; None builds none.
    """

    parts_of_head = {"camera": ("cam_dec",), "depth": ("head",), "ray": ("head",)}

    def __init__(
        self,
        net: dict[str, Any],
        head: dict[str, Any] | None = None,
        cam_enc: dict[str, Any] | None = None,
        cam_dec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"pretrained": Trunk(**net)})
        self.head = None if head is None else DualDPT(**head)
        self.cam_enc = None if cam_enc is None else CameraEncoder(**cam_enc)
        self.cam_dec = None if cam_dec is None else CameraDecoder(**cam_dec)

    @property
    def trunk(self) -> Trunk:
        """The trunk, whose official name is `backbone.pretrained`."""
        trunk = self.backbone["pretrained"]
        assert isinstance(trunk, Trunk)
        return trunk

    @property
    def heads(self) -> set[str]:
        """The heads that can be asked for."""
        return ({"camera"} if self.cam_dec is not None else set()) | (DENSE if self.head is not None else set())

    @property
    def takes_cameras(self) -> bool:
        """Whether cameras can be given."""
        return self.cam_enc is not None

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int],
        heads: Collection[str],
        reference: Strategy,
        cameras: CamerasPx | None,
    ) -> DA3Output:
        """Compute only what is asked for; see `DA3`."""
        batch, _, _, height, width = images.shape
        trunk, dense = self.trunk, DENSE & set(heads)
        indices = {layer: layer_index(layer, trunk.depth) for layer in layers}
        needed = {*indices.values(), *(trunk.out_layers if dense else ())}
        if "camera" in heads:
            needed.add(trunk.out_layers[-1])
        condition = None
        if cameras is not None and self.cam_enc is not None:
            with full_precision(images.device):
                condition = self.cam_enc(*cameras, (height, width))
        outputs, chosen = trunk(normalize(images).to(trunk.dtype), needed, reference, condition)

        result = DA3Output({layer: outputs[i] for layer, i in indices.items()}, reference=chosen)
        with full_precision(images.device):
            if "camera" in heads and self.cam_dec is not None:
                token = outputs[trunk.out_layers[-1]][:, :, 0].to(self.cam_dec.fc_t.weight.dtype)
                result.pose_enc = self.cam_dec(token)
                result.world_to_camera, result.K_px = pose_encoding_to_cameras(result.pose_enc, (height, width))
            if dense and self.head is not None:
                tokens = [outputs[i][:, :, 1:].flatten(0, 1).to(self.head.dtype) for i in trunk.out_layers]
                for name, maps in self.head(tokens, height, width, dense).items():
                    setattr(result, name, maps.unflatten(0, (batch, -1)))
        return result
