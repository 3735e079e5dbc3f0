"""Shared code of the Qwen-VL backbones: preprocessor, camera hooks in the decoder, and tiny random models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import Qwen2Tokenizer
from transformers.modeling_utils import local_torch_dtype

from zoo.backbones.base import (
    AttentionImplementation,
    Backbone,
    BackboneLoader,
    BackbonePart,
    DType,
    Message,
    Preprocessor,
    TokenizedPrompt,
)
from zoo.backbones.decoder import GROUPED_SDPA, replace_classes
from zoo.encodings.base import HeadLayout
from zoo.errors import InputError
from zoo.seed import resolve_seed
from zoo.sequences.layout import IMAGE_PIXELS, SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE, ExtraTokens, Placeholders
from zoo.sequences.packing import IGNORED

# ---- Frames and text to inputs, by transformers' own processor -------------------------------------------------------

END_OF_TURN = "<|im_end|>\n"  # follows each answer in the chat template
# frames are already sampled and resized, and are normalized later, so the processor only cuts patches
PATCHES_ONLY = dict(
    do_resize=False,
    do_sample_frames=False,
    do_rescale=False,
    do_normalize=False,
    cap_pixels_per_frame=False,
    return_tensors="pt",
)


class QwenVLPreprocessor(Preprocessor):
    """See `Preprocessor`.

    Args:
        processor: Transformers' processor of the model.

    Attributes:
        template_options: Options of the chat template.
    """

    template_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def cut_patches(
        self, frames: UInt8[Tensor, "T 3 H W"]
    ) -> tuple[UInt8[Tensor, "patches channels"], Int[Tensor, " 3"]]:
        cut = self.processor.video_processor(videos=[frames], **PATCHES_ONLY)
        return cut["pixel_values_videos"], cut["video_grid_thw"][0]

    def normalize(self, patches: UInt8[Tensor, "patches channels"]) -> Float[Tensor, "patches channels"]:
        own = self.processor.video_processor
        # as its `rescale_and_normalize`, without the check of the deviations, which would wait for the GPU
        mean, std = (
            (torch.tensor(each) * (1 / own.rescale_factor)).to(patches.device, non_blocking=True)[:, None]
            for each in (own.image_mean, own.image_std)
        )
        return patches.unflatten(1, (3, -1)).float().sub_(mean).div_(std).flatten(1)  # channels first within a patch

    def texts(self, messages: Sequence[Message]) -> list[str]:
        texts: list[str] = []
        for number, message in enumerate(messages, start=1):
            if message["role"] == "assistant":
                texts.append(f"{message['content']}{END_OF_TURN}")
            # the last message before an answer
            elif number == len(messages) or messages[number]["role"] == "assistant":
                chat = self.prompt(messages[:number])
                history = self.history(texts)
                if not chat.startswith(history):
                    raise InputError(
                        "the chat template writes earlier turns of a chat otherwise than at first: give chats of one "
                        "turn, or mend the chat_template.jinja of the model"
                    )
                texts.append(chat[len(history) :])
        return texts

    def history(self, texts: Sequence[str]) -> str:
        """Return earlier prompts and answers as the chat template writes them before a later prompt."""
        return "".join(texts)

    def prompt(self, messages: Sequence[Message]) -> str:
        chat: str = self.processor.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False, **self.template_options
        )
        return chat

    def tokenize(
        self,
        texts: Sequence[str],
        media_grids: Sequence[Sequence[int]],
        extra_tokens: ExtraTokens,
        frame_times: Sequence[float] | None = None,
    ) -> TokenizedPrompt:
        placeholders = (self.processor.video_token_id, self.processor.image_token_id)
        texts, runs = self.place_media(texts, media_grids, frame_times)
        placed, media, left = iter(runs), iter(media_grids), 0
        ids: list[int] = []
        labels: list[int] = []
        for number, text in enumerate(texts):
            is_answer = number % 2 == 1
            for token in self.processor.tokenizer(text)["input_ids"]:
                repeats = 1
                if token in placeholders:
                    run, left = next(placed), left or next(media)[0]
                    left -= run[0]  # temporal patches of the medium that remain
                    is_end = token == self.processor.video_token_id and not left
                    repeats = self._num_tokens(run, extra_tokens) + (extra_tokens.at_end if is_end else 0)
                ids += [token] * repeats
                labels += [token if is_answer else IGNORED] * repeats
        return TokenizedPrompt(torch.tensor(ids), torch.tensor(labels))

    def place_media(
        self, texts: Sequence[str], media_grids: Sequence[Sequence[int]], frame_times: Sequence[float] | None
    ) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
        """Return texts with one placeholder per run of visual tokens, and the (t, h, w) of each run.

        Args:
            texts: Texts with one placeholder per video or image.
            media_grids: (t, h, w) of each video or image.
            frame_times: See `tokenize`.
        """
        return texts, media_grids

    def _num_tokens(self, grid_thw: Sequence[int], extra_tokens: ExtraTokens) -> int:
        """Return the number of visual tokens of a run, including extra tokens of its views."""
        steps, *sides = grid_thw
        rows, columns = (side // self.processor.video_processor.merge_size for side in sides)
        return steps * extra_tokens.view_tokens(rows, columns)

    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        return self.processor.tokenizer.batch_decode([list(ids) for ids in answers], skip_special_tokens=True)

    @cached_property
    def _special_tokens(self) -> list[str]:
        """Special tokens, cached because the tokenizer rebuilds its table at each access."""
        return [str(token) for token in self.processor.tokenizer.added_tokens_decoder.values() if token.special]

    def reserved_token(self, text: str) -> str | None:
        return next((token for token in self._special_tokens if token in text), None)

    def save_pretrained(self, folder: str) -> None:
        self.processor.save_pretrained(folder)
        self.processor.image_processor.save_pretrained(folder)  # transformers 4.51 expects it here


# ---- The model of transformers with camera hooks ---------------------------------------------------------------------


class QwenVLBackbone(Backbone):
    """A Qwen-VL of transformers, changed in place. Its weights and their names are unchanged.

    Args:
        vlm: The original model.
        processor: Its processor. None for a model that takes only token ids.
        attn_implementation: Attention backend of the decoder. None uses the model's. transformers supports
            FlexAttention for the decoder of these models, but not for the whole model.
        stop_tokens: Token ids that end an answer, in addition to the config's.

    Attributes:
        vision_classes: For each original class of the vision encoder, the faster class that replaces it with the same
            results.
        preprocessor_class: Class that turns frames and text into inputs.
    """

    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    vision_classes: ClassVar[Mapping[type, type]]
    preprocessor_class: ClassVar[type[QwenVLPreprocessor]]

    def __init__(
        self, vlm: Any, processor: Any, attn_implementation: str | None = None, stop_tokens: Iterable[int] = ()
    ) -> None:
        super().__init__()
        config = vlm.config
        text, vision = config.text_config, config.vision_config
        merge = (vision.temporal_patch_size, vision.spatial_merge_size)
        if merge != (TEMPORAL_PATCH_SIZE, SPATIAL_MERGE_SIZE):
            raise ValueError(f"this model merges {merge} frames and patches per side; the zoo is built for 2 and 2")
        replace_classes(vlm.model.visual, self.vision_classes)
        self.vlm = vlm
        attention = attn_implementation or self.attn_implementation
        self.decoder.config._attn_implementation = GROUPED_SDPA if attention == "sdpa" else attention
        self.image_pixels = IMAGE_PIXELS
        if processor is not None:
            self.preprocessor = self.preprocessor_class(processor)
            size = processor.image_processor.size
            self.image_pixels = (size["shortest_edge"], size["longest_edge"])
        self.placeholders = Placeholders(
            config.video_token_id, config.image_token_id, config.vision_start_token_id, self.span_per_step
        )
        own = getattr(text, "eos_token_id", None)
        self.stop_tokens = list(dict.fromkeys([*([own] if isinstance(own, int) else own or ()), *stop_tokens]))
        self.spatial_merge_size, self.patch_size = vision.spatial_merge_size, vision.patch_size
        self.hidden_size, self.context_length = text.hidden_size, text.max_position_embeddings

    def blocks(self) -> list[nn.Module]:
        return [*self.decoder.layers, *self.vlm.model.visual.blocks]

    @cached_property
    def head_layout(self) -> HeadLayout:
        attention = next(layer.self_attn for layer in self.decoder.layers if hasattr(layer, "self_attn"))
        rotary = self.decoder.rotary_emb
        # let the original code, which selects the axis of each frequency, select among the numbers of the axes
        count = len(rotary.inv_freq)
        numbers = torch.arange(3, device="cpu")[:, None].repeat(1, count)
        return HeadLayout(attention.head_dim, tuple(rotary.recomposition_frequencies(numbers)[:count].tolist()))

    def part_of(self, name: str) -> BackbonePart:
        """See `Backbone`. The vision encoder's projections to the decoder's width are connector, as in Spatial-MLLM."""
        if ".visual.merger." in f".{name}" or self.serves_deepstack(name):
            return "connector"
        return "vision" if ".visual." in f".{name}" else "decoder"

    def serves_deepstack(self, name: str) -> bool:
        return ".visual.deepstack_merger_list." in f".{name}"


# ---- Tiny models: random weights, and a tokenizer that is trained at first use; nothing is downloaded ----------------

# Only the sizes differ from the released models. The classes of model, tokenizer and processor are transformers'.

SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
INITIALIZER_RANGE = 0.06  # the released 0.02 suits widths of thousands, but only slows the start of training here
CORPUS = Path(__file__).parent / "tiny_corpus.txt"


@cache
def tiny_tokenizer() -> Qwen2Tokenizer:
    """Return a byte-level BPE tokenizer of under 800 tokens.

    It is trained on tiny_corpus.txt, the benchmark's wording. Changing that file changes the token ids, and with them
    the meaning of tiny checkpoints.
    """
    untrained = Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return untrained.train_new_from_iterator(
        CORPUS.read_text().splitlines(keepends=True) * 3,  # a pair must occur more than once to be merged
        vocab_size=1000,
        new_special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )


class TinyQwenVL(BackboneLoader):
    """A tiny Qwen-VL with random weights.

    Args:
        layers: Number of decoder layers.
        hidden_size: Width of the decoder.
        heads: Attention heads of the decoder, with hidden_size / heads channels each.
        key_value_heads: Heads of the decoder's keys and values.
        vision_layers: Layers of the vision encoder.
        vision_hidden_size: Width of the vision encoder.
        seed: Seed of the weights. null is the run's seed.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.

    Attributes:
        stock_class: Transformers' model class.
        backbone_class: The `QwenVLBackbone` class around it.
    """

    stock_class: ClassVar[Any]
    backbone_class: ClassVar[type[QwenVLBackbone]]

    def __init__(
        self,
        layers: int = 4,
        hidden_size: int = 192,
        heads: int = 6,
        key_value_heads: int = 2,
        vision_layers: int = 2,
        vision_hidden_size: int = 128,
        seed: int | None = None,
        attn_implementation: AttentionImplementation = "sdpa",
        dtype: DType = "float32",
    ):
        super().__init__(attn_implementation, dtype)
        pairs = hidden_size // heads // 2
        if pairs % 8:
            raise ValueError(f"hidden_size / heads = {hidden_size / heads}: a head needs a multiple of 16 channels")
        ids = tiny_tokenizer().convert_tokens_to_ids
        self.seed = resolve_seed(seed)
        text = dict(
            vocab_size=len(tiny_tokenizer()),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            rms_norm_eps=1e-6,
            initializer_range=INITIALIZER_RANGE,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=ids("<|im_end|>"),
            pad_token_id=ids("<|endoftext|>"),
        )
        vision = dict(
            depth=vision_layers,
            hidden_size=vision_hidden_size,
            intermediate_size=2 * vision_hidden_size,
            num_heads=4,
            out_hidden_size=hidden_size,
            initializer_range=INITIALIZER_RANGE,
        )
        more_text, more_vision = self.own_settings(pairs, text, vision_layers)
        self.config = self.stock_class.config_class(
            text_config=text | more_text,
            vision_config=vision | more_vision,
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
            tie_word_embeddings=True,
        )
        self.config._attn_implementation = self.model_attention

    @abstractmethod
    def own_settings(
        self, pairs: int, text: Mapping[str, Any], vision_layers: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return settings of decoder and vision encoder that differ between models.

        `pairs` is the number of RoPE frequencies, and `text` the decoder settings that all models share.
        """

    @abstractmethod
    def processor(self) -> Any:
        """Return transformers' processor."""

    def stock_model(self) -> Any:
        """Return transformers' model without the zoo's hooks."""
        # not .to(dtype) afterwards: that would round RoPE's frequencies as well
        with local_torch_dtype(self.dtype), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.stock_class(self.config).train()

    def load(self) -> QwenVLBackbone:
        return self.backbone_class(self.stock_model(), self.processor(), self.attn_implementation)
