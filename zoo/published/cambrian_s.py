"""Cambrian-S (arXiv 2511.04670): SigLIP2 before a Qwen2.5 with one axis of positions.

The frames of a video follow each other without a mark. A frame is padded to a square, pooled to a small grid behind the
projector, and freed from its padding. A learned token follows each row of the grid. The reference is
cambrian-mllm/cambrian-s by the fork zlduke/cambrian-s, state 6c4728b. The released files were not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.modeling_utils import local_torch_dtype
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer

from zoo.backbones.base import (
    AttentionImplementation,
    Backbone,
    BackboneLoader,
    BackbonePart,
    DType,
    FrameSizes,
    License,
    Message,
    TokenizedPrompt,
    VisualTokens,
)
from zoo.backbones.decoder import GROUPED_SDPA, CameraAttention, FusionLayer
from zoo.backbones.pretrained import EmptyBackbone, PretrainedBackbone, backbone_settings
from zoo.backbones.qwen_vl import INITIALIZER_RANGE, QwenVLPreprocessor, tiny_tokenizer
from zoo.cameras.scene_geometry import Window
from zoo.checkpoints.from_tensors import load_backbone
from zoo.encodings.base import EncodedCameras, HeadLayout
from zoo.errors import InputError
from zoo.model import SpatialVLM
from zoo.published.release import refuse_others
from zoo.scene_encoding import EncodedScene
from zoo.seed import resolve_seed
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.layout import SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE, ExtraTokens, Placeholders
from zoo.sequences.loaded_scene import Grid, PreparedScene, VisionInputs, VisionRules
from zoo.sequences.packing import IGNORED
from zoo.sequences.time_index import SequentialIndex, TimeIndex
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.load import LazyTensors, Tensors, files_of, find_tensors, first_tensor

__all__ = [
    "CambrianS",
    "PretrainedCambrianS",
    "TinyCambrianS",
    "cambrian_grid",
    "cambrian_names",
    "cambrian_pixels",
    "load_cambrian_s",
]

Tiles = tuple[int, int]  # rows and columns of squares that show an image together
GRAY = 127  # of the canvas that makes pictures square
TURN_MARKS = ("<|im_start|>", "<|im_end|>")
IMAGE_TOKEN = "<|image_pad|>"  # stands for a visual token in prompts; the published code has an id of no token
IMAGE_TOKEN_ID = 151655  # of Qwen2.5's tokenizer
PUBLISHED_ID = -200  # marks a video or an image in the published code's sequences
FRAME_TOKENS, STILL_TOKENS = 64, 729  # of a square frame and of a square image, by default
TILES = 9  # that show an image, at most, by default
FRAMES_AS_IMAGES = {"frames_as": "image"}
TOWER: dict[str, Any] = dict(  # SigLIP2-so400m, which config.json does not describe
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    image_size=384,
    patch_size=14,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
)
FIXED: dict[str, tuple[Any, ...]] = {  # settings of the published code, as released
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_layer": (-2,),
    "mm_use_im_newline_token": (True,),
    "mm_use_im_start_end": (False,),
}
SIZES = {  # of Qwen2.5-Instruct: width, width of the MLP, layers, heads, heads of keys and values, vocabulary
    "0.5B": (896, 4864, 24, 14, 2, 151936),
    "1.5B": (1536, 8960, 28, 12, 2, 151936),
    "3B": (2048, 11008, 36, 16, 2, 151936),
    "7B": (3584, 18944, 28, 28, 4, 152064),
}
SIGLIP2, SIGLIP2_VISION = "google/siglip2-so400m-patch14-384", "vision_model."
VISION = "model.vision_tower_aux_list.0.vision_tower.vision_model."
NEXT_FRAME = "model.nfp_head."  # of the training that predicts the next frame
CHAT_TEMPLATE = """{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{{ '<|image_pad|>' }}{{ '' if not loop.last and loop.nextitem.type == 'image' else '\n' }}
{%- else -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- endif -%}"""


# ---- Pictures --------------------------------------------------------------------------------------------------------


def cambrian_grid(width: int, height: int, side: int) -> tuple[int, int]:
    """Return the rows and columns of tokens that a picture keeps of `side` x `side`, see `without_padding`."""
    return without_padding(width, height, side, side)


def without_padding(width: int, height: int, rows: int, columns: int) -> tuple[int, int]:
    """Return the rows and columns of tokens that a picture in the middle of a grid keeps of it.

    The rows or columns of its padding are cut off in equal numbers at both ends, rounded as in the published code.
    """
    if width / height > columns / rows:
        return rows - 2 * ((rows - int(height * (columns / width))) // 2), columns
    return rows, columns - 2 * ((columns - int(width * (rows / height))) // 2)


def square_picture(picture: UInt8[Tensor, "3 H W"], side: int) -> UInt8[Tensor, "3 side side"]:
    """Put a picture in the middle of a gray square and resize it with Pillow's bicubic filter."""
    longer = max(picture.shape[-2:])
    canvas = on_canvas(Image.fromarray(picture.permute(1, 2, 0).numpy()), longer, longer)
    resized = canvas.resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def on_canvas(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return an image in the middle of a gray canvas."""
    canvas = Image.new("RGB", (width, height), (GRAY, GRAY, GRAY))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def best_tiles(width: int, height: int, side: int, most: int) -> tuple[int, int]:
    """Return the rows and columns of square tiles for an image.

    They keep the most pixels of the image, and of these choices they have the smallest margins.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        side: Side of a tile in pixels.
        most: Largest number of tiles.
    """

    def quality(tiles: tuple[int, int]) -> tuple[int, int]:
        rows, columns = tiles
        scale = min(columns * side / width, rows * side / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - rows * columns * side**2

    choices = ((rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1))
    return max(choices, key=quality)


def cut_tiles(picture: UInt8[Tensor, "3 H W"], side: int, tiles: tuple[int, int]) -> UInt8[Tensor, "tiles pixels"]:
    """Resize an image to fit on a gray canvas of tiles, and cut them row by row."""
    (height, width), (rows, columns) = picture.shape[-2:], tiles
    across, down = columns * side / width, rows * side / height
    if across < down:
        size = (columns * side, min(math.ceil(height * across), rows * side))
    else:
        size = (min(math.ceil(width * down), columns * side), rows * side)
    image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
    canvas = torch.from_numpy(np.array(on_canvas(image, columns * side, rows * side)))
    cut = canvas.unflatten(1, (columns, side)).unflatten(0, (rows, side))
    return cut.permute(0, 2, 4, 1, 3).flatten(2).flatten(0, 1)


def square_pictures(pictures: UInt8[Tensor, "N 3 H W"], side: int) -> UInt8[Tensor, "N pixels"]:
    """Return pictures in a row each, see `square_picture`."""
    return torch.stack([square_picture(each, side) for each in pictures.cpu()]).flatten(1)


def normalize_colors(pixels: Tensor) -> Tensor:
    """Return bytes as numbers from -1 to 1."""
    return pixels.float() / 255 * 2 - 1


def grid_in_patches(pictures: Sequence[int], rows: int, columns: int) -> Grid:
    """Return (t, h, w) of pictures with this grid of tokens, in units of which 2 x 2 make a visual token.

    Args:
        pictures: The shape (T, 3, H, W) of the pictures.
        rows: Rows of tokens.
        columns: Columns of tokens.

    Raises:
        InputError: The pictures are so narrow that the published rule keeps none of them.
    """
    steps, _, height, width = pictures
    if not rows or not columns:
        side = max(rows, columns)
        raise InputError(f"a picture of {width} x {height} pixels is too narrow for {side} x {side} tokens: crop it")
    return steps, rows * SPATIAL_MERGE_SIZE, columns * SPATIAL_MERGE_SIZE


class CambrianPreprocessor(QwenVLPreprocessor):
    """Each frame becomes a square, with its padding.

    Args:
        processor: Holds the tokenizer and the chat template.
        side: Side of the squares in pixels.
        token_side: Tokens per side of a square.

    Attributes:
        supervises_marks: See `PretrainedCambrianS`.
    """

    title: ClassVar[str] = "Cambrian-S"
    supervises_marks = False

    def __init__(self, processor: Any, side: int, token_side: int) -> None:
        super().__init__(processor)
        self.side, self.token_side = side, token_side

    def cut_patches(self, frames: UInt8[Tensor, "T 3 H W"]) -> tuple[UInt8[Tensor, "t pixels"], Int[Tensor, " 3"]]:
        pictures = frames[::TEMPORAL_PATCH_SIZE]
        height, width = pictures.shape[-2:]
        kept = self.kept_grid(width, height, self.token_side)
        return self.make_square(pictures), torch.tensor(grid_in_patches(pictures.shape, *kept))

    def make_square(self, pictures: UInt8[Tensor, "N 3 H W"]) -> UInt8[Tensor, "N pixels"]:
        """Return the vision encoder's pictures, in a row each."""
        return square_pictures(pictures, self.side)

    @staticmethod
    def kept_grid(width: int, height: int, side: int) -> tuple[int, int]:
        """Return the rows and columns of tokens that a picture keeps of `side` x `side`."""
        return cambrian_grid(width, height, side)

    def shown_window(self, height: int, width: int) -> Window:
        """See `Preprocessor`. The window is in pixels of which `token_side` are one of the image."""
        rows, columns = cambrian_grid(width, height, self.token_side)
        side, longer = self.token_side, max(height, width)
        top, left = (
            (side - kept) // 2 * longer - (longer - own) // 2 * side for kept, own in ((rows, height), (columns, width))
        )
        return Window(height * side, width * side, top, left, rows * longer, columns * longer)

    def normalize(self, patches: UInt8[Tensor, "t pixels"]) -> Float[Tensor, "t pixels"]:
        return normalize_colors(patches)

    def prompt(self, messages: Sequence[Message]) -> str:
        """See `Preprocessor`.

        Raises:
            InputError: The chat shows a video as such.
        """
        if any({"type": "video"} in message["content"] for message in messages if message["role"] == "user"):
            raise InputError(f"{self.title} sees each frame as an image: set --data.frames_as image")
        return super().prompt([images_first(message) for message in messages])

    def tokenize(
        self,
        texts: Sequence[str],
        media_grids: Sequence[Sequence[int]],
        extra_tokens: ExtraTokens,
        frame_times: Sequence[float] | None = None,
    ) -> TokenizedPrompt:
        made = super().tokenize(texts, media_grids, extra_tokens, frame_times)
        return self.with_marks(made) if self.supervises_marks else made

    def with_marks(self, prompt: TokenizedPrompt) -> TokenizedPrompt:
        """Return a chat whose marks of turns, lone newlines and headers of answers are supervised, too."""
        start, end, newline = (self.processor.tokenizer(mark)["input_ids"] for mark in (*TURN_MARKS, "\n"))
        ids, is_answer = prompt.input_ids, prompt.labels != IGNORED
        is_supervised = is_answer | torch.isin(ids, torch.tensor([*start, *end, *newline]))
        turn = (ids == start[0]).cumsum(0)
        is_supervised |= torch.isin(turn, turn[is_answer])  # with the header
        return TokenizedPrompt(ids, torch.where(is_supervised, ids, IGNORED))

    def save_pretrained(self, folder: str) -> None:
        self.processor.tokenizer.save_pretrained(folder)  # no file describes the pictures


def images_first(message: Message) -> Message:
    """Move a user's images before the text, as the published code does. Images with text between them stay."""
    content = message["content"]
    kinds = [kind for kind, _ in groupby(part["type"] for part in content)] if isinstance(content, list) else []
    if kinds.count("image") != 1:
        return message
    images = [part for part in content if part["type"] == "image"]
    text = "".join(part["text"] for part in content if part["type"] == "text").strip()
    return {**message, "content": [*images, {"type": "text", "text": text}]}


class CambrianProcessor:
    """Builds transformers' processor around a tokenizer. The published folders have no other processor file."""

    @classmethod
    def from_pretrained(cls, folder: Any) -> Qwen2_5_VLProcessor:
        return cls.of(Qwen2Tokenizer.from_pretrained(folder))

    @staticmethod
    def of(tokenizer: Any) -> Qwen2_5_VLProcessor:
        return Qwen2_5_VLProcessor(
            Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE
        )


# ---- The backbone ----------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """How the vision encoder's states of squares become a grid of tokens.

    Attributes:
        rows: Rows of tokens that are kept.
        columns: Columns of tokens that are kept.
        tiles: Rows and columns of squares that show one image together. None is one square per picture.
    """

    rows: int
    columns: int
    tiles: Tiles | None = None


class CambrianInputs(VisionInputs):
    """What becomes of the squares behind the vision encoder, which does not need it itself.

    Args:
        grids: See `VisionRules`.
        tiles: See `Shown`, for each grid.
    """

    def __init__(self, grids: Sequence[Grid], tiles: Sequence[Tiles | None] | None = None) -> None:
        self.squares: list[tuple[Shown, int]] = []  # with the number of squares
        lengths = []
        for (steps, *sides), own in zip(grids, tiles or [None] * len(grids), strict=True):
            rows, columns = (side // SPATIAL_MERGE_SIZE for side in sides)
            self.squares.append((Shown(rows, columns, own), steps * math.prod(own or ())))
            lengths.append(steps * rows * columns)
        super().__init__(lengths, {}, {})


@dataclass(frozen=True)
class CambrianRules(VisionRules):
    """All pictures have the same size. Their grids say what is cut off behind the vision encoder."""

    def inputs(self, grids: Sequence[Grid]) -> CambrianInputs:
        return CambrianInputs(grids)


class CambrianAttention(CameraAttention, Qwen2Attention):
    """The decoder's attention with camera hooks."""

    def attend(
        self, hidden_states: Tensor, camera_encoding: EncodedCameras | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend without position ids, from which flash attention would guess packed sequences in each layer."""
        kwargs.pop("position_ids", None)
        return super().attend(hidden_states, camera_encoding, **kwargs)


class CambrianLayer(FusionLayer, Qwen2DecoderLayer):
    """A decoder layer, in which a fusion may change the visual tokens."""


class CambrianBackbone(Backbone):
    """SigLIP2 and Qwen2.5 as in transformers' LLaVA-NeXT, whose `image_newline` follows each row of tokens.

    Args:
        vlm: Transformers' model. Its vision encoder lacks the last layer and the pooling head of SigLIP2.
        processor: Holds the tokenizer and the chat template. None for a model that takes only token ids.
        attn_implementation: Attention backend of the decoder. None uses the model's.
        stop_tokens: Token ids that end an answer, in addition to the config's.
    """

    preprocessor: CambrianPreprocessor
    preprocessor_class: ClassVar[type[CambrianPreprocessor]] = CambrianPreprocessor
    hooked_classes = {Qwen2Attention: CambrianAttention, Qwen2DecoderLayer: CambrianLayer}
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tokens_per_second = 1  # of a time that no position depends on
    spatial_merge_size, image_pixels = SPATIAL_MERGE_SIZE, None

    def __init__(
        self, vlm: Any, processor: Any, attn_implementation: str | None = None, stop_tokens: Sequence[int] = ()
    ) -> None:
        super().__init__()
        config, text = vlm.config, vlm.config.text_config
        self.vlm = vlm
        attention = attn_implementation or self.attn_implementation
        self.decoder.config._attn_implementation = GROUPED_SDPA if attention == "sdpa" else attention
        image, video = PUBLISHED_ID, PUBLISHED_ID - 1  # a video is shown as images
        own = text.eos_token_id
        stops = [*([own] if isinstance(own, int) else own or ()), *stop_tokens]
        if processor is not None:
            side = config.vision_config.image_size
            self.preprocessor = self.preprocessor_class(processor, side, token_side(config, "miv_token_len"))
            video, image = processor.video_token_id, processor.image_token_id
            stops.append(processor.tokenizer.eos_token_id)
        self.placeholders = Placeholders(video, image, None)
        self.stop_tokens = list(dict.fromkeys(stops))
        self.patch_size = config.vision_config.patch_size
        self.hidden_size, self.context_length = text.hidden_size, text.max_position_embeddings

    @property
    def head_layout(self) -> HeadLayout:
        width = self.decoder.layers[0].self_attn.head_dim
        return HeadLayout(width, (0,) * (width // 2))

    @property
    def row_token(self) -> Float[Tensor, " D"]:
        return self.vlm.model.image_newline

    def frame_sizes(self, steps: int, height: int, width: int) -> FrameSizes:
        """See `Backbone`. The connector sees all patches of the squares."""
        config = self.vlm.config
        kept = self.preprocessor_class.kept_grid(width, height, token_side(config, "miv_token_len"))
        grid = grid_in_patches((steps, 3, height, width), *kept)
        side = config.vision_config.image_size
        patches = (side // self.patch_size) ** 2
        return FrameSizes(grid, patches, patches, (steps, 3 * side**2))

    def blocks(self) -> list[nn.Module]:
        return [*self.decoder.layers, *self.vlm.model.vision_tower.encoder.layers]

    def part_of(self, name: str) -> BackbonePart:
        if ".multi_modal_projector." in f".{name}" or name.endswith("image_newline"):
            return "connector"
        return "vision" if ".vision_tower." in f".{name}" else "decoder"

    def is_unused(self, name: str) -> bool:
        return ".post_layernorm." in name  # the states before it are read

    def default_time_index(self) -> TimeIndex:
        return SequentialIndex()

    @property
    def vision_rules(self) -> CambrianRules:
        return CambrianRules()

    def encode_vision(self, pixel_values: Tensor, vision: VisionInputs) -> VisualTokens:
        """See `Backbone`. The states before the last norm are projected, pooled, and freed from the padding."""
        assert isinstance(vision, CambrianInputs)
        model, side = self.vlm.model, self.vlm.config.vision_config.image_size
        if not pixel_values.is_floating_point():
            pixel_values = normalize_colors(pixel_values)
        pictures = pixel_values.unflatten(1, (3, side, side))
        states = model.vision_tower.encoder(model.vision_tower.embeddings(pictures)).last_hidden_state
        projector = model.multi_modal_projector  # in float32 if it is trained, behind a frozen bfloat16 encoder
        projected = projector(states.to(projector.linear_1.weight.dtype))
        maps = projected.unflatten(1, (math.isqrt(states.shape[1]), -1)).permute(0, 3, 1, 2)
        runs = [
            (shown, sum(count for _, count in run)) for shown, run in groupby(vision.squares, lambda square: square[0])
        ]
        parts = zip(maps.split([count for _, count in runs]), runs, strict=True)
        tile_side = token_side(self.vlm.config, "si_token_len")
        pooled = [pooled_grid(part, shown, tile_side) for part, (shown, _) in parts]
        tokens = torch.cat([part.flatten(2).mT.flatten(0, 1) for part in pooled])
        return VisualTokens(tokens, tokens.new_empty(0, *tokens.shape))

    def embed(self, input_ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """See `Backbone`. The published placeholder has no embedding, and is replaced afterwards."""
        return super().embed(input_ids.clamp(min=0))

    def decode(self, inputs: Mapping[str, Any], *, cache: Any = None, use_cache: bool = False) -> Any:
        """See `Backbone`. All axes of the positions are equal."""
        return super().decode({**inputs, "position_ids": inputs["position_ids"][0]}, cache=cache, use_cache=use_cache)


def pooled_grid(
    maps: Float[Tensor, "N D H W"], shown: Shown, tile_side: int
) -> Float[Tensor, "pictures D {shown.rows} {shown.columns}"]:
    """Pool the states of squares, join those of an image's tiles, and cut off the rows or columns of the padding.

    Args:
        maps: The states of squares.
        shown: The grid. Without tiles its longer side is the side of a pooled square.
        tile_side: Side of a pooled square of tiles.
    """
    down, across = shown.tiles or (1, 1)
    side = tile_side if shown.tiles else max(shown.rows, shown.columns)
    if side != maps.shape[-1]:
        maps = F.interpolate(maps.float(), (side, side), mode="bilinear", align_corners=False).to(maps.dtype)
    if shown.tiles:
        maps = maps.unflatten(0, (-1, down, across)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    top, left = (down * side - shown.rows) // 2, (across * side - shown.columns) // 2
    return maps[..., top : top + shown.rows, left : left + shown.columns]


def token_side(config: Any, name: str) -> int:
    """Return the side of the square of tokens whose number the config has under a name."""
    return math.isqrt(int(getattr(config, name)))


def known_settings(size: str) -> dict[str, Any]:
    """Return the sizes in the config.json of a released model."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {
        "model_type": "cambrian_qwen",
        **dict(zip((*names, "vocab_size"), SIZES[size], strict=True)),
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": size != "7B",
        "max_position_embeddings": 32768,
    }


# ---- A tiny model with random weights --------------------------------------------------------------------------------


class TinyCambrianS(BackboneLoader):
    """A tiny Cambrian-S with random weights.

    Args:
        layers: Number of decoder layers.
        hidden_size: Width of the decoder.
        heads: Attention heads of the decoder.
        key_value_heads: Heads of the decoder's keys and values.
        vision_layers: Layers of the vision encoder.
        vision_hidden_size: Width of the vision encoder.
        image_size: Side of the pictures in pixels, a multiple of 14.
        frame_tokens: Number of tokens of a square frame.
        seed: Seed of the weights. null is the run's seed.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
        supervises_marks: See `PretrainedCambrianS`.
    """

    shown_as = FRAMES_AS_IMAGES

    def __init__(
        self,
        layers: int = 4,
        hidden_size: int = 192,
        heads: int = 6,
        key_value_heads: int = 2,
        vision_layers: int = 2,
        vision_hidden_size: int = 128,
        image_size: int = 56,
        frame_tokens: int = 4,
        seed: int | None = None,
        attn_implementation: AttentionImplementation = "sdpa",
        dtype: DType = "float32",
        supervises_marks: bool = False,
    ) -> None:
        super().__init__(attn_implementation, dtype)
        self.supervises_marks = supervises_marks
        self.seed, ids = resolve_seed(seed), tiny_tokenizer().convert_tokens_to_ids
        settings = dict(
            model_type=self.release.family,
            vocab_size=len(tiny_tokenizer()),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            initializer_range=INITIALIZER_RANGE,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=ids("<|im_end|>"),
            pad_token_id=ids("<|endoftext|>"),
            miv_token_len=frame_tokens,
            si_token_len=(image_size // 14) ** 2,
            vision_config=dict(
                hidden_size=vision_hidden_size,
                intermediate_size=2 * vision_hidden_size,
                num_hidden_layers=vision_layers + 1,
                num_attention_heads=4,
                image_size=image_size,
                patch_size=14,
                initializer_range=INITIALIZER_RANGE,
            ),
        )
        self.config = self.release.read_config(settings)
        self.config._attn_implementation = self.model_attention

    @property
    def release(self) -> type[PretrainedCambrianS]:
        """The class of released weights of this kind."""
        return PretrainedCambrianS

    def stock_model(self) -> LlavaNextForConditionalGeneration:
        """Return transformers' model with random weights, in training mode."""
        with local_torch_dtype(self.dtype), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return LlavaNextForConditionalGeneration(self.config).train()

    def load(self) -> CambrianBackbone:
        processor = CambrianProcessor.of(tiny_tokenizer())
        backbone = self.release.backbone_class(self.stock_model(), processor, self.attn_implementation)
        backbone.preprocessor.supervises_marks = self.supervises_marks
        return backbone


class CambrianS(VideoQATask):
    """Cambrian-S (arXiv 2511.04670): a LLaVA whose frames are small grids of tokens with a token after each row.

    cambrian_s.yaml shows each frame as an image, as published.

    Args:
        backbone: The video-language model. The default is tiny and randomly initialized.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(self, backbone: BackboneLoader | None = None, **parts: Any) -> None:
        super().__init__(backbone=backbone or TinyCambrianS(), **parts)


# ---- The published folders -------------------------------------------------------------------------------------------


class PretrainedCambrianS(PretrainedBackbone):
    """Released weights of Cambrian-S.

    Args:
        path: A hub id (`nyu-visionx/Cambrian-S-7B`) or a local folder with config, safetensors and tokenizer.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
        supervises_marks: Training also supervises the header of each answer, and the marks of turns and lone newlines
            of all turns, as published. Each question then has a sequence of its own. Set `--model.average
            micro_batch_tokens` as well, because by questions each run of supervised tokens counts as an answer.
        vision_path: A hub id (`google/siglip2-so400m-patch14-384`) or a local folder of SigLIP2, whose vision encoder
            is read in place of the folder's own, as by the published loader. Whether the two differ is unknown.
    """

    title = backbone_title = "Cambrian-S"
    family, released, architecture = "cambrian_qwen", "nyu-visionx/Cambrian-S-7B", "CambrianQwenForCausalLM"
    stock, processor_class, backbone_class = LlavaNextForConditionalGeneration, CambrianProcessor, CambrianBackbone
    licensed = License(
        "`nyu-visionx/Cambrian-S-7B`, `-7B-LFP`, `-3B`, `-1.5B`, `-0.5B`",
        "unknown (their files were not seen; the code is Apache-2.0). Made of SigLIP2-so400m and Qwen2.5-Instruct",
    )
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = FIXED
    vision_prefixes: ClassVar[tuple[str, ...]] = (VISION,)
    renamed = {
        VISION: "model.vision_tower.",
        "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
        "model.layers.": "model.language_model.layers.",
        "model.norm.": "model.language_model.norm.",
        "model.embed_tokens.": "model.language_model.embed_tokens.",
    }
    not_loaded = (NEXT_FRAME,)
    known_configs = {
        **{f"Cambrian-S-{size}": ("", known_settings(size)) for size in SIZES},
        "Cambrian-S-7B-LFP": ("", {**known_settings("7B"), "nfp_head": True}),
    }
    shown_as = FRAMES_AS_IMAGES

    def __init__(
        self,
        path: str = released,
        attn_implementation: AttentionImplementation = "sdpa",
        dtype: DType = "bfloat16",
        supervises_marks: bool = False,
        vision_path: str | None = None,
    ):
        super().__init__(path, attn_implementation, dtype)
        self.supervises_marks, self.vision_path = supervises_marks, vision_path

    @cached_property
    def tensors(self) -> Tensors:
        """See `PretrainedBackbone`. With `vision_path` the vision encoder's are SigLIP2's."""
        own = super().tensors
        if self.vision_path is None:
            return own
        siglip = find_tensors(self.vision_path, SIGLIP2, "--model.backbone.vision_path")
        return WithVision(own, siglip, self.vision_prefixes)

    @classmethod
    def read_config(cls, settings: Mapping[str, Any], source: str = "the config") -> LlavaNextConfig:
        """Return transformers' config.

        Args:
            settings: A config.json. `vision_config` has other sizes of the vision encoder than SigLIP2-so400m's, with
                the deleted layer counted, as the zoo writes them.
            source: Where it was read from, for errors.
        """
        refuse_others(settings, cls.fixed)
        own = backbone_settings(settings)
        text = {name: own[name] for name in (*Qwen2Config().to_dict(), "rope_theta", "rope_scaling") if name in own}
        tower = TOWER | dict(settings.get("vision_config") or {})
        tower["num_hidden_layers"] -= 1
        return LlavaNextConfig(
            text_config={**text, "model_type": "qwen2"},
            vision_config={**tower, "model_type": "siglip_vision_model", "vision_use_head": False},
            image_token_index=IMAGE_TOKEN_ID,
            vision_feature_select_strategy="full",
            tie_word_embeddings=bool(own.get("tie_word_embeddings", False)),
            miv_token_len=own.get("miv_token_len", FRAME_TOKENS),
            si_token_len=own.get("si_token_len", STILL_TOKENS),
            anyres_max_subimages=own.get("anyres_max_subimages", TILES),
        )

    @classmethod
    def written_config(cls, config: Any) -> dict[str, Any]:
        """Return the decoder's settings at the top level, with the old name of RoPE's setting."""
        nested = config.to_dict()
        text, rope = nested["text_config"], nested["text_config"]["rope_parameters"]
        newer = ("layer_types", "rope_parameters", "model_type", "dtype", "sliding_window")
        tower = {name: nested["vision_config"][name] for name in TOWER}
        tower["num_hidden_layers"] += 1
        return {
            **{name: text[name] for name in Qwen2Config().to_dict() if name in text and name not in newer},
            "rope_theta": rope["rope_theta"],
            "tie_word_embeddings": config.tie_word_embeddings,
            **{name: values[0] for name, values in cls.fixed.items()},
            "miv_token_len": config.miv_token_len,
            "si_token_len": config.si_token_len,
            "anyres_max_subimages": config.anyres_max_subimages,
            **({} if tower == TOWER else {"vision_config": tower}),
        }

    def load(self) -> CambrianBackbone:
        """See `PretrainedBackbone`."""
        backbone = super().load()
        if not self.lacks_folder:
            backbone.preprocessor.supervises_marks = self.supervises_marks
            rank_zero_info(f"{self.title}: the vision encoder is that of {self.vision_path or self.path}")
        if any(name.startswith(NEXT_FRAME) for name in self.tensor_names):
            rank_zero_warn(f"{self.path}: {NEXT_FRAME[:-1]} predicts the next frame in training, and is not loaded")
        return backbone


class WithVision(LazyTensors):
    """The tensors of a released model with SigLIP2's in place of its vision encoder's.

    Args:
        tensors: Tensors by official names.
        siglip: SigLIP2's tensors.
        prefixes: Each may begin the official names of the vision encoder.
    """

    def __init__(self, tensors: Tensors, siglip: Tensors, prefixes: tuple[str, ...]) -> None:
        self.tensors, self.siglip, self.prefixes = tensors, siglip, prefixes

    @cached_property
    def names(self) -> dict[str, tuple[Tensors, str]]:  # type: ignore[override]
        """For each tensor where it is read, and its name there."""
        own = {name: (self.tensors, name) for name in self.tensors if not name.startswith(self.prefixes)}
        replaced = (
            (name, f"{SIGLIP2_VISION}{name.removeprefix(prefix)}") for prefix in self.prefixes for name in self.tensors
        )
        return own | {name: (self.siglip, other) for name, other in replaced if other in self.siglip}

    @property
    def files(self) -> tuple[Path, ...]:  # type: ignore[override]
        """See `LazyTensors`."""
        return (*files_of(self.tensors), *files_of(self.siglip))

    is_stored = True

    def __getitem__(self, name: str) -> Tensor:
        tensors, own = self.names[name]
        return tensors[own]


# ---- For outside checks: sequences of the published code -------------------------------------------------------------


class OfficialCambrian(SpatialVLM):
    """A Cambrian-S that takes the published code's sequences, which have one id, -200, for each video or image.

    `media` has the frames of a video (F, 3, H, W), or an image (3, H, W), as bytes of any size, for each of them.
    """

    def inputs_of(
        self, ids: Int[Tensor, " L"], media: Sequence[UInt8[Tensor, "... 3 _H _W"]], *, camera_tokens: bool = False
    ) -> Float[Tensor, "M D"]:
        """Return the inputs of the decoder."""
        return self.decoder_inputs(*self._encoded(ids, media))["inputs_embeds"][0]

    def logits_of(
        self, ids: Int[Tensor, " L"], media: Sequence[UInt8[Tensor, "... 3 _H _W"]], *, camera_tokens: bool = False
    ) -> Float[Tensor, "M vocabulary"]:
        """Return the logits of all tokens."""
        decoded = self.hidden_states(*self._encoded(ids, media))
        return self.backbone.lm_head(decoded.last_hidden_state)[0]

    @torch.no_grad()
    def answer_of(
        self,
        ids: Int[Tensor, " L"],
        media: Sequence[UInt8[Tensor, "... 3 _H _W"]],
        *,
        max_new_tokens: int,
        camera_tokens: bool = False,
    ) -> list[int]:
        """Return a greedy answer up to and including a stop token."""
        from zoo.generation import answer_prompts

        whole, scenes = self._shown(ids, media)
        prompts = self.sequence_builder.prompts([whole], [range(len(scenes))], scenes)
        batch = Batch(scenes, vision_inputs(scenes), prompts=prompts).to(self.backbone.device)
        (reply,) = answer_prompts(self, self.encode_scenes(batch), batch.prompts, max_new_tokens)
        return reply.ids

    def _encoded(self, ids: Tensor, media: Sequence[Tensor]) -> tuple[list[EncodedScene], Sequences]:
        """Return the encoded videos and images, and a batch of one sequence."""
        whole, scenes = self._shown(ids, media)
        row = torch.tensor([whole])
        made = self.sequence_builder.build(row, torch.ones_like(row, dtype=torch.bool), scenes, [range(len(scenes))])
        batch = Batch(scenes, vision_inputs(scenes), made).to(self.backbone.device)
        assert batch.sequences is not None
        return self.encode_scenes(batch), batch.sequences

    def _shown(self, ids: Tensor, media: Sequence[Tensor]) -> tuple[list[int], list[PreparedScene]]:
        """Return the ids with one placeholder per visual token, and the videos and images."""
        each = [self._scenes(medium, alone=len(media) == 1) for medium in media]
        extra = self.sequence_builder.spec.extra_tokens
        lengths, whole = [sum(scene.num_tokens(extra) for scene in scenes) for scenes in each], list[int]()
        for number in ids.flatten().tolist():
            is_medium = number == PUBLISHED_ID
            whole += [self.backbone.placeholders.image] * lengths.pop(0) if is_medium else [number]
        return whole, [scene for scenes in each for scene in scenes]

    def _scenes(self, medium: Tensor, *, alone: bool) -> list[PreparedScene]:
        """Return a video, or an image, which is followed by its tiles if it is alone."""
        whole = self._scene(medium)
        if medium.ndim == 4 or not alone:
            return [whole]
        config, (height, width) = self.backbone.vlm.config, medium.shape[-2:]
        side = config.vision_config.image_size
        tiles = best_tiles(width, height, side, config.anyres_max_subimages)
        rows, columns = (count * token_side(config, "si_token_len") for count in tiles)
        grid = grid_in_patches(medium[None].shape, *without_padding(width, height, rows, columns))
        return [
            whole,
            TiledImage(pixel_values=cut_tiles(medium, side, tiles), grid_thw=grid, kind="image", tiles=tiles),
        ]

    def _scene(self, medium: Tensor) -> PreparedScene:
        """Return a video or an image as squares."""
        config, is_still = self.backbone.vlm.config, medium.ndim == 3
        pictures = medium[None] if is_still else medium
        side = token_side(config, "si_token_len" if is_still else "miv_token_len")
        height, width = pictures.shape[-2:]
        return PreparedScene(
            pixel_values=square_pictures(pictures, config.vision_config.image_size),
            grid_thw=grid_in_patches(pictures.shape, *cambrian_grid(width, height, side)),
            kind="image",
        )


@dataclass(frozen=True)
class TiledImage(PreparedScene):
    """An image that several squares show.

    Attributes:
        tiles: See `Shown`.
    """

    tiles: Tiles = (1, 1)


def vision_inputs(scenes: Sequence[PreparedScene]) -> CambrianInputs:
    """Return the grids of all scenes, and the tiles of images."""
    each = [(grid, getattr(scene, "tiles", None)) for scene in scenes for grid in scene.vision_grids]
    grids, tiles = zip(*each, strict=True)
    return CambrianInputs(grids, tiles)


def load_cambrian_s(config: dict[str, Any], state_dict: Tensors) -> OfficialCambrian:
    """Return a Cambrian-S with these weights, in their dtype. All parameters are trainable.

    Args:
        config: Its config.json, with the sizes of another vision encoder than SigLIP2-so400m as `vision_config`.
        state_dict: Tensors by official names. A tied lm_head and `model.nfp_head` may be absent or present.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape.
    """
    kind = PretrainedCambrianS
    model = OfficialCambrian(EmptyBackbone(kind, kind.read_config(config), first_tensor(state_dict).dtype))
    load_backbone(kind, model, state_dict)
    return model


def cambrian_names(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the official names and shapes of the tensors of a released model, without a tied lm_head.

    Args:
        config: See `load_cambrian_s`.
    """
    kind = PretrainedCambrianS
    with torch.device("meta"):
        backbone = EmptyBackbone(kind, kind.read_config(config), torch.float32).load()
    official = kind.backbone_names().official
    shapes = {official(name): tuple(each.shape) for name, each in backbone.vlm.named_parameters()}
    if config.get("nfp_head"):
        width, states = backbone.hidden_size, backbone.vlm.config.vision_config.hidden_size
        for layer, out in ((0, width), (2, states)):
            shapes |= {f"{NEXT_FRAME}{layer}.weight": (out, width), f"{NEXT_FRAME}{layer}.bias": (out,)}
    return shapes


def cambrian_pixels(
    media: Sequence[UInt8[Tensor, "... 3 _H _W"]], config: Mapping[str, Any], *, alone: bool = True, padded: bool = True
) -> Float[Tensor, "N 3 side side"]:
    """Return the vision encoder's input for all pictures of videos and images in order, see `OfficialCambrian`.

    Args:
        media: Videos and images.
        config: See `load_cambrian_s`.
        alone: Whether an image without other media is cut into tiles, as in the published code.
        padded: Whether pictures are padded to squares.
    """
    if not padded:
        raise InputError("only padded pictures are supported")
    own = PretrainedCambrianS.read_config(config)
    side = own.vision_config.image_size
    pictures = [square_pictures(each[None] if each.ndim == 3 else each, side) for each in media]
    if alone and len(media) == 1 and media[0].ndim == 3:
        height, width = media[0].shape[-2:]
        pictures.append(cut_tiles(media[0], side, best_tiles(width, height, side, own.anyres_max_subimages)))
    return normalize_colors(torch.cat(pictures)).unflatten(1, (3, side, side))
