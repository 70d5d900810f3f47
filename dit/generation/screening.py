"""A policy in the way of pictures from the sampler to their file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dit.errors import shortened
from dit.files import append_line
from dit.generation.delivery import Delivery
from dit.generation.policy import Decision, Policy, refusal
from dit.generation.work import Job


class Screened(Delivery):
    """Refuses prompts and pictures by a policy. Each refusal is reported on stderr and appended to a file as one JSON
    object in a line: the time, what is refused, and the decision. decisions: by index those of the last batch."""

    def __init__(self, policy: Policy, file: Path) -> None:
        self.policy, self.file, self.fingerprint = policy, file, policy.fingerprint
        self.decisions: dict[int, list[Decision]] = {}

    def demand(self, **texts: str | None) -> None:
        """Raises ValueError if a text that all pictures depend on, such as the negative prompt, is refused."""
        for name, text in texts.items():
            if text is not None and (found := refusal(self.policy.check_prompts([text])[0])):
                self._record(found, {name: text})
                raise ValueError(f"{name}={shortened(text)!r} is refused by policy.{found.rule}: {found.reason}")

    def check_prompts(self, jobs: Sequence[Job]) -> list[str]:
        distinct = list(dict.fromkeys(job.prompt for job in jobs))
        found = dict(zip(distinct, self.policy.check_prompts(distinct), strict=True))
        self.decisions = {job.index: list(found[job.prompt]) for job in jobs}
        return [self._reason(job, found[job.prompt]) for job in jobs]

    def check_pictures(self, jobs: Sequence[Job], pixels: Tensor) -> list[str]:
        found = self.policy.check_pictures(pixels)
        for job, decisions in zip(jobs, found, strict=True):
            self.decisions[job.index] += decisions
        return [self._reason(job, decisions) for job, decisions in zip(jobs, found, strict=True)]

    def _reason(self, job: Job, decisions: Sequence[Decision]) -> str:
        found = refusal(decisions)
        if found is None:
            return ""
        self._record(found, {"name": job.name, "prompt": job.prompt, "seed": job.seed})
        return f"policy.{found.rule}: {found.reason}"

    def _record(self, found: Decision, about: dict[str, Any]) -> None:
        what = about.get("name", next(iter(about)))
        print(f"refused: {what}: policy.{found.rule}: {found.reason}", file=sys.stderr)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        append_line(self.file, json.dumps({"time": now, **about, **asdict(found)}, ensure_ascii=False))
