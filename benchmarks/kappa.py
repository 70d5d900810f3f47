"""How often the interval of Cohen's kappa contains the true value: `python benchmarks/kappa.py`."""

import numpy as np

from dit.generation.agreement import agreement_of, kappa_of

SHARES = (
    (0.45, 0.05, 0.05, 0.45),
    (0.85, 0.05, 0.05, 0.05),
    (0.25, 0.25, 0.25, 0.25),
    (0.9, 0.04, 0.04, 0.02),
    (0.6, 0.2, 0.05, 0.15),
)
REPETITIONS = 400
BOTH = ((True, True), (True, False), (False, True), (False, False))


def main() -> None:
    random = np.random.default_rng(1)
    print("| pictures | shares | kappa | share of intervals that contain it |\n|---|---|---|---|")
    for count in (10, 30, 100, 300):
        for shares in SHARES:
            true, hits = float(kappa_of(np.array(shares).reshape(2, 2))), 0
            for _ in range(REPETITIONS):
                drawn = random.multinomial(count, shares)
                low, high = agreement_of([pair for pair, n in zip(BOTH, drawn, strict=True) for _ in range(n)]).interval
                hits += low <= true <= high
            print(f"| {count} | {shares} | {true:.2f} | {hits / REPETITIONS:.3f} |", flush=True)


if __name__ == "__main__":
    main()
