"""FSDP2: weights, gradients and optimizer state in shards, one on each process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from zoo.errors import InputError
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.frozen import saved_names
from zoo.weights.sharded_tensors import shard_like, whole

STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class FSDP2Strategy(DDPStrategy):
    """Shard a `VideoQATask` by torch's `fully_shard`: every decoder layer, vision block and geometry block is a unit.

    The task itself is the root unit: what lies in no block is gathered for a whole step, so that a step may call any
    method of any part. Frozen weights keep their dtype; trained ones are float32, and so are gradients as they are
    reduced. A model with `defer_weights` is read tensor by tensor once every process has its shard; the command line
    sets it.

    During an evaluation each process holds the whole weights: ranks answer different numbers of questions, with answers
    of different lengths, and wait for each other only at its end.

    Checkpoints have the same content as with one process or DDP: the main process gathers them tensor by tensor.
    Lightning's own `ModelParallelStrategy` shards nothing on one node by default and saves without its `CheckpointIO`.
    """

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """A checkpoint is read into the shards."""
        return True

    def connect(self, model: LightningModule) -> None:  # type: ignore[override]
        """Take the task, before processes meet.

        Raises:
            InputError: A task without blocks to shard.
        """
        if not isinstance(model, VideoQATask):
            raise InputError(
                f"--trainer.strategy fsdp2 is for video-language models, not {type(model).__name__}: take ddp"
            )
        super().connect(model)

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Shard the model before `configure_model` reads its weights into the shards.

        Raises:
            InputError: A batch size with which processes would gather weights unequally often.
        """
        task: Any = self.lightning_module
        size = getattr(getattr(task.trainer, "datamodule", None), "batch_size", 1)
        fits = task.trainer.state.fn == TrainerFn.FITTING
        if fits and size > 1 and len(task.model.blocks()) > len(task.model.backbone.blocks()):
            raise InputError(
                f"--data.batch_size {size}: a geometry encoder takes 1 with fsdp2, since processes with more shapes of "
                "videos would gather its weights more often; raise --trainer.accumulate_grad_batches instead"
            )
        if not isinstance(task, FSDPModule):  # by an earlier fit or test of this Trainer
            shard(task, self.root_device, self.world_size)
        yield

    def setup(self, trainer: Trainer) -> None:
        """Move what is not sharded to the device, and set up the optimizer."""
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
        """Leave the shards where they are, as after an error some weights may be gathered."""
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
        """The saved tensors as a whole, on the main process."""
        task: Any = self.lightning_module
        saved = saved_names(task, task.restored_by_files)
        return self._gathered({name: tensor for name, tensor in task.state_dict().items() if name in saved})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state as a whole, on the main process, in the form of an unsharded optimizer."""
        return self._gathered(super().optimizer_state(optimizer))

    def _gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        def gathered(tensor: Tensor) -> Tensor | None:
            tensor = whole(tensor.detach())
            return tensor.cpu() if self.is_global_zero else None

        found: dict[str, Any] = tree_map_only(Tensor, gathered, state)
        return found

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Read the shards of this process."""
        task: Any = self.lightning_module
        own, state = task.state_dict(), checkpoint["state_dict"]
        task.load_state_dict({name: shard_like(tensor, own.get(name, tensor)) for name, tensor in state.items()})

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Read the shards of this process."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            shards: dict[int, dict[str, Any]] = {}
            for number, own in zip(numbers, parameters, strict=True):
                for name, value in state["state"].get(number, {}).items():
                    is_sharded = isinstance(value, Tensor) and value.shape == own.shape  # not the number of steps
                    shards.setdefault(number, {})[name] = shard_like(value, own) if is_sharded else value
            optimizer.load_state_dict({**state, "state": shards})


def shard(task: VideoQATask, device: torch.device, world_size: int) -> None:
    """Shard a task over all processes, in place; deferred weights stay on the meta device."""
    kind, mesh = type(task), init_device_mesh(device.type, (world_size,))
    # 1. The same random weights everywhere, as DDP starts.
    for parameter in task.parameters():
        if not parameter.is_meta:
            shared = parameter.detach().to(device)
            dist.broadcast(shared, 0)
            parameter.data.copy_(shared)
    # 2. Shards.
    for block in task.model.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh, reshard_after_forward=False)
    for name in ("__name__", "__qualname__", "__module__"):  # of a class made by torch, which no config could name
        setattr(type(task), name, getattr(kind, name))
    # 3. The methods that Lightning calls.
    for step in STEPS:
        register_fsdp_forward_method(task, step)
