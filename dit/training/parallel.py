"""Parallel training: all that knows how a network is divided among processes. Networks do not know it.

Data parallel training on whole networks is Lightning's `ddp`. `Sharded` is FSDP2 (torch's fully_shard) and HSDP:
weights, gradients, optimizer states and averages are divided among the ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor import empty as empty_sharded
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint as recomputed

from dit.checkpoints.native import read_checkpoint
from dit.checkpoints.sharded import REST, cause, fill, map_tensors, read_rest
from dit.errors import first_line
from dit.files import sync
from dit.pipeline import Pipeline


def whole(tensor: Tensor) -> Tensor:
    """Returns the complete tensor of a sharded one, on every rank; other tensors unchanged. Every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_of(tensor: Tensor) -> Tensor:
    """Returns this rank's part of a sharded tensor; other tensors unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(reference: Tensor, tensor: Tensor) -> Tensor:
    """Returns a tensor that all ranks have complete, divided as `reference` is; unchanged if neither or both are."""
    if not isinstance(reference, DTensor) or isinstance(tensor, DTensor):
        return tensor
    tensor = tensor.to(reference.device)
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a network: the members of its module lists."""
    return [block for part in network.modules() if isinstance(part, nn.ModuleList) for block in part]


def change_blocks(network: nn.Module, recompute: bool, compile: bool) -> None:
    """Changes how the blocks of a network are called; names and values of its parameters stay.

    recompute: activation checkpointing, which computes the activations of a block again in the backward pass instead of
    keeping them. compile: torch.compile of each block, as one graph.
    """

    def called(forward: Callable[..., Any]) -> Callable[..., Any]:
        def again(*arguments: Any, **named: Any) -> Any:
            return recomputed(forward, *arguments, use_reentrant=False, **named)

        return again

    for block in blocks_of(network):
        forward = called(block.forward) if recompute else block.forward
        block.forward = torch.compile(forward, fullgraph=True) if compile else forward


def sharded_parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def gather(module: nn.Module) -> None:
    """Makes the weights of a sharded module complete on every rank until `scatter`; nothing for other modules.

    Its forward then does not communicate, so that ranks may call it different numbers of times. Every rank must call
    this. The weights take as much memory as without sharding, in the dtype of the computation.
    """
    for part in sharded_parts(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def scatter(module: nn.Module) -> None:
    """Divides the weights again after `gather`."""
    for part in sharded_parts(module):
        part.reshard()
        part.set_reshard_after_forward(True, recurse=False)


def shard(network: nn.Module, mesh: DeviceMesh, mixed: bool = False) -> None:
    """Divides the blocks of a network among the ranks of a mesh, then what remains of it.

    mixed: gather weights in bfloat16 and reduce gradients in float32. Inputs are not cast: bfloat16 cannot tell apart
    the times 937 and 938."""
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed else None,
        reduce_dtype=torch.float32 if mixed else None,
        cast_forward_inputs=False,
    )
    for part in [*blocks_of(network), network]:
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Context of `gather` and `scatter`."""
    gather(module)
    try:
        yield
    finally:
        scatter(module)


def place_states(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Returns a state dict with the states of every parameter divided as the parameter is. A hook of an optimizer."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def placed(p: Tensor, value: Any) -> Any:
        return placed_like(p, value) if isinstance(value, Tensor) and value.shape == p.shape else value

    states = {i: {k: placed(parameters[i], v) for k, v in held.items()} for i, held in state["state"].items()}
    return {**state, "state": states}


class Sharded(ModelParallelStrategy):
    """FSDP2: every parameter is divided among the ranks along its first axis, and gathered block by block.

    replicas: the number of groups of ranks that each have all weights (HSDP, usually one per node); 1 for FSDP. With
    more, gradients are also averaged between the groups. asynchronous: checkpoints are copied to the CPU and written
    while training goes on. A checkpoint is a folder (`dit.checkpoints.sharded`), which is named as a checkpoint only
    when all its files are written.

    Raises ValueError if the number of processes is 1, or is not at least twice `replicas` and a multiple of it.
    """

    def __init__(self, replicas: int = 1, asynchronous: bool = True) -> None:
        super().__init__()
        if replicas < 1:
            raise ValueError(f"trainer.strategy.replicas={replicas} must be at least 1")
        self.replicas, self.asynchronous = replicas, asynchronous
        self.saving: Future[Any] | None = None
        self.target = Path()  # of the checkpoint that is being saved
        self.superseded: list[Path] = []  # checkpoints to remove when it is complete

    def _configure_launcher(self) -> None:
        """Checks the number of processes, before any is started."""
        world, replicas = self.num_processes * self.num_nodes, self.replicas
        if world == 1:
            raise ValueError(
                "this strategy divides the weights among processes, and trainer.devices=1 gives one: set "
                "trainer.devices to 2 or more, or choose trainer=default"
            )
        if world % replicas or world == replicas:
            raise ValueError(
                f"trainer.strategy.replicas={replicas} does not divide {world} processes into groups of at least 2: "
                f"set trainer.devices to a multiple of {replicas}, at least {2 * replicas}, or choose other replicas"
            )
        super()._configure_launcher()

    def setup_environment(self) -> None:
        self._setup_distributed()
        shape = (self.world_size,) if self.replicas == 1 else (self.replicas, self.world_size // self.replicas)
        names = ("shard",) if self.replicas == 1 else ("replicate", "shard")
        self._device_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        self.cpu_group: Any = torch.distributed.new_group(backend="gloo")  # of checkpoints, which are on the CPU

    @property
    def mixed(self) -> bool:
        return self.precision_plugin.precision == "bf16-mixed"

    def setup_optimizers(self, trainer: Any) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            for part in getattr(optimizer, "parts", [optimizer]):
                part.register_load_state_dict_pre_hook(place_states)

    def on_validation_start(self) -> None:
        """Gathers the weights, because ranks may have different numbers of batches. Callbacks were called before."""
        assert self.model is not None
        gather(self.model)

    def on_validation_end(self) -> None:
        assert self.model is not None
        scatter(self.model)

    # checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        placed = {n: placed_like(own[n], t) if n in own else t for n, t in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(placed, strict=strict)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Returns the content of a checkpoint folder, with this rank's part of every sharded tensor, or of a file."""
        self.complete()
        path = Path(self.broadcast(checkpoint_path))  # after rank 0 has published it
        if path.is_file():
            return read_checkpoint(path)
        placements = [Replicate()] * (self.device_mesh.ndim - 1) + [Shard(0)]

        def make(meta: Tensor) -> Tensor:
            return empty_sharded(meta.shape, dtype=meta.dtype, device_mesh=self.device_mesh, placements=placements)

        return fill(path, read_rest(path), make, self.cpu_group)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Begins to write a checkpoint folder, and completes the one before. Raises ValueError if that failed."""
        self.complete()
        self.target = Path(self.broadcast(filepath))
        tensors: dict[str, Tensor] = {}

        def taken(name: str, tensor: Tensor) -> Tensor:
            if not isinstance(tensor, DTensor):
                return tensor
            tensors[name] = tensor.detach()
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

        rest, failed = map_tensors(checkpoint, taken), None
        if self.is_global_zero:
            try:
                for left in self.target.parent.glob(".step_*.ckpt.*"):  # by a run that was killed
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                self.growing.mkdir(parents=True)
                torch.save(rest, self.growing / REST)
            except (OSError, RuntimeError) as error:
                failed = f"cannot write {self.target}: {first_line(error)}"
        if failed := self.broadcast(failed):
            raise ValueError(failed)
        writer = HuggingFaceStorageWriter(str(self.growing), save_distributed=True)
        saving: Any = dcp.async_save(tensors, storage_writer=writer, process_group=self.cpu_group)
        self.saving = saving
        if not self.asynchronous:
            self.complete()

    @property
    def growing(self) -> Path:
        return self.target.with_name(f".{self.target.name}.tmp")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Completes a checkpoint that is written. An error waits for `complete`, which all ranks call together."""
        if self.saving is not None and self.saving.done() and self.saving.exception() is None:
            self.publish()

    def complete(self) -> None:
        """Waits until all ranks have written the checkpoint. Raises ValueError if one could not. It does not wait for
        their training, which may have failed."""
        if self.saving is None:
            return
        error = self.saving.exception()
        if error is not None:
            self.saving = None
            if self.is_global_zero:
                shutil.rmtree(self.growing, ignore_errors=True)
            raise ValueError(f"cannot write {self.target}: {cause(error)}") from error
        self.publish()

    def publish(self) -> None:
        """Gives the written checkpoint its name and removes those that it replaces."""
        self.saving, superseded, self.superseded = None, self.superseded, []
        if not self.is_global_zero:
            return
        for file in [*self.growing.iterdir(), self.growing]:
            sync(file)
        remove(self.target)
        self.growing.rename(self.target)
        sync(self.target.parent)
        for path in superseded:
            remove(path)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Removes a checkpoint, after the one that is being written is complete."""
        if self.saving is not None:
            self.superseded.append(Path(filepath))
        elif self.is_global_zero:
            remove(Path(filepath))

    def teardown(self) -> None:
        self.complete()
        super().teardown()


def remove(path: Path) -> None:
    """Removes a checkpoint file, or a folder, which is renamed first, so that a kill leaves no part of it."""
    if path.is_dir():
        hidden = path.with_name(f".{path.name}.old")
        path.rename(hidden)
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)


def parallelize(
    pipeline: Pipeline,
    strategy: Strategy,
    activation_checkpointing: bool = False,
    compile: bool | Literal["blocks"] = False,
) -> None:
    """Prepares a backbone for training: activation checkpointing, then compilation, then sharding.

    The order is torchtitan's. Must be called after adapters are injected and before the optimizer is built. Raises
    ValueError if a sharded backbone is to be compiled as a whole, or if pictures are to be sampled in another precision
    than that of the gathered weights."""
    if isinstance(pipeline.backbone, FSDPModule):  # fitted a second time
        return
    change_blocks(pipeline.backbone, activation_checkpointing, compile == "blocks")
    if compile is True:
        pipeline.backbone.compile()
    if not isinstance(strategy, Sharded):
        return
    if compile is True:
        raise ValueError(
            "compile=true compiles the whole backbone, and sharding gathers it block by block; say compile=blocks"
        )
    if strategy.mixed:
        if pipeline.requested_precision not in ("auto", "bf16"):
            raise ValueError(
                f"sampling.precision={pipeline.requested_precision}: with trainer.precision=bf16-mixed, sharded "
                f"weights are gathered in bfloat16; choose sampling.precision=bf16"
            )
        pipeline.sample_in("bf16", pipeline.compile)
    shard(pipeline.backbone, strategy.device_mesh, strategy.mixed)
