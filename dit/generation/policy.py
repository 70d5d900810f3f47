"""Policies: which prompts and pictures are refused, by which rule, and why.

Only what is delivered to others is checked. Previews while training and evaluation are never filtered, because a score
of filtered pictures would not be that of the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from dit.code_digest import code_digest, foreign_code

CODE = tuple(f"generation/{name}" for name in ("policy", "blocklist", "classifiers", "concepts"))


@dataclass(frozen=True)
class Verdict:
    """What a rule says about one prompt or picture. reason: why it is refused, else "". score, threshold: the numbers
    that were compared, or None for a rule without numbers."""

    allowed: bool
    reason: str = ""
    score: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Decision(Verdict):
    """A verdict with the name of its rule and the hash of the policy."""

    rule: str = ""
    policy: str = ""


class Rule:
    """A rule of a policy. A subclass implements one of the methods, or both, and sets `fingerprint`, which identifies
    all that decides its verdicts: settings, files and weights."""

    fingerprint = ""

    def check_prompts(self, prompts: Sequence[str]) -> list[Verdict] | None:
        """Returns one verdict for each prompt, or None if the rule does not read prompts."""
        return None

    def check_pictures(self, images: Tensor) -> list[Verdict] | None:
        """Returns one verdict for each of N pictures (N, 3, H, W) uint8, or None if the rule does not look at
        pictures."""
        return None


class Policy:
    """Rules by name, all of which a prompt and a picture must pass. Without rules everything is allowed.

    fingerprint: 16 hex digits, a hash of the rules, their settings, and the code of the rules.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self.rules = dict(rules)
        for name, rule in self.rules.items():
            if not rule.fingerprint:
                raise ValueError(
                    f"policy.{name}: {type(rule).__name__} has no fingerprint; set one that identifies its settings"
                )
        held = {name: [rule.fingerprint, foreign_code(rule)] for name, rule in sorted(self.rules.items())}
        text = json.dumps([code_digest(*CODE), held])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_prompts(self, prompts: Sequence[str]) -> list[list[Decision]]:
        """Returns for each prompt the decisions of all rules that read prompts."""
        return self._check(len(prompts), lambda rule: rule.check_prompts(prompts))

    def check_pictures(self, images: Tensor) -> list[list[Decision]]:
        """Returns for each of N pictures (N, 3, H, W) uint8 the decisions of all rules that look at pictures."""
        return self._check(len(images), lambda rule: rule.check_pictures(images))

    def _check(self, count: int, verdicts_of: Callable[[Rule], list[Verdict] | None]) -> list[list[Decision]]:
        decisions: list[list[Decision]] = [[] for _ in range(count)]
        for name, rule in self.rules.items():
            verdicts = verdicts_of(rule)
            if verdicts is not None and len(verdicts) != count:
                raise ValueError(
                    f"policy.{name}: {len(verdicts)} verdicts for {count} prompts or pictures; give one each"
                )
            for own, verdict in zip(decisions, verdicts or [], strict=verdicts is not None):
                own.append(Decision(**asdict(verdict), rule=name, policy=self.fingerprint))
        return decisions


def refusal(decisions: Sequence[Decision]) -> Decision | None:
    """Returns the first decision that refuses, or None if all allow."""
    return next((decision for decision in decisions if not decision.allowed), None)
