"""How far scores can be trusted: intervals, differences of two results with theirs, and which result is best.

A part is what every picture has in a score: (N,) bool for a share, else (N,) float of which the score is the mean,
exactly or to first order (`dit.metrics.base.MetricResult`). A Fréchet distance's interval is that of the distance
expected at this N, with its bias of about 1 / N; it is rather too wide where N is not well above the features'
dimension.

Where several comparisons are made together, each interval is widened by Bonferroni's correction, so that all hold
together with 95 %: a verdict says no more than that the interval it stands beside does not hold zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import ndtr, stdtrit
from torch import Tensor

Interval = tuple[float, float]
UNKNOWN: Interval = (-math.inf, math.inf)
GROUPS = 4096  # so many are drawn from at most: the interval's width is then off by 1 % (one standard deviation)
DRAWN_AT_ONCE = 2**22


def corrected(comparisons: int, confidence: float = 0.95) -> float:
    """The confidence each of so many comparisons needs for all to hold together with `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / max(comparisons, 1)


def digits_worth(reach: float) -> int:
    """How many after the point are worth telling of a value whose interval reaches so far: two that are not sure."""
    return max(0, 1 - math.floor(math.log10(reach)))


def quantile(degrees: float, confidence: float) -> float:
    """How many standard errors an interval reaches to either side, by Student's t; 1.96 for many degrees of freedom."""
    return -float(stdtrit(degrees, (1 - confidence) / 2))


def wilson(right: int, n: int, confidence: float = 0.95) -> Interval:
    """Of the probability behind `right` of n (Wilson 1927, J. Am. Stat. Assoc. 22, p. 209)."""
    z = quantile(math.inf, confidence)
    share = right / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (0.0 if right == 0 else centre - reach), (1.0 if right == n else centre + reach)


def interval_of(part: Tensor, score: float, confidence: float = 0.95) -> Interval:
    """Of a score with this part, (N,): Wilson's interval for bool, else the normal one of a mean by Student's t, which
    is infinite for a single picture."""
    _check(part)
    if part.dtype == torch.bool:
        return wilson(int(part.sum()), len(part), confidence)
    if len(part) < 2:
        return UNKNOWN
    reach = quantile(len(part) - 1, confidence) * math.sqrt(float(part.double().var()) / len(part))
    return score - reach, score + reach


def paired(one: Tensor, others: Sequence[Tensor], confidence: float = 0.95, seed: int = 0) -> list[Interval]:
    """For each of the others the interval of its score less that of `one`, all parts (N,) of the same N prompts and,
    where it is to be narrow, the same noise.

    Floats: percentiles of a bootstrap over pictures, widened for small N (Hesterberg 2015, Am. Stat. 69, p. 371).
    Shares: few pictures may differ, all to one side, and the bootstrap is then too sure; so Wald's interval with one
    picture added that only one gets right, and one that only the other does (Bonett & Price 2012, J. Educ. Behav. Stat.
    37, p. 479).
    """
    for other in others:
        _check_alike(one, other)
    if not others:
        return []
    differences = torch.stack([other.double() - one.double() for other in others], dim=1)  # (N, K)
    if one.dtype == torch.bool:
        made_up = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, len(others))
        return [_clipped(_of_mean(column, confidence)) for column in torch.cat([differences, made_up]).T]
    if len(one) < 2:
        return [UNKNOWN] * len(others)
    tail = float(ndtr(-quantile(len(one) - 1, confidence) * math.sqrt(len(one) / (len(one) - 1))))
    draws = math.ceil(max(10_000, 20 / (1 - confidence)))  # ten beyond each end
    means = resampled_means(differences, draws, seed)
    edge = max(1, round(draws * tail))
    lowest, highest = (means.kthvalue(rank, dim=0).values.tolist() for rank in (edge, draws + 1 - edge))
    return list(zip(lowest, highest, strict=True))


def unpaired(one: Tensor, other: Tensor, confidence: float = 0.95) -> Interval:
    """The interval of the other's score less that of `one`, (N,) and (M,) of unlike noise or prompts: Welch's (1947,
    Biometrika 34, p. 28). Each share gets a right and a wrong picture more (Agresti & Caffo 2000, Am. Stat. 54, p.
    280)."""
    _check(one)
    _check(other)
    share = one.dtype == torch.bool
    a, b = (torch.cat([p.double(), torch.tensor([1.0, 0.0]).double()]) if share else p.double() for p in (one, other))
    if min(len(a), len(b)) < 2:
        return UNKNOWN
    difference, spread_a, spread_b = float(b.mean() - a.mean()), float(a.var()) / len(a), float(b.var()) / len(b)
    if spread_a + spread_b == 0:
        return difference, difference
    degrees = (spread_a + spread_b) ** 2 / (spread_a**2 / (len(a) - 1) + spread_b**2 / (len(b) - 1))
    reach = quantile(degrees, confidence) * math.sqrt(spread_a + spread_b)
    interval = difference - reach, difference + reach
    return _clipped(interval) if share else interval


def resampled_means(values: Tensor, draws: int, seed: int) -> Tensor:
    """(draws, K) float64: the mean of N rows drawn with replacement from values (N, K), the same rows for all K.

    Where N is above `GROUPS`, groups of rows put together at random are drawn, which has the same variance.
    """
    generator = torch.Generator().manual_seed(seed)
    n, mean = len(values), values.mean(0)
    sums = values - mean  # of a group, which is one row where there are few
    if n > GROUPS:
        padding = sums.new_zeros(-n % GROUPS, sums.shape[1])
        shuffled = torch.cat([sums[torch.randperm(n, generator=generator)], padding])
        sums = shuffled.view(-1, GROUPS, sums.shape[1]).sum(0)
    groups, means = len(sums), []
    for count in torch.arange(draws).split(max(1, DRAWN_AT_ONCE // groups)):
        drawn = torch.randint(groups, (len(count), groups), generator=generator)
        drawn += groups * torch.arange(len(count))[:, None]
        times = torch.bincount(drawn.flatten(), minlength=drawn.numel()).view(drawn.shape)
        means.append(times.double() @ sums / n)
    return mean + torch.cat(means)


def verdict(interval: Interval, higher_is_better: bool | None = True) -> str:
    """What the interval of a score less another says: better, worse or no difference; higher or lower where None tells
    which of them is good."""
    low, high = interval
    if low <= 0 <= high:
        return "no difference"
    if higher_is_better is None:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == higher_is_better else "worse"


def winner(scores: Sequence[float], parts: Sequence[Tensor], higher_is_better: bool) -> tuple[int, list[int]]:
    """The number of the row with the best score, and those of the rows, itself among them, that cannot be told from it.

    scores: R of one column; parts: theirs, (N,) each, of the same prompts and noise. With 95 % the rows hold the truly
    best one: it is lost only if one of the R - 1 others came out best and beats it at the corrected level.
    """
    best = (max if higher_is_better else min)(range(len(scores)), key=scores.__getitem__)
    others = [row for row in range(len(scores)) if row != best]
    intervals = paired(parts[best], [parts[row] for row in others], corrected(len(others)))
    alike = [row for row, i in zip(others, intervals, strict=True) if verdict(i, higher_is_better) != "worse"]
    return best, sorted([best, *alike])


def _of_mean(values: Tensor, confidence: float) -> Interval:
    mean, reach = float(values.mean()), float(values.std()) / math.sqrt(len(values))
    reach *= quantile(math.inf, confidence)
    return mean - reach, mean + reach


def _clipped(interval: Interval) -> Interval:
    """Two shares differ by one at most."""
    return max(interval[0], -1.0), min(interval[1], 1.0)


def _check(part: Tensor) -> None:
    """Raises ValueError where a part is no part, or not finite."""
    if part.dim() != 1 or not len(part):
        raise ValueError(f"a score's part is (N,), one number of each picture, not {tuple(part.shape)}")
    if not part.isfinite().all():
        raise ValueError("a score's part holds NaN or infinite numbers: it says nothing; score the pictures again")


def _check_alike(one: Tensor, other: Tensor) -> None:
    for part in (one, other):
        _check(part)
    if one.shape != other.shape or (one.dtype == torch.bool) != (other.dtype == torch.bool):
        raise ValueError(
            f"parts of {len(one)} and {len(other)} pictures cannot be paired; they must be of one kind and N"
        )
