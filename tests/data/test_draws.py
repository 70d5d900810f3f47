"""Training noise, times and caption dropout: functions of (seed, epoch, sample), drawn where batches are loaded."""

import pytest
import torch
from torch.utils.data import DataLoader

from dit.data.draws import DrawnBatches, TrainingDraws
from dit.data.order import KeyedBatches
from dit.diffusion.path import Linear
from dit.types import Batch, Condition

SHAPE, COUNT = (2, 4, 4), 600
NULL = Condition(tokens=torch.full((1, 2, 3), -1.0), mask=torch.tensor([[True, False]]), label=torch.tensor([9]))
DRAWS = TrainingDraws(Linear(), seed=3, null=NULL, caption_dropout=0.25)


class Rows:
    """Samples without content: tokens, 4 per text, that are the sample's index."""

    def __getitem__(self, visits):
        index, epoch = (torch.tensor(keys) for keys in zip(*visits, strict=True))
        tokens = index.float().view(-1, 1, 1).expand(-1, 4, 3).contiguous()
        return Batch(torch.zeros(len(visits), *SHAPE), Condition(tokens=tokens, label=index), index, epoch)


def drawn(epoch=0, samples=range(COUNT), draws=DRAWS):
    return draws(Rows()[[(sample, epoch) for sample in samples]])


def test_noise_is_standard_normal_and_the_other_numbers_are_uniform():
    batch = drawn()
    z, u = batch.noise.double(), batch.uniform.double()
    n = z.numel()
    moments = [(z**power).mean().item() for power in (1, 2, 3, 4)]
    spread = [(variance / n) ** 0.5 for variance in (1, 2, 15, 96)]  # of x, x^2, x^3, x^4 for a normal x
    for moment, expected, std in zip(moments, (0, 1, 0, 3), spread, strict=True):
        assert moment == pytest.approx(expected, abs=4 * std)
    for column in u.T:
        gap = (column.sort().values - (torch.arange(COUNT) + 0.5) / COUNT).abs().max()
        assert gap * COUNT**0.5 < 1.95  # Kolmogorov and Smirnov's statistic: exceeded with probability 0.001


def test_samples_epochs_seeds_and_columns_are_independent():
    batch = drawn()
    others = {
        "sample": batch.noise.roll(1, 0),
        "epoch": drawn(epoch=1).noise,
        "seed": drawn(draws=TrainingDraws(Linear(), 4, NULL, 0.25)).noise,
        "validation": DRAWS.validation(Rows()[[(sample, 0) for sample in range(COUNT)]]).noise,
    }
    for name, other in others.items():
        assert abs((batch.noise * other).mean().item()) * batch.noise.numel() ** 0.5 < 4, name
    correlations = torch.corrcoef(torch.cat([batch.uniform.T, batch.noise.flatten(1).T[:5]]))
    assert (correlations - torch.eye(9)).abs().max() * COUNT**0.5 < 4


def test_a_sample_has_the_same_numbers_in_any_batch_and_worker_and_for_any_world_size():
    expected = drawn()

    def walk(batch_size, workers, world):
        found = torch.full((COUNT, *SHAPE), torch.nan), torch.full((COUNT, 4), torch.nan)
        for rank in range(world):
            order = KeyedBatches(COUNT, batch_size, seed=1, rank=rank, world=world)
            loader = DataLoader(DrawnBatches(Rows(), DRAWS), sampler=order, batch_size=None, num_workers=workers)
            for _, batch in zip(range(COUNT // batch_size), loader, strict=False):
                found[0][batch.index], found[1][batch.index] = batch.noise, batch.uniform
        return found

    for options in ({"batch_size": 600, "workers": 0, "world": 1}, {"batch_size": 60, "workers": 2, "world": 1},
                    {"batch_size": 40, "workers": 0, "world": 4}):  # fmt: skip
        noise, uniform = walk(**options)
        assert torch.equal(noise, expected.noise), options
        assert torch.equal(uniform, expected.uniform), options


def test_dropped_rows_have_the_null_condition_and_the_others_their_own():
    batch = drawn()
    dropped = batch.uniform[:, 1] < 0.25
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / COUNT) ** 0.5)
    assert (batch.condition.label[dropped] == 9).all()
    assert (batch.condition.tokens[dropped][:, :2] == -1).all()
    assert batch.condition.mask[dropped].sum(1).eq(1).all()
    kept = batch.index[~dropped]
    assert torch.equal(batch.condition.label[~dropped], kept)
    assert (batch.condition.tokens[~dropped] == kept.view(-1, 1, 1)).all()
    assert batch.condition.mask[~dropped].all()


def test_validation_drops_no_caption_and_repeats_its_numbers():
    rows = Rows()[[(sample, 0) for sample in range(9)]]
    later = Rows()[[(sample, 7) for sample in range(9)]]
    assert torch.equal(DRAWS.validation(rows).noise, DRAWS.validation(later).noise)
    assert DRAWS.validation(rows).condition is rows.condition
