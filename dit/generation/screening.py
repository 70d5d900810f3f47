"""A policy in the way of pictures from the sampler to their file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dit.errors import shortened
from dit.files import append_line
from dit.generation.delivery import Delivery, refusal_text
from dit.generation.policy import Decision, Policy, refusal
from dit.generation.work import Job


class Screened(Delivery):
    """Refuses prompts and pictures by a policy. Each refusal is appended to a file as one JSON object in a line: the
    time, what is refused, and the decision. stderr has its rule, and with a file the reason, which may quote the
    prompt."""

    def __init__(self, policy: Policy, file: Path | None) -> None:
        self.policy, self.file, self.fingerprint = policy, file, policy.fingerprint

    def demand(self, whole: Delivery, **texts: str | None) -> None:
        """Raises ValueError if a text that all pictures depend on, such as the negative prompt, is refused, after an
        entry in the log of the `whole` delivery, of which this is a part."""
        for name, text in texts.items():
            if text is not None and (found := refusal(decisions := self.policy.check_prompts([text])[0])):
                self._record(decisions, name, {name: text})
                whole.log({"name": name, "prompt": text, "refused": refusal_text(decisions)}, decisions, None, {})
                raise ValueError(f"{name}={shortened(text)!r} is refused by policy.{found.rule}: {found.reason}")

    def check_prompts(self, jobs: Sequence[Job]) -> list[list[Decision]]:
        distinct = list(dict.fromkeys(job.prompt for job in jobs))
        by_prompt = dict(zip(distinct, self.policy.check_prompts(distinct), strict=True))
        return self._recorded(jobs, [by_prompt[job.prompt] for job in jobs])

    def check_pictures(self, jobs: Sequence[Job], pixels: Tensor) -> list[list[Decision]]:
        return self._recorded(jobs, self.policy.check_pictures(pixels))

    def _recorded(self, jobs: Sequence[Job], found: list[list[Decision]]) -> list[list[Decision]]:
        for job, decisions in zip(jobs, found, strict=True):
            self._record(decisions, job.name, {"name": job.name, "prompt": job.prompt, "seed": job.seed})
        return found

    def _record(self, decisions: Sequence[Decision], what: str, about: Mapping[str, Any]) -> None:
        found = refusal(decisions)
        if found is None:
            return
        said = f"policy.{found.rule}" if self.file is None else refusal_text(decisions)
        print(f"refused: {what}: {said}", file=sys.stderr)
        if self.file is not None:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            append_line(self.file, json.dumps({"time": now, **about, **asdict(found)}, ensure_ascii=False))
