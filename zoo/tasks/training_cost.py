"""Parameters, bytes and floating-point operations of a training step, computed on the meta device.

Parameters, gradients, the optimizer's state and what FSDP2 gathers are exact. Activations and operations are estimated
by formulas from the shapes of linear layers. Consider a transformer block with attention of width a (all heads) and an
MLP of width m. For each token it keeps the following numbers from the forward to the backward pass, in the dtype of its
matrix products:

- Attention: 4a, for queries, keys, values and the output. Keys and values are repeated for all heads, unless the
  weights are bfloat16. Norms of queries and keys also keep their inputs. A gate on the output keeps 3a more.
- MLP: 4m, for gate, up, the activation and the product. Without a gate it is 2m.
- Linear layers that are trained or have low-rank adapters: the input. Attention and MLP keep one input each. Under
  autocast every linear layer keeps one, because each makes its own copy in bfloat16.
- Both norms: the input in float32, and the output if they are trained.

A fusion's interaction within a decoder layer (GeoThinker) keeps, for each visual token and channel of the decoder, 6.25
numbers in the dtype of its matrix products: the outputs of both norms, queries, keys, values, the output, and a quarter
for the importance of keys. It keeps two more in float32, and four under autocast.

A head of D channels in Gated DeltaNet keeps 20 D + 5 x 64 + 2 D^2 / 64 float32 numbers per token, by PyTorch's rule in
chunks of 64 tokens. The kernels of flash-linear-attention keep fewer. Under autocast each float32 matrix has a copy in
bfloat16. With gradient checkpointing a trained block keeps only its input, and one block at a time is recomputed.
Outside of blocks (merger, fusion, heads of objectives) a linear layer keeps the input and output of each visual token,
and objectives that predict target views do so once for each target view.
The peak adds the largest of three terms: the gradient of the head, the gradients of one block, or, at the end of the
backward pass, three gradients of a matrix that is both embedding and head. Frozen encoders keep nothing.

A linear layer takes two operations per weight and token, the same number for the gradient of its input, and the same
number for the gradient of its weight if it is trained. Attention takes 4a for each pair of tokens, and 10a in the
backward pass. One third of a geometry encoder's blocks attend over all frames of a scene, as in VGGT, Depth Anything 3
and Pi3X. Other blocks attend within a frame.

Not counted: convolutions, as in the dense heads of geometry encoders and objectives; camera encodings and view mixers
beyond their linear layers; several answers per question, as in GRPO; memory fragmentation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone, FrameSizes
from zoo.backbones.lora import stored_bytes
from zoo.configuration import known_config
from zoo.fusions.geothinker import Interaction
from zoo.geometry.metric_model import MetricModel
from zoo.model import SpatialVLM
from zoo.objectives.base import BaseTeacher
from zoo.objectives.teacher_model import Teacher
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE, MediaKind
from zoo.tasks.base import parameter_groups
from zoo.tasks.fsdp2 import GATHERED_DTYPES
from zoo.tasks.video_qa import VideoQATask

# text tokens: before the video, per temporal patch, per question, per answer
SYSTEM, SPAN, QUESTION, ANSWER = 20, 8, 96, 8
CAMERAS, POSE = 38, 35  # text tokens of `--data.poses_in_prompt`: once, and per temporal patch
CHUNK = 64  # chunk length of Gated DeltaNet's rule, in tokens


@dataclass(frozen=True)
class BatchSizes:
    """The sizes of a training batch on one GPU.

    Attributes:
        num_frames: Frames per video.
        height: Height of a resized frame in pixels.
        width: Width of a resized frame in pixels.
        scenes: Number of scenes. Each has its own questions.
        questions: Questions per scene.
        tokens_per_sequence: Maximum number of tokens of a sequence with several questions.
        kind: Whether the frames are shown as a video or each as an image.
        poses_in_prompt: Whether the prompt has the cameras as text.
    """

    num_frames: int
    height: int
    width: int
    scenes: int = 1
    questions: int = 1
    tokens_per_sequence: int | None = None
    kind: MediaKind = "video"
    poses_in_prompt: bool = False

    def shown_to(self, backbone: Backbone) -> FrameSizes:
        """Return how a backbone sees each scene."""
        steps = self.num_frames // (TEMPORAL_PATCH_SIZE if self.kind == "video" else 1)
        return backbone.frame_sizes(steps, self.height, self.width)


class StepCost(NamedTuple):
    """The cost of one forward and backward pass.

    Attributes:
        activations: Peak bytes beside weights, gradients and the optimizer's state.
        flops: Floating-point operations. A product and a sum count as two.
        forward_flops: Those of the forward pass alone.
    """

    activations: float
    flops: float
    forward_flops: float


@dataclass(frozen=True)
class TrainingCost:
    """The cost of a training step on one GPU that holds the whole model.

    Attributes:
        trained: Trained parameters of each part.
        frozen: Frozen parameters of each part, including a teacher.
        weights: Bytes of the parameters and buffers.
        gradients: Bytes of the gradients.
        optimizer: Bytes of the optimizer's state.
        steps: Cost of a batch, without and with gradient checkpointing.
        visual_tokens: Visual tokens of a scene.
        sequence_tokens: Tokens of the longest sequence.
        gathered: Bytes that a sharded model holds beside its shard in a step of one batch or of several, see
            `gathered_bytes`.
        gathered_weights: Bytes of the whole weights, which a sharded model gathers for an evaluation.
        teacher: Bytes of the teacher's weights. Each process holds all of them.
    """

    trained: Counter[str]
    frozen: Counter[str]
    weights: int
    gradients: int
    optimizer: int
    steps: dict[bool, StepCost]
    visual_tokens: int = 0
    sequence_tokens: int = 0
    gathered: dict[bool, int] = field(default_factory=dict)
    gathered_weights: int = 0
    teacher: int = 0


def training_cost(task: VideoQATask, batch: BatchSizes, precision: str) -> TrainingCost:
    """Count parameters, bytes and operations of a task that was built on the meta device.

    `precision` is Lightning's. bf16-mixed is autocast.
    """
    trained, frozen = Counter[str](), Counter[str]()
    for name, parameter in task.named_parameters():
        (trained if parameter.requires_grad else frozen)[task.part_of(name)] += parameter.numel()
    of_teacher = [each for network in teacher_networks(task.teacher) for each in network.parameters()]
    frozen["teacher"] = sum(each.numel() for each in of_teacher)
    gathered, gathered_weights = gathered_bytes(task.model, precision)
    visual_tokens, _, sequence_tokens = sequence_sizes(task.model, batch)
    return TrainingCost(
        trained,
        frozen,
        weights=total_bytes([*task.parameters(), *task.buffers()]),
        gradients=total_bytes(parameter for parameter in task.parameters() if parameter.requires_grad),
        optimizer=optimizer_bytes(task),
        steps={checkpointing: step_cost(task, batch, precision, checkpointing) for checkpointing in (False, True)},
        visual_tokens=visual_tokens,
        sequence_tokens=sequence_tokens,
        gathered=gathered,
        gathered_weights=gathered_weights,
        teacher=total_bytes(of_teacher),
    )


# ---- Exact: bytes of weights, optimizer state, and FSDP2's gathered parameters --------------------------------------


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the total bytes of tensors."""
    return sum(map(stored_bytes, tensors))


def optimizer_bytes(task: VideoQATask) -> int:
    """Return the bytes of the optimizer's state after a step, which is taken on the meta device."""
    optimizer = task.optimizer(parameter_groups(task.named_parameters(), task.learning_rates, task.part_of))
    for group in optimizer.param_groups:
        group["fused"] = False  # the fused kernel does not support the meta device; its state is the same
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states: list[dict[str, Any]] = list(optimizer.state.values())
    return total_bytes(value for state in states for value in state.values() if isinstance(value, Tensor))


def gathered_bytes(model: SpatialVLM, precision: str) -> tuple[dict[bool, int], int]:
    """Count the gathered parameters and gradients that each process holds beside its shard under FSDP2.

    Returns:
        Bytes in a step of one batch (False) and of several (True), and bytes of the whole weights. A step holds
        everything outside of units, which stays gathered, and two units, because the next one is gathered ahead. For
        trained parameters it also holds the gradients before they are scattered. With several batches these are the
        gradients of the whole model.
    """
    units, dtype = model.sharded_units(), GATHERED_DTYPES.get(precision)
    own = {parameter: (dtype or parameter.dtype).itemsize for unit in units.values() for parameter in unit}
    weights = {each: each.numel() * own.get(each, each.element_size()) for each in model.parameters()}
    gradients = {each: total_bytes([each]) if each.requires_grad else 0 for each in weights}

    def largest(sizes: dict[nn.Parameter, int]) -> int:
        rest = sum(size for parameter, size in sizes.items() if parameter not in own)
        return rest + sum(sorted(sum(sizes[parameter] for parameter in unit) for unit in units.values())[-2:])

    of_weights = largest(weights)
    held = {False: of_weights + largest(gradients), True: of_weights + sum(gradients.values())}
    return held, sum(weights.values())


def teacher_networks(teacher: BaseTeacher | None) -> list[Any]:
    """Return the frozen networks beside the model on the meta device. Empty if a cache replaces them."""
    if not isinstance(teacher, Teacher) or known_config(teacher).get("cache") is not None:
        return []
    with torch.device("meta"):
        teacher.enable_heads(teacher.outline)
        return [teacher.outline, *([teacher.scale.network] if isinstance(teacher.scale, MetricModel) else [])]


# ---- Estimated: tokens, activations and operations ------------------------------------------------------------------


def sequence_sizes(model: SpatialVLM, batch: BatchSizes) -> tuple[int, int, int]:
    """Return the visual tokens of a scene, the number of sequences in a batch, and the tokens of each sequence."""
    backbone, extra = model.backbone, model.training_tokens
    steps, height, width = grid = batch.shown_to(backbone).grid
    side = model.frame_rules.token_side(grid)
    visual = steps * extra.view_tokens(height // side, width // side) + (extra.at_end if batch.kind == "video" else 0)
    spans = steps if backbone.span_per_step or batch.kind == "image" else 1
    has_marks = backbone.placeholders.vision_start is not None
    prefix = SYSTEM + visual + has_marks * spans * (1 if spans == 1 else 1 + SPAN)
    prefix += CAMERAS + steps * POSE if batch.poses_in_prompt else 0
    together = batch.questions if backbone.packs_questions else 1
    if batch.tokens_per_sequence is not None:
        together = max(1, min(together, (batch.tokens_per_sequence - prefix) // QUESTION))
    return visual, batch.scenes * -(-batch.questions // together), prefix + together * QUESTION


class Blocks(NamedTuple):
    """Transformer blocks that process the same tokens.

    Attributes:
        blocks: Blocks that are called one after another.
        tokens: Tokens of the batch.
        length: Tokens that each token attends to.
        has_gradient: Whether a backward pass reaches them.
        may_recompute: Whether gradient checkpointing acts on them.
    """

    blocks: list[nn.Module]
    tokens: int
    length: int
    has_gradient: bool
    may_recompute: bool = False


def blocks_of(task: VideoQATask, batch: BatchSizes) -> Iterator[Blocks]:
    """Yield the blocks of decoder, vision encoder, geometry encoder and teacher."""
    model, backbone = task.model, task.model.backbone
    shown = batch.shown_to(backbone)
    (steps, height, width), patches = shown.grid, shown.patches
    _, rows, length = sequence_sizes(model, batch)
    layers = set(backbone.decoder.modules())
    decoder = [block for block in backbone.blocks() if block in layers]
    vision = [block for block in backbone.blocks() if block not in layers]
    # transformers does not recompute frozen blocks, because they are in eval mode
    yield Blocks(decoder, rows * length, length, True, any(map(trains, decoder)))
    targets = sum(each.target_views.number for each in predictors(model) if each.target_views.tokens)
    yield Blocks(vision, batch.scenes * (steps + targets) * patches, patches, any(map(trains, vision)), True)
    networks: list[tuple[Any, int, bool]] = [(each, 1, False) for each in teacher_networks(task.teacher)]
    if model.geometry is not None and (model.uses_geometry_tokens or model.camera_plan.source == "predicted"):
        frames = 1 if batch.kind == "image" and model.frame_rules.stills_once else TEMPORAL_PATCH_SIZE
        networks.append((model.geometry, frames, trains(model.geometry)))
    for network, frames, has_gradient in networks:
        blocks = network.blocks() if hasattr(network, "blocks") else [*network.model.trunk.blocks]
        views, patches = steps * frames, height * width
        yield Blocks(blocks, batch.scenes * views * patches, patches * (2 + views) // 3, has_gradient)


class BlockCost(NamedTuple):
    """The cost of a transformer block.

    Attributes:
        kept: Bytes kept from the forward to the backward pass, if the block has a gradient.
        copies: Bytes of its matrices in bfloat16, under autocast.
        gradients: Peak bytes of gradients.
        forward: Floating-point operations of the forward pass.
        backward: Floating-point operations of the backward pass.
    """

    kept: float = 0
    copies: float = 0
    gradients: float = 0
    forward: float = 0
    backward: float = 0

    def plus(self, other: BlockCost) -> BlockCost:
        """Return the cost of both."""
        return BlockCost(*(a + b for a, b in zip(self, other, strict=True)))


def block_cost(block: nn.Module, tokens: int, length: int, is_autocast: bool) -> BlockCost:
    """Compute the cost of a block by the formulas of this module.

    Args:
        block: A block with norms, attention and MLP as its children. The last linear layer of each child is the output.
        tokens: Tokens of the batch.
        length: Tokens that each token attends to.
        is_autocast: Whether products are computed in bfloat16 for any dtype of the weights.
    """
    layers = linear_layers(block)
    if not layers:
        return BlockCost()
    itemsize = 2 if is_autocast else layers[0].weight.element_size()
    forward, backward = linear_flops(layers, tokens)
    products = exact = widest = 0.0  # numbers per token, in the dtype of products and in float32
    children: Iterable[tuple[str, Any]] = block.named_children()
    for name, part in children:
        own = linear_layers(part, with_adapters=False)
        if not own:  # a norm, or a scale of the residual
            exact += layers[-1].out_features * (1 + trains(part)) if [*part.parameters()] else 0
            continue
        *first, last = own
        inner, outer = sum(layer.out_features for layer in first), last.in_features
        products += first[0].in_features * (len(first) if is_autocast else 1) * trains(part)
        reach = 0  # tokens that each token attends to
        if hasattr(part, "head_v_dim"):  # Gated DeltaNet
            per_head = 20 * part.head_v_dim + 5 * CHUNK + 2 * part.head_k_dim * part.head_v_dim / CHUNK
            exact += part.num_v_heads * per_head
            products += 2 * (2 * part.key_dim + part.value_dim)  # convolution
            reach = CHUNK + 2 * part.head_k_dim
        elif "att" in name:
            has_own_keys = first[0].weight.element_size() == 2
            products += outer + (min(inner, 3 * outer) if has_own_keys else 3 * outer)
            norms = [each for path, each in part.named_modules() if path.endswith("norm") and [*each.parameters()]]
            if norms:
                queries_keys = outer + (first[1].out_features if len(first) > 1 else outer)
                exact += queries_keys
                products += queries_keys * any(map(trains, norms))
            if len(first) > 1 and first[0].out_features > outer:  # the queries' layer includes the gate
                products += 3 * outer
            reach = length
        else:
            products += 2 * inner - (0 if trains(part) else outer)
            widest = inner
        forward, backward = forward + 4 * tokens * reach * outer, backward + 10 * tokens * reach * outer
    matrix = max((layer.weight.numel() for layer in layers if trains(layer)), default=0)
    return BlockCost(
        kept=tokens * (products * itemsize + exact * 4),
        copies=sum(copy_bytes(layer, is_autocast) for layer in layers),
        gradients=1.5 * tokens * widest * itemsize + matrix * (itemsize + 4),
        forward=forward,
        backward=backward,
    )


def interaction_cost(interaction: Interaction, tokens: int, length: int, is_autocast: bool) -> BlockCost:
    """Compute the cost of a fusion's interaction within a decoder layer, with the arguments of `block_cost`."""
    width, layers = interaction.o_proj.in_features, linear_layers(interaction)
    itemsize = 2 if is_autocast else layers[0].weight.element_size()
    forward, backward = linear_flops(layers, tokens)
    return BlockCost(
        kept=tokens * width * (6.25 * itemsize + (16 if is_autocast else 8)),
        copies=sum(copy_bytes(layer, is_autocast) for layer in layers),
        forward=forward + 4 * tokens * length * width,
        backward=backward + 10 * tokens * length * width,
    )


def interactions_of(task: VideoQATask, batch: BatchSizes) -> tuple[dict[nn.Module, Interaction], int, int]:
    """Return the fusion's interaction in each decoder layer, their tokens of a batch, and the tokens of a group."""
    model, fusion = task.model, task.model.fusion
    if fusion is None or not model.uses_geometry_tokens:
        return {}, 0, 0
    steps, height, width = grid = batch.shown_to(model.backbone).grid
    side = model.frame_rules.token_side(grid)
    _, rows, _ = sequence_sizes(model, batch)
    layers = model.backbone.decoder.layers
    found = {layers[i]: each for i, each in fusion.interactions.items() if isinstance(each, Interaction)}
    return found, rows * steps * (height // side) * (width // side), fusion.group_size(grid, side)


def step_cost(task: VideoQATask, batch: BatchSizes, precision: str, checkpointing: bool) -> StepCost:
    """Compute the cost of a forward and a backward pass."""
    model, backbone, is_autocast = task.model, task.model.backbone, precision.startswith("bf16")
    visual_tokens, rows, length = sequence_sizes(model, batch)
    residual = backbone.like.element_size()
    itemsize = 2 if is_autocast else residual
    blocks = kept = inside = flops = forward_flops = 0.0
    counted = set[nn.Module]() if model.geometry is None else set(model.geometry.modules())
    interactions, acting, group_length = interactions_of(task, batch)
    # 1. Transformer blocks.
    for group in blocks_of(task, batch):
        for block in group.blocks:
            counted |= set(block.modules())
            cost = block_cost(block, group.tokens, group.length, is_autocast)
            if (interaction := interactions.get(block)) is not None:
                counted |= set(interaction.modules())
                cost = cost.plus(interaction_cost(interaction, acting, group_length, is_autocast))
            flops += cost.forward + (cost.backward if group.has_gradient else 0)
            forward_flops += cost.forward
            if not group.has_gradient:
                continue
            if checkpointing and group.may_recompute:
                flops += cost.forward
                blocks += group.tokens * linear_layers(block)[-1].out_features * residual
                inside = max(inside, cost.kept + cost.copies + cost.gradients)
            else:
                blocks += cost.kept + cost.copies
                inside = max(inside, cost.gradients)
    # 2. Linear layers outside of blocks, on visual tokens. Embeddings, the last norm and their gradient.
    head = backbone.lm_head
    of_targets = {
        layer: each.target_views.number * each.tokens_per_target(batch.num_frames, visual_tokens)
        for each in predictors(model)
        for layer in linear_layers(each)
    }
    shown = batch.shown_to(backbone)
    of_connector = shown.grid[0] * shown.projected
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and layer not in counted and layer is not head:
            each = of_connector if model.part_of(f"{name}.weight") == "connector" else visual_tokens
            tokens = batch.scenes * of_targets.get(layer, each)
            forward, backward = linear_flops([layer], tokens)
            flops += forward + backward * trains(layer)
            forward_flops += forward
            if trains(layer):
                kept += tokens * (layer.in_features + layer.out_features) * itemsize
                kept += copy_bytes(layer, is_autocast)
    kept += rows * length * backbone.hidden_size * (8 + 2 * residual)
    # 3. The head, on supervised tokens only.
    forward, backward = linear_flops([head], batch.scenes * batch.questions * ANSWER)
    flops, forward_flops = flops + forward + backward, forward_flops + forward
    size = head.weight.numel() * trains(head)
    shared = 4 * size if head.weight is backbone.decoder.get_input_embeddings().weight else 0
    at_start = blocks + kept + copy_bytes(head, is_autocast) + size * (itemsize + 4)
    return StepCost(max(at_start, blocks + kept + inside + shared, kept + 3 * shared), flops, forward_flops)


def predictors(model: SpatialVLM) -> list[Any]:
    """Return the objectives that predict target views."""
    return [each for each in model.active_objectives if each.target_views is not None]


def trains(module: nn.Module) -> bool:
    """Return whether a module has trained parameters."""
    return any(parameter.requires_grad for parameter in module.parameters())


def linear_layers(module: nn.Module, with_adapters: bool = True) -> list[nn.Linear]:
    """Return the linear layers of a module, with or without low-rank adapters."""
    named = module.named_modules()
    return [each for name, each in named if isinstance(each, nn.Linear) and (with_adapters or "lora_" not in name)]


def linear_flops(layers: Iterable[nn.Linear], tokens: int) -> tuple[int, int]:
    """Return the floating-point operations of linear layers in the forward and the backward pass."""
    sizes = [(2 * tokens * layer.weight.numel(), trains(layer)) for layer in layers]
    return sum(size for size, _ in sizes), sum(size * (1 + is_trained) for size, is_trained in sizes)


def copy_bytes(layer: nn.Linear, is_autocast: bool) -> int:
    """Return the bytes of the bfloat16 copy of a linear layer's weight under autocast."""
    return 2 * layer.weight.numel() if is_autocast and layer.weight.dtype == torch.float32 else 0
