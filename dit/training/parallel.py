"""Parallel training: all that knows how a network is divided among processes. Networks do not depend on it.

Data parallel training on whole networks is Lightning's `ddp`. `Sharded` is FSDP2 (torch's fully_shard) and HSDP:
weights, gradients, optimizer states and averages are divided among the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor import empty as empty_sharded
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint as recomputed

from dit.checkpoints.native import read_checkpoint
from dit.checkpoints.sharded import fill, read_rest
from dit.pipeline import Pipeline
from dit.training.sharded_writer import ShardedWriter


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
        self.replicas, self.writer = replicas, ShardedWriter(asynchronous)

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
        self.writer.group = torch.distributed.new_group(backend="gloo")

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
        self.writer.complete()
        path = Path(self.broadcast(checkpoint_path))  # after rank 0 has published it
        if path.is_file():
            return read_checkpoint(path)
        placements = [Replicate()] * (self.device_mesh.ndim - 1) + [Shard(0)]

        def make(meta: Tensor) -> Tensor:
            return empty_sharded(meta.shape, dtype=meta.dtype, device_mesh=self.device_mesh, placements=placements)

        return fill(path, read_rest(path), make, self.writer.group)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Begins to write a checkpoint folder, and completes the one before. Raises ValueError if that failed."""
        self.writer.save(checkpoint, Path(self.broadcast(filepath)))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.writer.publish_if_written()

    def remove_checkpoint(self, filepath: Any) -> None:
        self.writer.remove(Path(filepath))

    def teardown(self) -> None:
        self.writer.complete()
        super().teardown()


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
