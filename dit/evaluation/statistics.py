"""The uncertainty of scores: confidence intervals, differences of two results, and the best of several results.

A part is the contribution of every picture to a score: (N,) bool for a share, else (N,) float. The score is the mean of
the part, exactly or to first order (`dit.metrics.base.MetricResult`). The interval of a Fréchet distance is that of its
expectation at this N, which includes a bias of about 1 / N; it is too wide unless N is well above the dimension of the
features.

For several comparisons at once, each interval is widened by Bonferroni's correction, so that all intervals together
hold with 95 %. A verdict says whether an interval contains zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import ndtr, stdtrit
from torch import Tensor

Interval = tuple[float, float]
UNKNOWN: Interval = (-math.inf, math.inf)
SHARE: Interval = (0.0, 1.0)  # what a share of pictures can be
GROUPS = 4096  # the bootstrap resamples at most so many groups: its interval's width then has a std of 1 %
INDICES_AT_ONCE = 2**22  # drawn indices in memory


def corrected(comparisons: int, confidence: float = 0.95) -> float:
    """Returns the confidence of each comparison with which all hold together with `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / max(comparisons, 1)


def decimals(half_width: float) -> int:
    """Returns the number of decimals to print for a value whose interval has this half-width: two uncertain digits."""
    return max(0, 1 - math.floor(math.log10(half_width)))


def text_with_interval(value: float, interval: Sequence[float] | None = None, sign: str = "") -> str:
    """Returns e.g. "0.97 [0.95, 0.98]". sign: "+" to print the sign of positive numbers too."""
    values = [value, *(interval or ())]
    known = interval is not None and all(map(math.isfinite, interval)) and interval[0] < interval[1]
    if known and interval is not None:
        digits = decimals((interval[1] - interval[0]) / 2)
        texts = [f"{round(v, digits) + 0.0:{sign}.{digits}f}" for v in values]  # + 0.0: no "-0.00"
    else:
        texts = [f"{v + 0.0:{sign}.4g}" for v in values]
    return texts[0] if interval is None else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def quantile(degrees: float, confidence: float) -> float:
    """Returns an interval's half-width in standard errors, by Student's t; 1.96 for many degrees of freedom."""
    return -float(stdtrit(degrees, (1 - confidence) / 2))


def wilson(right: int, n: int, confidence: float = 0.95) -> Interval:
    """Returns the interval of a probability, `right` of n trials being true (Wilson 1927, J. Am. Stat. Assoc. 22,
    p. 209)."""
    z = quantile(math.inf, confidence)
    share = right / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half_width = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (0.0 if right == 0 else centre - half_width), (1.0 if right == n else centre + half_width)


def interval_of(part: Tensor, score: float, confidence: float = 0.95) -> Interval:
    """Returns the interval of a score with this part, (N,): Wilson's for bool, else that of a mean by Student's t,
    which is infinite for a single picture."""
    _check(part)
    if part.dtype == torch.bool:
        return wilson(int(part.sum()), len(part), confidence)
    if len(part) < 2:
        return UNKNOWN
    half_width = quantile(len(part) - 1, confidence) * math.sqrt(float(part.double().var()) / len(part))
    return score - half_width, score + half_width


def mean_over_runs(values: Sequence[float], bounds: Interval = UNKNOWN) -> tuple[float, Interval | None]:
    """Returns the mean of a score over runs and its interval, limited to what the score can be. None in its place for a
    single run, for equal scores, which say nothing of the spread over runs, and for scores that are not finite."""
    mean = sum(values) / len(values)
    if len(set(values)) < 2 or not all(map(math.isfinite, values)):
        return mean, None
    low, high = interval_of(torch.tensor(values, dtype=torch.float64), mean)
    return mean, (max(low, bounds[0]), min(high, bounds[1]))


def paired(one: Tensor, others: Sequence[Tensor], confidence: float = 0.95, seed: int = 0) -> list[Interval]:
    """Returns for each of the others the interval of its score minus that of `one`. All parts are (N,), of the same N
    prompts; the intervals are narrower if the noise is the same too.

    Floats: percentiles of a bootstrap over pictures, widened for small N (Hesterberg 2015, Am. Stat. 69, p. 371).
    Shares: Wald's interval after adding one picture that is right in `one` alone and one that is right in the other
    alone (Bonett & Price 2012, J. Educ. Behav. Stat. 37, p. 479). The bootstrap would be too narrow where few pictures
    differ.
    """
    for other in others:
        _check_same_kind(one, other)
    if not others:
        return []
    differences = torch.stack([other.double() - one.double() for other in others], dim=1)  # (N, K)
    if one.dtype == torch.bool:
        added = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, len(others))
        return [_clipped(_of_mean(column, confidence)) for column in torch.cat([differences, added]).T]
    if len(one) < 2:
        return [UNKNOWN] * len(others)
    tail = float(ndtr(-quantile(len(one) - 1, confidence) * math.sqrt(len(one) / (len(one) - 1))))
    draws = math.ceil(max(10_000, 20 / (1 - confidence)))  # ten beyond each end
    means = resampled_means(differences, draws, seed)
    edge = max(1, round(draws * tail))
    lowest, highest = (means.kthvalue(rank, dim=0).values.tolist() for rank in (edge, draws + 1 - edge))
    return list(zip(lowest, highest, strict=True))


def unpaired(one: Tensor, other: Tensor, confidence: float = 0.95) -> Interval:
    """Returns the interval of the other's score minus that of `one`, for parts (N,) and (M,) of different noise or
    prompts (Welch 1947, Biometrika 34, p. 28). Shares: after adding one right and one wrong picture to each (Agresti &
    Caffo 2000, Am. Stat. 54, p. 280)."""
    _check(one)
    _check(other)
    share = one.dtype == torch.bool
    a, b = (torch.cat([p.double(), torch.tensor([1.0, 0.0]).double()]) if share else p.double() for p in (one, other))
    if min(len(a), len(b)) < 2:
        return UNKNOWN
    difference = float(b.mean() - a.mean())
    variance_a, variance_b = float(a.var()) / len(a), float(b.var()) / len(b)  # of the means
    if variance_a + variance_b == 0:
        return difference, difference
    degrees = (variance_a + variance_b) ** 2 / (variance_a**2 / (len(a) - 1) + variance_b**2 / (len(b) - 1))
    half_width = quantile(degrees, confidence) * math.sqrt(variance_a + variance_b)
    interval = difference - half_width, difference + half_width
    return _clipped(interval) if share else interval


def resampled_means(values: Tensor, draws: int, seed: int) -> Tensor:
    """Returns (draws, K) float64: means of N rows drawn with replacement from values (N, K), the same rows for all K.

    If N is above `GROUPS`, random groups of rows are drawn instead of rows; the means have the same variance.
    """
    generator = torch.Generator().manual_seed(seed)
    n, mean = len(values), values.mean(0)
    sums = values - mean  # of each group; a group is one row if N is small
    if n > GROUPS:
        padding = sums.new_zeros(-n % GROUPS, sums.shape[1])
        shuffled = torch.cat([sums[torch.randperm(n, generator=generator)], padding])
        sums = shuffled.view(-1, GROUPS, sums.shape[1]).sum(0)
    groups, means = len(sums), []
    for chunk in torch.arange(draws).split(max(1, INDICES_AT_ONCE // groups)):
        drawn = torch.randint(groups, (len(chunk), groups), generator=generator)
        drawn += groups * torch.arange(len(chunk))[:, None]
        counts = torch.bincount(drawn.flatten(), minlength=drawn.numel()).view(drawn.shape)
        means.append(counts.double() @ sums / n)
    return mean + torch.cat(means)


def verdict(interval: Interval, higher_is_better: bool | None = True) -> str:
    """Returns the verdict of the interval of one score minus another: "better", "worse" or "no difference"; "higher" or
    "lower" if higher_is_better is None."""
    low, high = interval
    if low <= 0 <= high:
        return "no difference"
    if higher_is_better is None:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == higher_is_better else "worse"


def winner(scores: Sequence[float], parts: Sequence[Tensor], higher_is_better: bool) -> tuple[int, list[int]]:
    """Returns the index of the row with the best score, and the indices of the rows that are not significantly
    different from it, itself included.

    scores: R values of one column; parts: R times (N,), of the same prompts and noise. With 95 % confidence the truly
    best row is among those returned: it is left out only if one of the R - 1 others has the best score and is better
    than it at the corrected level.
    """
    best = (max if higher_is_better else min)(range(len(scores)), key=scores.__getitem__)
    others = [row for row in range(len(scores)) if row != best]
    intervals = paired(parts[best], [parts[row] for row in others], corrected(len(others)))
    tied = [row for row, i in zip(others, intervals, strict=True) if verdict(i, higher_is_better) != "worse"]
    return best, sorted([best, *tied])


def winner_over_runs(runs: Sequence[Sequence[float]], higher_is_better: bool) -> tuple[int, list[int] | None]:
    """Returns the index of the setting with the best mean, and the indices of the settings that are not significantly
    different from it, itself included; None instead of them if no setting has two runs.

    runs: for each setting the scores of runs that differ only in the seed. As in `winner`, all comparisons together
    hold with 95 %, by Welch's interval (`unpaired`) of means over runs. A setting of one run differs significantly
    from none."""
    parts = [torch.tensor(list(values), dtype=torch.float64) for values in runs]
    means = [float(part.mean()) for part in parts]
    best = (max if higher_is_better else min)(range(len(means)), key=means.__getitem__)
    if all(len(part) < 2 for part in parts):
        return best, None
    confidence = corrected(len(parts) - 1)
    differences = [unpaired(parts[best], part, confidence) for part in parts]
    return best, [i for i, d in enumerate(differences) if i == best or verdict(d, higher_is_better) != "worse"]


def _of_mean(values: Tensor, confidence: float) -> Interval:
    mean, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
    half_width = error * quantile(math.inf, confidence)
    return mean - half_width, mean + half_width


def _clipped(interval: Interval) -> Interval:
    """Clips the interval to [-1, 1]: two shares differ by 1 at most."""
    return max(interval[0], -1.0), min(interval[1], 1.0)


def _check(part: Tensor) -> None:
    """Raises ValueError if a part has another shape or is not finite."""
    if part.dim() != 1 or not len(part):
        raise ValueError(f"a score's part must be (N,), one number for each picture, not {tuple(part.shape)}")
    if not part.isfinite().all():
        raise ValueError("a score's part contains NaN or infinite numbers; score the pictures again")


def _check_same_kind(one: Tensor, other: Tensor) -> None:
    for part in (one, other):
        _check(part)
    if one.shape != other.shape or (one.dtype == torch.bool) != (other.dtype == torch.bool):
        raise ValueError(
            f"parts of {len(one)} and {len(other)} pictures cannot be paired; both must have the same N and dtype"
        )
