"""The interface of a backbone: its preprocessor, the loader of its weights, and the model itself.

A backbone is a video-language model of transformers. Each file of this folder holds one backbone. `qwen25_vl.py` is the
simplest. `qwen_vl.py` holds the shared code of the Qwen-VL family.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn
from transformers.integrations.hub_kernels import is_kernel
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from zoo.backbones.decoder import GROUPED_SDPA, MASKED, DeepFeatures, check_head_channels, replace_classes
from zoo.cameras import Cameras
from zoo.cameras.scene_geometry import Window
from zoo.configuration import Configurable
from zoo.encodings.base import CameraEncoding, DecoderLayout, EncodedCameras, HeadLayout
from zoo.encodings.placements import ExtraChannels
from zoo.errors import InputError, did_you_mean
from zoo.geometry.base import GeometryEncoder
from zoo.sequences.batch import Sequences
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE, ExtraTokens, Placeholders
from zoo.sequences.loaded_scene import Grid, VisionInputs, VisionRules
from zoo.sequences.packing import block_mask, prefix_causal_mask
from zoo.sequences.time_index import TimeIndex, TimestampIndex
from zoo.weights.load import Layout

Message = dict[str, Any]  # a turn of a chat, in the format of transformers' chat templates


class TokenizedPrompt(NamedTuple):
    """A tokenized chat.

    Attributes:
        input_ids: The whole sequence, with one placeholder per visual token. In training it includes the answer.
        labels: The supervised ids, and -100 elsewhere.
    """

    input_ids: Int[Tensor, " L"]
    labels: Int[Tensor, " L"]


class Preprocessor(ABC):
    """Turns frames and text into the backbone's inputs, in data workers. Holds no weights."""

    @abstractmethod
    def cut_patches(
        self, frames: UInt8[Tensor, "T 3 H W"]
    ) -> tuple[UInt8[Tensor, "patches channels"], Int[Tensor, " 3"]]:
        """Return the patches of frames as bytes, and their (t, h, w) before merging.

        The frames are already resized, except images of a backbone whose `image_pixels` is None.
        """

    def shown_window(self, height: int, width: int) -> Window | None:
        """Return the part of an image of this size that its visual tokens show. None if they show all of it.

        It may exceed the image. Cameras, depth and geometry encoders are given this part.
        """
        return None

    @abstractmethod
    def normalize(self, patches: UInt8[Tensor, "patches channels"]) -> Float[Tensor, "patches channels"]:
        """Normalize patches as the model's own processor does.

        This runs on the model's device, because bytes are copied there faster.
        """

    @abstractmethod
    def texts(self, messages: Sequence[Message]) -> list[str]:
        """Return a chat as alternating texts: a prompt up to the start of an answer, then the answer up to its end.

        Args:
            messages: Messages of system, user and assistant. Messages between two answers form one prompt.
        """

    @abstractmethod
    def prompt(self, messages: Sequence[Message]) -> str:
        """Return a chat up to the start of its next answer, as the chat template writes it.

        Earlier answers may differ from the training answers of `texts`, because some templates shorten them.
        """

    @abstractmethod
    def tokenize(
        self,
        texts: Sequence[str],
        media_grids: Sequence[Sequence[int]],
        extra_tokens: ExtraTokens,
        frame_times: Sequence[float] | None = None,
    ) -> TokenizedPrompt:
        """Return the token ids of a chat, with its answers as supervised tokens.

        Args:
            texts: Texts from `texts`.
            media_grids: (t, h, w) of each video or image, in patches before merging.
            extra_tokens: Tokens after the 2D tokens of each row and view, and after the last view of a video.
            frame_times: Time in seconds of each frame of each video. None for images, or if unknown.

        Raises:
            InputError: Times are unknown, and the backbone writes them into the prompt.
        """

    @abstractmethod
    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of generated token ids, without special tokens."""

    @abstractmethod
    def reserved_token(self, text: str) -> str | None:
        """Return the first special token in a text, which the tokenizer would not treat as text. None if absent."""

    @abstractmethod
    def save_pretrained(self, folder: str) -> None:
        """Write the tokenizer and processor files."""


# ---- The loader: source of a backbone's weights, and of parts released with them -------------------------------------

BackbonePart = Literal["decoder", "vision", "connector"]
AttentionImplementation = dict[Literal["decoder", "vision"], str] | str
DType = Literal["float32", "bfloat16"]


class License(NamedTuple):
    """A row of the table of licenses in docs/guide/published_models.md.

    Attributes:
        weights: Hub ids, in backticks.
        license: What was found on the license, and the weights that the released ones were made of.
        source: Where the license is stated.
    """

    weights: str
    license: str
    source: str = ""


class BackboneLoader(Configurable, ABC):
    """Builds a `Backbone` and knows the source of its weights. `load` reads them.

    Args:
        attn_implementation: The attention backend: any name that transformers takes, such as sdpa, eager,
            flex_attention, flash_attention_2, or a kernel of the hub (`kernels-community/flash-attn2`, with the package
            kernels). A dict names the backends of `decoder` and `vision` separately; sdpa is the default of both.
            `flex_attention` applies only to the decoder and needs a GPU for training. It skips blocks that are masked
            for all questions of a shared sequence.
        dtype: Dtype of the weights. A task keeps weights of parts with a learning rate in float32.

    Attributes:
        is_pretrained: Whether the decoder's weights are pretrained.
        pretrained_parts: The parts that released weights hold. The others are random.
        released: An example of a hub id, for errors. None for random weights.
        released_path: Folder or hub id of the released weights. None for random weights.
        layout: Names under which the released files keep a geometry encoder and a fusion. Empty without them.
        released_fusions: Classes of fusions that may have been released with the weights, the usual one first.
        released_objectives: Classes of objectives whose heads and tokens may have been released with the weights.
        config_keys: Keys of a release's config.json that describe other parts than the backbone.
        known_configs: Sizes in the config.json of released models, for plans without a download: by the name of the
            release, the name of its backbone's release and what the config.json adds to it.
        licensed: The license of released weights.
        refused: Weights that no class loads: prefixes of their tensors, and what they are.
        shown_as: Options of the DataModule that show frames to a released model as its group's evaluation does.
    """

    is_pretrained: bool = False
    pretrained_parts: tuple[BackbonePart, ...] = ("decoder", "vision", "connector")
    released: ClassVar[str | None] = None
    released_path: str | None = None
    layout: Layout = {}
    released_fusions: ClassVar[tuple[type[nn.Module], ...]] = ()
    released_objectives: ClassVar[tuple[type[nn.Module], ...]] = ()
    config_keys: ClassVar[tuple[str, ...]] = ()
    known_configs: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = {}
    licensed: ClassVar[License | None] = None
    refused: ClassVar[Mapping[str, str]] = {}
    shown_as: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "float32") -> None:
        is_one = isinstance(attn_implementation, str)
        named: Any = dict.fromkeys(("decoder", "vision"), attn_implementation) if is_one else attn_implementation
        self.attn_implementation: str = named.get("decoder", "sdpa")
        self.vision_attention: str = named.get("vision", "sdpa")
        for name in dict.fromkeys((self.attn_implementation, self.vision_attention)):
            load_attention(name)
        self.dtype = getattr(torch, dtype)

    @property
    def is_whole(self) -> bool:
        """Whether the weights can answer questions about videos without being trained here."""
        return self.is_pretrained and "vision" in self.pretrained_parts

    @property
    def model_attention(self) -> dict[str, str]:
        """The attention backends that transformers builds the model with. FlexAttention is set in the decoder later."""
        named = {"text_config": self.attn_implementation, "vision_config": self.vision_attention}
        return {part: "sdpa" if name == "flex_attention" else name for part, name in named.items()}

    @abstractmethod
    def load(self) -> Backbone:
        """Return the model in training mode on the current device.

        On the meta device, and within `zoo.weights.load.leave_unread`, no weights are read.
        """

    def load_geometry(self) -> GeometryEncoder | None:
        """Return the geometry encoder released with these weights, if any."""
        return None

    def fit_fusion(self, fusion: nn.Module) -> None:
        """Set fusion options that depend on the release, before the fusion is bound, see `Fusion.bind`.

        Raises:
            InputError: The released weights belong to other decoder layers.
        """

    def load_fusion(self, fusion: nn.Module) -> bool:
        """Load the fusion's weights if they were released with the backbone, and return whether they were."""
        return False

    def load_objective(self, objective: nn.Module) -> bool:
        """Load an objective's head and token if they were released with the backbone, and return whether they were."""
        return False

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the released weights."""
        return ()

    @property
    def tensor_names(self) -> Collection[str]:
        """Official names of the released tensors. Empty if only shapes are built."""
        return ()

    @classmethod
    def reads(cls, config: Mapping[str, Any], names: Collection[str] = ()) -> bool:
        """Return whether this class loads a released folder with this config.json and tensors of these names."""
        return False

    @classmethod
    def released_parts(cls, path: str) -> dict[str, Any]:
        """Return the arguments of `SpatialVLM` for the released model in a folder or hub repository."""
        return {"backbone": cls(path)}  # type: ignore[arg-type]


def load_attention(name: str) -> None:
    """Load the kernels of an attention backend of transformers.

    Raises:
        InputError: The name is unknown, or its package is not installed, or the hub has no kernel for this machine.
    """
    option, known = f"--model.backbone.attn_implementation {name}", ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
    if not is_kernel(name) and name not in known:
        raise InputError(
            f"{option} is unknown: known are {', '.join(known)}, and kernels of the hub such as "
            f"kernels-community/flash-attn2{did_you_mean(name, known)}"
        )
    if not is_kernel(name) and not is_flash_attention_requested(requested_attention_implementation=name):
        return
    try:
        lazy_import_flash_attention(name)
    except Exception as error:  # of importing compiled code, or of the hub
        raise InputError(
            f"{option}: {error}. On a CUDA machine pip install kernels, which loads kernels of the hub, or pip install "
            "flash-attn --no-build-isolation; otherwise choose sdpa"
        ) from error


def loaders() -> list[type[BackboneLoader]]:
    """Return all classes that load weights. Published models are imported here, so that the core does not name them."""
    published = import_module("zoo.published")
    for module in iter_modules(published.__path__, "zoo.published."):
        import_module(module.name)
    return [*dict.fromkeys(_subclasses(BackboneLoader))]


def _subclasses(base: Any) -> Iterator[Any]:
    for loader in base.__subclasses__():
        if not inspect.isabstract(loader):
            yield loader
        yield from _subclasses(loader)


def find_loader(config: Mapping[str, Any], names: Collection[str] = ()) -> Any:
    """Return the class that loads a released folder, or None. Of several, the one that is derived from the others.

    A subclass that names no release of its own, such as a user's, does not take its parent's place.

    Args:
        config: Its config.json.
        names: Official names of its tensors. Some models can't be told from their backbone without them.
    """
    found = [loader for loader in loaders() if loader.reads(config, names)]
    return next((one for one in found if not any(_is_finer(other, one) for other in found)), None)


def _is_finer(loader: type[BackboneLoader], parent: type[BackboneLoader]) -> bool:
    return issubclass(loader, parent) and loader.released != parent.released


def released_parts(path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `SpatialVLM` for a released model.

    Args:
        path: Its folder or hub id.
        config: Its config.json.

    Raises:
        InputError: No class loads this model.
    """
    if (by_config := find_loader(config)) is not None:
        return find_loader(config, by_config(path).tensor_names).released_parts(path)
    raise unknown_model(path, config)


def unknown_model(path: str, config: Mapping[str, Any]) -> InputError:
    """Return the error for a folder that no class loads, such as an InternVL's.

    Args:
        path: The folder or hub id.
        config: Its config.json.
    """
    named = config.get("architectures") or [f"model_type {config.get('model_type')!r}"]
    known = ", ".join(loader.__name__ for loader in loaders() if loader.released)
    return InputError(
        f"{path} is no model of the zoo: its config.json names {', '.join(map(str, named))}, which no class loads "
        f"(--model.backbone: {known})"
    )


# ---- The backbone: everything that the zoo needs from a video-language model -----------------------------------------


class VisualTokens(NamedTuple):
    """Visual tokens in the decoder's width.

    Attributes:
        tokens: Tokens that replace the placeholders.
        deepstack: Features added to the hidden states at the same places after each of the first decoder layers
            (DeepStack, arXiv 2406.04334; 3D tokens by `DeepFusion`). Zero layers in a model without such features.
    """

    tokens: Float[Tensor, "*tokens D"]
    deepstack: Float[Tensor, "layers *tokens D"]


class FrameSizes(NamedTuple):
    """How a backbone sees the frames of a scene, by sizes alone.

    Attributes:
        grid: The grid (t, h, w), in units of which 2 x 2 make a visual token.
        patches: Patches of a temporal patch in the vision encoder. They attend to each other.
        projected: Of them or of their groups, how many the connector reads.
        pixels: Shape of the pixel values.
    """

    grid: Grid
    patches: int
    projected: int
    pixels: tuple[int, int]


class Backbone(nn.Module, ABC):
    """A loaded video-language model. A new backbone is a subclass of this and of `BackboneLoader`.

    The decoder is the original one of transformers, with hooks for a camera encoding in its attention.

    Attributes:
        vlm: The original model.
        hooked_classes: For each original class of the decoder, the class with hooks that replaces it.
        preprocessor: Its processor and tokenizer.
        placeholders: Token ids of visual tokens.
        stop_tokens: Token ids that end an answer.
        lora_targets: Names of the linear layers of the decoder that LoRA adapts.
        spatial_merge_size: Patches per side in one visual token.
        patch_size: Side of a patch in pixels.
        image_pixels: Minimum and maximum number of pixels of an image, as its processor resizes them. None if
            `Preprocessor.cut_patches` resizes images itself.
        span_per_step: Whether each temporal patch of a video is a separate run of placeholders, preceded by its time as
            text.
        is_hybrid: Whether some decoder layers keep a recurrent state, which masks can't separate.
        tokens_per_second: Steps of mRoPE's time index per second of a video.
        hidden_size: Width of the decoder.
        context_length: Maximum number of tokens in a sequence.
    """

    vlm: Any
    hooked_classes: ClassVar[Mapping[type, type]]
    preprocessor: Preprocessor
    placeholders: Placeholders
    stop_tokens: list[int]
    lora_targets: tuple[str, ...]
    spatial_merge_size: int
    patch_size: int
    image_pixels: tuple[int, int] | None
    span_per_step: bool = False
    is_hybrid: bool = False
    tokens_per_second: int | float
    hidden_size: int
    context_length: int

    # ---- structure ------------------------------------------------------------------------------------------

    @property
    def decoder(self) -> Any:
        """The language model, without its head."""
        return self.vlm.get_decoder()

    @property
    def lm_head(self) -> Any:
        """The projection of hidden states to logits."""
        return self.vlm.get_output_embeddings()

    @property
    def decoder_layout(self) -> DecoderLayout:
        """The shape of the decoder's attention."""
        text, rotary = self.vlm.config.text_config, self.decoder.rotary_emb
        frequencies: tuple[Tensor, ...] = (rotary.inv_freq, rotary.original_inv_freq)
        if rotary.inv_freq.is_meta:  # frequencies are not weights, so they exist in a model without weights too
            with torch.device("cpu"):
                frequencies = (type(rotary)(rotary.config).inv_freq,)
        return DecoderLayout(
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            head=self.head_layout,
            rope_frequencies=frequencies,
            device=self.device,
            norm_eps=text.rms_norm_eps,
        )

    @property
    def row_token(self) -> Float[Tensor, " D"] | None:
        """The learned token after each row of 2D tokens. None in a model without one."""
        return None

    def frame_sizes(self, steps: int, height: int, width: int) -> FrameSizes:
        """Return the sizes of a scene of `steps` temporal patches, whose frames have this size in pixels."""
        grid = (steps, height // self.patch_size, width // self.patch_size)
        patches = grid[1] * grid[2]
        return FrameSizes(
            grid,
            patches,
            patches // self.spatial_merge_size**2,
            (steps * patches, 3 * TEMPORAL_PATCH_SIZE * self.patch_size**2),
        )

    @property
    @abstractmethod
    def head_layout(self) -> HeadLayout:
        """The channels of an attention head, available without reading a tensor from the GPU."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Return the layers of decoder and vision encoder, which are checkpointed and sharded one by one."""

    @property
    def like(self) -> Tensor:
        """A weight that determines the dtype of new parts."""
        return next(self.decoder.parameters())

    @property
    def device(self) -> torch.device:
        """The device of new parts: the weights' device, or the default device if weights are read later."""
        return torch.get_default_device() if self.like.is_meta else self.like.device

    @abstractmethod
    def part_of(self, name: str) -> BackbonePart:
        """Return the part that a parameter belongs to, for its learning rate."""

    def serves_deepstack(self, name: str) -> bool:
        """Return whether the parameter of this name affects only `VisualTokens.deepstack`."""
        return False

    def is_unused(self, name: str) -> bool:
        """Return whether no output depends on the parameter of this name."""
        return False

    def default_time_index(self) -> TimeIndex:
        """Return the time component of the original model's position ids."""
        return TimestampIndex()

    def install_encoding(self, encoding: CameraEncoding | None) -> None:
        """Install the camera hooks in the decoder's attention, and bind the encoding to it."""
        replace_classes(self.decoder, self.hooked_classes)
        parts = () if encoding is None else encoding.modules()
        appended = max((each.channels for each in parts if isinstance(each, ExtraChannels)), default=0)
        check_head_channels(self.attn_implementation, self.head_layout.dim + appended)
        if encoding is not None:
            if encoding.attends_per_view and self.attn_implementation not in MASKED:
                raise InputError(
                    f"{type(encoding).__name__} attends view by view, with masks that {self.attn_implementation} does "
                    "not take: set --model.backbone.attn_implementation sdpa, eager or flex_attention"
                )
            layout = self.decoder_layout
            encoding.bind_to_decoder(layout, layout.layers)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations of decoder and vision encoder in the backward pass."""
        self.vlm.activation_checkpointing_enable({"use_reentrant": False})
        # transformers also makes the outputs of the embeddings require gradients, which only reentrant checkpoints
        # need. A frozen vision encoder would then keep its whole graph, some 18 GB at full size.
        self.vlm.disable_input_require_grads()

    def disable_gradient_checkpointing(self) -> None:
        """Keep all activations for the backward pass."""
        self.vlm.activation_checkpointing_disable()

    def compile_layers(self) -> None:
        """Compile attention, MLP and norms of each decoder layer for training, inside its gradient checkpoint.

        Answers run uncompiled, because their shapes change at each step.
        """
        layers, config = self.decoder.layers, torch._dynamo.config
        # an encoding that differs between layers, such as `LayerSubset`, is compiled for each layer
        config.recompile_limit = max(config.recompile_limit, 4 * len(layers))
        for part in (part for layer in layers for part in layer.children()):
            part.forward = _compiled_in_training(part)

    # ---- forward ----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def vision_rules(self) -> VisionRules:
        """Rules for the vision encoder's inputs that depend on grids alone."""

    def encode_vision(self, pixel_values: Shaped[Tensor, "patches channels"], vision: VisionInputs) -> VisualTokens:
        """Return the 2D tokens of all videos and images of a batch, concatenated."""
        encoder = self.vlm.model.visual
        if not pixel_values.is_floating_point():
            pixel_values = self.preprocessor.normalize(pixel_values)
        # no grids are passed, because the other arguments were computed from them
        output = encoder(pixel_values.type(encoder.dtype), grid_thw=None, return_dict=True, **vision.arguments())
        tokens = output.pooler_output
        layers = getattr(output, "deepstack_features", None)
        return VisualTokens(tokens, torch.stack(layers) if layers else tokens.new_empty(0, *tokens.shape))

    def embed(self, input_ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """Return the embeddings of token ids."""
        return self.decoder.get_input_embeddings()(input_ids)

    def deepstack_inputs(self, places: Int[Tensor, " N"], features: Float[Tensor, "layers N D"]) -> dict[str, Any]:
        """Return the inputs of `decode` that add features to visual tokens after the first layers."""
        return {"deepstack": DeepFeatures(places, features)}

    def decode(self, inputs: Mapping[str, Any], *, cache: Any = None, use_cache: bool = False) -> Any:
        """Run the decoder.

        Args:
            inputs: `inputs_embeds` (B, L, D) or `input_ids` (B, L), `position_ids` (3, B, L), and optionally
                `attention_mask`, `camera_encoding`, `interactions` (`Interactions`), and the inputs of
                `deepstack_inputs`.
            cache: KV cache of earlier tokens.
            use_cache: Return a KV cache.

        Returns:
            An object with `last_hidden_state` (B, L, D) and `cache`.
        """
        return self.decoder(**inputs, cache=cache, use_cache=use_cache)

    @contextmanager
    def layer_outputs(self, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
        """Keep the outputs of some decoder layers by number while the context is open.

        The forward hooks lie outside of gradient checkpointing, which wraps the forward of a layer.
        """
        kept: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for number in layers:

                def keep(_: Any, __: Any, output: Tensor, number: int = number) -> None:
                    kept[number] = output

                handle = self.decoder.layers[number].register_forward_hook(keep)
                stack.callback(handle.remove)
            yield kept

    def encode_cameras(self, encoding: CameraEncoding, cameras: Cameras) -> EncodedCameras:
        """Return the encoding of these cameras for one forward pass of this decoder."""
        return encoding.encode(cameras, self.head_layout)

    # ---- attention of several questions in one sequence ---------------------------------------------------------

    @property
    def attn_implementation(self) -> str:
        """The decoder's attention backend."""
        return self.decoder.config._attn_implementation

    @property
    def supports_custom_mask(self) -> bool:
        """Whether the attention accepts any mask. Flash attention does not, and a recurrent state ignores masks."""
        return not self.is_hybrid and self.attn_implementation in MASKED

    @property
    def packs_questions(self) -> bool:
        """Whether several questions may share a sequence, see `training_mask`, `question_mask` and `step_mask`."""
        return self.supports_custom_mask

    def training_mask(self, sequences: Sequences) -> Any:
        """Return the `attention_mask` that separates the questions of sequences with a `group`."""
        assert sequences.group is not None
        return self.question_mask(sequences.group, sequences.group)

    def step_mask(self, queries: Int[Tensor, "1 T"], keys: Int[Tensor, "1 K"]) -> Any:
        """Return the `question_mask` for the next token of each of T answers."""
        return self.question_mask(queries, keys)

    def question_mask(
        self, queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"], prefixes: Int[Tensor, "B T"] | None = None
    ) -> Any:
        """Return `prefix_causal_mask` in the attention backend's format, for a model that `packs_questions`."""
        if self.attn_implementation == "flex_attention":
            return block_mask(queries, keys, prefixes)
        visible = prefix_causal_mask(queries, keys, prefixes)[:, None]
        if self.attn_implementation == GROUPED_SDPA:
            return visible
        dtype = self.like.dtype
        # this mask is added to scores
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def _compiled_in_training(part: nn.Module) -> Callable[..., Any]:
    plain, compiled = part.forward, torch.compile(part.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else plain)(*args, **kwargs)

    return forward
