"""Two ranks with half of the pictures each return the scores of one process, and both raise an error of either."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dit.data.shapes import Shapes
from dit.data.shapes_checker import ShapesChecker
from dit.evaluation.sources import given_pictures
from dit.metrics.clip import ClipScore
from dit.metrics.extractors import open_clip_model
from dit.metrics.prompt_accuracy import PromptAccuracy
from dit.scoring.references import update_references
from dit.scoring.samples import score_samples

from .every import every_metric

REAL, GENERATED = 50, 41  # odd, so that the shares are uneven


def results(rank=0, world=1):
    """By the metrics' names: scores, and the parts of every picture."""
    torch.set_num_threads(1)
    source, extractor = Shapes("val", REAL + GENERATED), open_clip_model("shapes_clip")
    images, captions = torch.from_numpy(source.images(np.arange(REAL + GENERATED))), list(source.captions)
    metrics = every_metric(extractor)
    metrics |= {"clip": ClipScore("clip", extractor), "accuracy": PromptAccuracy(ShapesChecker())}
    mine, generated = list(range(rank, GENERATED, world)), 255 - images[REAL:].flip(0)
    found = {}
    for name, metric in metrics.items():
        metric.update(images[rank * REAL // world : (rank + 1) * REAL // world], real=True)
        for rows in (mine[:7], mine[7:]):
            metric.update(generated[rows], [captions[REAL + i] for i in rows], rows)
        result = metric.result()
        found[name] = {"scores": dict(result.scores), "each": dict(result.each)}
    return found


def refusals(rank):
    """Returns the errors on this rank if rank 1 cannot read its pictures: generated ones, then real ones."""

    class Pictures(Shapes):
        def images(self, index):
            if rank == 1:
                raise ValueError("a picture is broken")
            return super().images(index)

    source, metrics = Pictures("val", 8), every_metric(open_clip_model("shapes_clip"))
    with pytest.raises(ValueError) as generated:
        score_samples({"accuracy": PromptAccuracy(ShapesChecker())}, given_pictures(source, source.captions, 4))
    with pytest.raises(ValueError) as real:
        update_references(
            metrics.values(), dict.fromkeys(("val", "train"), source), {"val": 8, "train": 8}, Path("none")
        )
    return [str(generated.value), str(real.value)]


def score_in_a_process(rank, world, folder):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save({"refusals": refusals(rank), **results(rank, world)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_score_as_one_does(tmp_path):
    torch.multiprocessing.start_processes(score_in_a_process, (2, tmp_path), nprocs=2, start_method="fork")
    single = results()
    assert len(single) == 10
    for other in (torch.load(tmp_path / f"{rank}.pt") for rank in range(2)):
        assert other.pop("refusals") == ["a picture is broken"] * 2
        for name, whole in single.items():
            assert other[name]["scores"] == pytest.approx(whole["scores"], rel=1e-5, abs=1e-7), name
            for column, parts in whole["each"].items():
                torch.testing.assert_close(other[name]["each"][column], parts, rtol=1e-4, atol=1e-5)
