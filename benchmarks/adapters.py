"""Peak memory and step time of low-rank adapters against full fine-tuning: `python benchmarks/adapters.py`.

Each way to train has its own process, with a TextDiT of the same random weights: forward and backward of the training
loss, AdamW, and an average of what is trained. The processes make a few steps each, in turn, so that other work on the
machine slows all of them; a round's ratio is its time over that of full fine-tuning in the same round. Memory is the
largest that a process takes, less what it had before the network: allocated by torch on a GPU, resident on a CPU.
`--small` tries it in miniature.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from dit.adapters.lora import LoRA
from dit.backbones.text_dit import TextDiT
from dit.diffusion.objective import Objective
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.diffusion.time import LogitNormal
from dit.training.optimizer import adamw
from dit.training.parallel import change_blocks
from dit.types import Condition, Draw

SHAPE, LENGTH, TOKEN_DIM = (4, 32, 32), 77, 768
MIB = 2**20


def ways(rank: int) -> dict[str, LoRA | None]:
    """The ways to train, by name; full fine-tuning is the first."""
    return {"full": None, "lora": LoRA(rank, rank), "dora": LoRA(rank, rank, dora=True)}


def network(args: argparse.Namespace) -> TextDiT:
    """A network whose zero weights are random, as after training."""
    torch.manual_seed(0)
    net = TextDiT(SHAPE[0], TOKEN_DIM, TOKEN_DIM, width=args.width, depth=args.depth, heads=args.width // 64)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.02)
    return net


def batch(args: argparse.Namespace, step: int) -> Draw:
    draw = torch.Generator().manual_seed(step)

    def normal(*shape: int) -> Tensor:
        return torch.randn(args.batch, *shape, generator=draw).to(args.device)

    mask = torch.ones(args.batch, LENGTH, dtype=torch.bool, device=args.device)
    condition = Condition(tokens=normal(LENGTH, TOKEN_DIM), mask=mask, pooled=normal(TOKEN_DIM))
    u = torch.rand(args.batch, generator=draw, dtype=torch.float64)
    return Draw(normal(*SHAPE), condition, normal(*SHAPE), u)


def peak(device: str) -> float:
    """The largest memory so far in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def work(name: str, args: argparse.Namespace, pipe: Connection) -> None:
    """Trains in a process of its own: for each number of steps that it receives it sends their seconds; for 0 it sends
    its peak of memory, the number of trained weights, and the bytes of weights, gradients, states and averages."""
    import peft  # noqa: F401  (its memory is not that of an adapter)

    torch.set_num_threads(1)
    torch.randn(64, 64, device=args.device).mm(torch.randn(64, 64, device=args.device))  # what torch itself takes
    before = peak(args.device)
    net, adapter = network(args), ways(args.rank)[name]
    if adapter is not None:
        adapter(net)
    change_blocks(net, args.activation_checkpointing, compile=False)
    net.to(args.device)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = adamw(net.named_parameters(), 1e-4, (0.9, 0.99), 0.0)
    averages = [p.detach().clone() for p in trained]
    objective = Objective(Linear(), Flow(), LogitNormal())
    step = 0
    while True:
        steps = pipe.recv()
        if steps == 0:
            states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
            held = [*net.parameters(), *(p.grad for p in trained if p.grad is not None), *states, *averages]
            pipe.send((peak(args.device) - before, sum(p.numel() for p in trained), sum(t.nbytes for t in held)))
            return
        draws = [batch(args, step + i) for i in range(steps)]
        start = time.perf_counter()
        for draw in draws:
            objective(net, draw).mean().backward()
            optimizer.step()
            torch._foreach_lerp_(averages, [p.detach() for p in trained], 0.001)
            optimizer.zero_grad(set_to_none=False)
            step += 1
        if args.device == "cuda":
            torch.cuda.synchronize()
        pipe.send((time.perf_counter() - start) / steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="in a round")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="a try in miniature")
    args = parser.parse_args()
    if args.small:
        args.width, args.depth, args.batch, args.rounds, args.steps = 64, 2, 2, 2, 1
    context, pipes = get_context("spawn"), {}
    for name in ways(args.rank):
        pipes[name], child = context.Pipe()
        context.Process(target=work, args=(name, args, child), daemon=True).start()

    def asked(name: str, steps: int) -> Any:
        pipes[name].send(steps)
        return pipes[name].recv()

    for name in pipes:  # the first steps allocate
        asked(name, 1)
    seconds = [{name: asked(name, args.steps) for name in pipes} for _ in range(args.rounds)]
    recomputed = ", activations computed again" if args.activation_checkpointing else ""
    print(f"width {args.width}, depth {args.depth}, batch {args.batch}, rank {args.rank}{recomputed}; {args.device}")
    print(f"{'':6}{'trained':>12}{'ms a step':>11}{'of full':>24}{'peak MiB':>10}{'of full':>9}{'states MiB':>12}")
    full = 0.0
    for name in pipes:
        memory, trained, held = asked(name, 0)
        full = full or memory
        ratios = [row[name] / row["full"] for row in seconds]
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        each = 1000 * statistics.median(row[name] for row in seconds)
        states = f"{memory / MIB:10.0f}{memory / full:9.3f}{held / MIB:12.0f}"
        print(f"{name:6}{trained:12,}{each:11.0f}{spread:>24}{states}")


if __name__ == "__main__":
    main()
