"""A sheet of the selected frames with their numbers."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

THUMBNAIL, GAP, LABEL = 176, 8, 22  # pixels: the longer side of a frame, between temporal patches, below a frame
PAPER, INK = (255, 255, 255), (40, 44, 52)


def contact_sheet(frames: UInt8[Tensor, "T 3 H W"], indices: Sequence[int], columns: int = 4) -> Image.Image:
    """Draw the frames in rows with their numbers; the frames of one temporal patch are adjacent.

    Args:
        frames: The frames.
        indices: Their numbers in the video.
        columns: Frames per row; four are readable in TensorBoard's cards.
    """
    height, width = frames.shape[-2:]
    scale = THUMBNAIL / max(height, width)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(columns, len(frames) + len(frames) % TEMPORAL_PATCH_SIZE)
    rows = -(-len(frames) // columns)

    def left(column: int) -> int:
        return GAP + column * (w + 1) + (column // TEMPORAL_PATCH_SIZE) * GAP

    sheet = Image.new("RGB", (left(columns) + GAP, GAP + rows * (h + LABEL + GAP)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for place, (frame, index) in enumerate(zip(frames, indices, strict=True)):
        x, y = left(place % columns), GAP + (place // columns) * (h + LABEL + GAP)
        image = Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())
        sheet.paste(image.resize((w, h), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + h + 2), f"frame {index}" if place == 0 else str(index), INK, font)
    return sheet
