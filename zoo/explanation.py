"""What an answer depends on: the measured effect of each view, and beside it the attention of the answer's tokens.

The effects are causal: one thing is taken away, and the log-probability of the same answer is computed again. Attention
is not. A view may be attended to without a change of the answer, and its content may reach the answer through the
tokens of other views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from zoo.backbones.base import Backbone
from zoo.backbones.decoder import eager_attention_forward
from zoo.errors import InputError
from zoo.generation import eval_mode
from zoo.model import SpatialVLM
from zoo.sequences.batch import Batch, Sequences

Places = Int[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the model's answer to one question depends on, for each of t views.

    A view is a temporal patch, two frames of a video, or an image.

    Attributes:
        log_prob: The log-probability of the answer with its stop token, in nats.
        hidden: The log-probability if no later token sees the 2D tokens of a view, minus `log_prob`. Positions stay. A
            negative number: the view speaks for the answer.
        alone: The log-probability if no later token sees the 2D tokens of the other views, minus `log_prob`. Near zero:
            the view is enough. It tells views of which each is enough, so that hiding one changes nothing, from views
            that do not matter.
        without_camera: The log-probability if the model is not told a view's camera, minus `log_prob`. NaN for a view
            that has none. None for a model that is told no cameras, or predicts them.
        attention: Mean weight of each 2D token over heads and the answer's tokens, by layer. The weights of a layer add
            up to 1 together with those of text. None for an encoding that makes the keys of each view anew.
        layers: The numbers of these layers. Linear attention has no weights.
    """

    log_prob: float
    hidden: Float[Tensor, " t"]
    alone: Float[Tensor, " t"]
    without_camera: Float[Tensor, " t"] | None
    attention: Float[Tensor, "layers t rows columns"] | None
    layers: tuple[int, ...]


@torch.no_grad()
def explain(
    model: SpatialVLM, batch: Batch, without_camera: Sequence[Batch | None] | None = None, *, ends: bool = True
) -> Explanation:
    """Measure what an answer depends on.

    The model reads the scene once, and once more for each camera that is not told. The decoder runs three times per
    view.

    Args:
        model: The model.
        batch: One scene with one question and its answer, from `TrainingCollate`.
        without_camera: For each view, the batch without its camera. None for a view that has none.
        ends: Whether the answer ends with its stop token. An answer that was cut has none.

    Raises:
        InputError: The scene has no cameras and the model needs them, or the decoder has recurrent layers, from which
            masks hide nothing.
    """
    check_masks(model)
    with eval_mode(model):
        batch = batch.to(model.backbone.device)
        sequences = batch.sequences
        assert sequences is not None and len(sequences) == len(batch.scenes) == 1, "one question about one scene"
        inputs = model.decoder_inputs(model.encode_scenes(batch), sequences)
        views = view_of_tokens(batch)
        encoding, kept = inputs.get("camera_encoding"), dict[int, Tensor]()
        if encoding is not None and encoding.attends_per_view:
            log_prob = answer_log_prob(model, inputs, sequences, ends)
        else:
            with recorded_attention(model.backbone, answer_tokens(model, sequences, ends)[0]) as kept:
                log_prob = answer_log_prob(model, inputs, sequences, ends)

        def effect(is_hidden: Bool[Tensor, " K"]) -> float:
            seen = torch.ones_like(sequences.input_ids, dtype=torch.bool)
            seen[0, sequences.grid_places[is_hidden]] = False
            return answer_log_prob(model, {**inputs, "attention_mask": seen}, sequences, ends) - log_prob

        count = range(batch.scenes[0].num_steps)
        hidden, alone = ([effect((views == view) == is_own) for view in count] for is_own in (True, False))
        changes = None
        if without_camera is not None:
            changes = torch.tensor([_log_prob_of(model, each, ends) - log_prob for each in without_camera])
    attention = _on_grid(kept, batch) if kept else None
    return Explanation(log_prob, torch.tensor(hidden), torch.tensor(alone), changes, attention, tuple(kept))


def check_masks(model: SpatialVLM) -> None:
    """Raise InputError for a model from whose decoder no view can be hidden."""
    if model.backbone.is_hybrid:
        raise InputError(f"{type(model.backbone).__name__} has recurrent layers, and masks hide no view from them")


def view_of_tokens(batch: Batch) -> Places:
    """Return the view of each of `Sequences.grid_places` in a batch of one scene."""
    assert batch.sequences is not None
    return batch.sequences.grid_sources // batch.scenes[0].tokens_per_step


def answer_log_prob(model: SpatialVLM, inputs: dict[str, Any], sequences: Sequences, ends: bool = True) -> float:
    """Return the log-probability of an answer, for inputs from `SpatialVLM.decoder_inputs`."""
    places, ids = answer_tokens(model, sequences, ends)
    hidden = model.backbone.decode(inputs).last_hidden_state.flatten(0, 1)[places]
    log_probs = model.backbone.lm_head(hidden).float().log_softmax(-1)
    return float(log_probs.gather(1, ids[:, None]).sum())


def answer_tokens(model: SpatialVLM, sequences: Sequences, ends: bool = True) -> tuple[Places, Int[Tensor, " n"]]:
    """Return the places before the tokens of an answer, and the tokens up to its stop token, if it `ends` with one.

    The line break that training supervises behind the stop token is no part of an answer.
    """
    stops = torch.isin(sequences.answer_ids, torch.tensor([*model.backbone.stop_tokens]).to(sequences.answer_ids))
    count = int(stops.nonzero()[0, 0]) + ends if stops.any() else len(stops)
    return sequences.answer_places[:count], sequences.answer_ids[:count]


def _log_prob_of(model: SpatialVLM, batch: Batch | None, ends: bool) -> float:
    if batch is None:
        return float("nan")
    batch = batch.to(model.backbone.device)
    assert batch.sequences is not None
    inputs = model.decoder_inputs(model.encode_scenes(batch), batch.sequences)
    return answer_log_prob(model, inputs, batch.sequences, ends)


# ---- Attention -------------------------------------------------------------------------------------------------------


@contextmanager
def recorded_attention(backbone: Backbone, places: Places) -> Iterator[dict[int, Float[Tensor, " L"]]]:
    """Keep the attention of some tokens of one sequence, with any backend, while the context is open.

    Yields:
        By the number of a decoder layer, the mean weight of each token over heads and `places`.
    """
    kept: dict[int, Tensor] = {}
    layers = {layer.self_attn: number for number, layer in enumerate(backbone.decoder.layers)}
    name = backbone.attn_implementation
    original: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        if module in layers:
            kept[layers[module]] = attention_weights(query, key, mask, places, options.get("scaling")).mean((0, 1))
        return original(module, query, key, value, mask, **options)

    ALL_ATTENTION_FUNCTIONS[name] = attend
    try:
        yield kept
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]
        if ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward) is not original:  # a user's own
            ALL_ATTENTION_FUNCTIONS[name] = original


def attention_weights(
    query: Float[Tensor, "1 H L D"],
    key: Float[Tensor, "1 G L D"],
    mask: Any,
    places: Places,
    scaling: float | None = None,
) -> Float[Tensor, "H n L"]:
    """Return the weights with which the tokens at these places attend, in float32.

    Args:
        query: Queries as an attention backend gets them.
        key: Keys.
        mask: True for what is seen, or a number that is added to scores; another format, or None, is causal attention.
        places: Places of the tokens.
        scaling: Factor of the scores. None is D^-1/2.
    """
    keys = repeat_kv(key, query.shape[1] // key.shape[1])[0].float()
    scores = query[0, :, places].float() @ keys.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    seen: Bool[Tensor, "n L"] = torch.arange(key.shape[2], device=key.device) <= places[:, None]
    scores = scores.masked_fill(~seen, -torch.inf)
    if isinstance(mask, Tensor) and mask.dim() == 4:
        own = mask[0, :, places]
        scores = scores.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else scores + own.float()
    return scores.softmax(-1)


def _on_grid(kept: dict[int, Float[Tensor, " L"]], batch: Batch) -> Float[Tensor, "layers t rows columns"]:
    """Return the weights of the 2D tokens of a scene, by view, row and column."""
    assert batch.sequences is not None
    scene, places = batch.scenes[0], batch.sequences.grid_places
    weights = torch.stack([own[places] for own in kept.values()])
    ordered = torch.zeros_like(weights).index_copy(1, batch.sequences.grid_sources, weights)
    return ordered.unflatten(1, scene.token_grid).cpu()
