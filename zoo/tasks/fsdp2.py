"""FSDP2: each process holds one shard of weights, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from zoo.errors import InputError
from zoo.geometry.base import GeometryEncoder
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.checkpoint import saved_names
from zoo.weights.load import is_quantized, shard_like, whole

STEPS = ("training_step", "validation_step", "test_step", "predict_step", "call")
# dtype of gathered units, by the Trainer's precision
GATHERED_DTYPES = dict.fromkeys(("bf16-mixed", "bf16"), torch.bfloat16)


class FSDP2Strategy(DDPStrategy):
    """Shard a `VideoQATask` with torch's `fully_shard`.

    The matrices of each decoder layer and vision block are a unit. So are the matrices of a frozen geometry encoder,
    see `SpatialVLM.sharded_units`. The task itself is the root unit: everything else is gathered for a whole step, so
    that a step may call any method of any part. Under bf16-mixed, units are gathered in bfloat16, to which autocast
    would cast them, and the rest in its own dtype. Trained shards are float32. Gradients are reduced in float32, once
    per optimizer step. Until then each process accumulates unsharded gradients.

    With `defer_weights`, weights are read tensor by tensor once every process has its shard. The command line sets this
    option.

    During an evaluation each process holds the whole weights. Ranks answer different numbers of questions, with answers
    of different lengths, so they wait for each other only at the end.

    Checkpoints have the same content as with one process or DDP. The main process gathers them tensor by tensor.

    Lightning's own `ModelParallelStrategy` shards nothing on one node by default, and saves without its `CheckpointIO`.
    """

    def connect(self, model: LightningModule) -> None:  # type: ignore[override]
        """Attach the task before processes are connected.

        Raises:
            InputError: The task has no blocks to shard, or has weights in four bits.
        """
        if not isinstance(model, VideoQATask):
            raise InputError(
                f"--trainer.strategy fsdp2 is for video-language models, not {type(model).__name__}: take ddp"
            )
        if any(map(is_quantized, model.parameters())):
            raise InputError(
                "--trainer.strategy fsdp2 does not shard weights in four bits: leave --model.lora.quantization out, or "
                "take ddp"
            )
        super().connect(model)

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Shard the model before `configure_model` reads its weights into the shards."""
        task: Any = self.lightning_module
        if not isinstance(task, FSDPModule):  # not sharded by an earlier fit or test of this Trainer
            shard(task, self.root_device, self.world_size, GATHERED_DTYPES.get(self.precision_plugin.precision))
        yield

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Reduce gradients only in the last batch of an optimizer step."""
        task: Any = self.lightning_module
        task.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            task.set_requires_gradient_sync(True)

    def setup(self, trainer: Trainer) -> None:
        """Move unsharded tensors to the device, and set up the optimizer."""
        fits = trainer.state.fn == TrainerFn.FITTING
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        if fits:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if fits:
            _optimizers_to_device(self.optimizers, self.root_device)

    def teardown(self) -> None:
        """Tear down without moving the shards, because after an error some weights may still be gathered."""
        assert self.cluster_environment is not None and self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()

    # ---- evaluation ---------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for unit in self._units():
                unit.set_reshard_after_forward(False, recurse=False)
                unit.unshard()

    def _release(self) -> None:
        *blocks, _ = units = list(self._units())
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)
        for unit in units:
            unit.reshard()

    def _units(self) -> Iterator[FSDPModule]:
        assert self.lightning_module is not None
        every = [module for module in self.lightning_module.modules() if isinstance(module, FSDPModule)]
        yield from reversed(every)  # the root last

    on_validation_start = on_test_start = on_predict_start = _gather
    on_validation_end = on_test_end = on_predict_end = _release

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole saved tensors on the main process."""
        task: Any = self.lightning_module
        saved = saved_names(task, task.restored_by_files)
        return self._gathered({name: tensor for name, tensor in task.state_dict().items() if name in saved})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state on the main process, in the format of an unsharded optimizer."""
        return self._gathered(super().optimizer_state(optimizer))

    def _gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        def gathered(tensor: Tensor) -> Tensor | None:
            tensor = whole(tensor.detach())
            return tensor.cpu() if self.is_global_zero else None

        found: dict[str, Any] = tree_map_only(Tensor, gathered, state)
        return found

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's shards."""
        task: Any = self.lightning_module
        own, state = task.state_dict(), checkpoint["state_dict"]
        task.load_state_dict({name: shard_like(tensor, own.get(name, tensor)) for name, tensor in state.items()})

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shards."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            shards: dict[int, dict[str, Any]] = {}
            for number, own in zip(numbers, parameters, strict=True):
                for name, value in state["state"].get(number, {}).items():
                    is_sharded = isinstance(value, Tensor) and value.shape == own.shape  # excludes the number of steps
                    shards.setdefault(number, {})[name] = shard_like(value, own) if is_sharded else value
            optimizer.load_state_dict({**state, "state": shards})


def shard(task: VideoQATask, device: torch.device, world_size: int, gathered_dtype: torch.dtype | None) -> None:
    """Shard a task over all processes, in place. Weights that were left unread stay on the meta device.

    Args:
        task: The task. Each process has a copy.
        device: Device of this process.
        world_size: Number of processes.
        gathered_dtype: Dtype of the units' matrices when they are used. None is the dtype of the shards.
    """
    mesh = init_device_mesh(device.type, (world_size,))
    # 1. Use the same random weights on all processes, as DDP does at the start.
    for parameter in task.parameters():
        if not parameter.is_meta:
            shared = parameter.detach().to(device)
            dist.broadcast(shared, 0)
            parameter.data.copy_(shared)
    # 2. Shard. The root comes first, because torch does not look for parameters inside sharded modules.
    units = task.model.sharded_units()
    matrices = {parameter for own in units.values() for parameter in own}
    _fully_shard(task, mesh=mesh, reshard_after_forward=False, ignored_params=matrices)
    # the inputs are not cast: cameras, RoPE and the residual stream stay in float32
    policy = MixedPrecisionPolicy(gathered_dtype, gathered_dtype and torch.float32, cast_forward_inputs=False)
    for unit, own in units.items():
        _fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=set(unit.parameters()).difference(own))
        if isinstance(unit, GeometryEncoder):  # frozen, but the backward pass would prefetch it
            cast(FSDPModule, unit).set_unshard_in_backward(False)
    # 3. Register the methods that Lightning calls.
    for step in STEPS:
        register_fsdp_forward_method(task, step)


def _fully_shard(module: nn.Module, **options: Any) -> None:
    kind = type(module)
    fully_shard(module, **options)
    for name in ("__name__", "__qualname__", "__module__"):  # torch makes a new class, which a config could not name
        setattr(type(module), name, getattr(kind, name))
