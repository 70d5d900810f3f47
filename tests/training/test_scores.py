from types import SimpleNamespace

import numpy as np
import torch

from dit.metrics.prompt_accuracy import PromptAccuracy
from dit.pipeline import Samples
from dit.training.scores import ClosingScore


def test_processes_share_the_prompts_out_with_the_seeds_that_one_would_give_them():
    def drawn(rank: int, world: int) -> dict[int, str]:
        asked: dict[int, str] = {}

        def pipeline(prompts, seeds, recipe, batch_size, done):
            asked.update(zip(seeds, prompts, strict=True))
            return Samples(torch.zeros(len(prompts), 3, 2, 2), nfe=1)

        metric = PromptAccuracy(lambda images, prompts: {"right": np.ones(len(prompts), dtype=bool)})
        module = SimpleNamespace(trainer=SimpleNamespace(global_rank=rank, world_size=world), pipeline=pipeline)
        score = ClosingScore(metric, recipe=None, count=5)
        score._score(metric, module, [f"prompt {i}" for i in range(5)], "")
        return asked

    whole = drawn(0, 1)
    assert len(whole) == 5
    for world in (2, 3, 5):
        parts = [drawn(rank, world) for rank in range(world)]
        assert sum(map(len, parts)) == 5
        assert {seed: prompt for part in parts for seed, prompt in part.items()} == whole
