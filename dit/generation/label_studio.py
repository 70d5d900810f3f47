"""Held pictures as tasks for Label Studio."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

from dit.errors import some
from dit.generation.audit import AuditLog
from dit.generation.credentials import kind_of
from dit.generation.reviews import PENDING, REJECTED, Held, held_in, reasons_of

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <Text name="prompt" value="$prompt"/>
  <Choices name="verdict" toName="image" choice="single">
    <Choice value="approved"/>
    <Choice value="rejected"/>
  </Choices>
  <TextArea name="reason" toName="image"/>
</View>"""


def tasks_of(log: AuditLog, folder: Path) -> list[dict[str, Any]]:
    """Returns a task for each held picture, with the picture inside. What is decided is its annotation; single verdicts
    are not in it, so that those who judge there do not see them. Pictures whose file is missing or changed are left out
    and named on stderr."""
    found, pictures = [], held_in(log, folder)
    if lost := [held.file for held in pictures.values() if not held.is_in(folder)]:
        print(f"warning: the file is missing or changed, and there is no task: {some(lost, 3)}", file=sys.stderr)
    for held in pictures.values():
        if held.file in lost:
            continue
        content = held.content(folder)
        image = f"data:{kind_of(content)};base64,{base64.b64encode(content).decode()}"
        data = {"image": image, "prompt": prompt_of(log, held), "entry": held.entry, "file": held.file}
        decided = held.state != PENDING
        found.append({"data": data, "annotations": [{"result": result_of(log, held)}] if decided else []})
    return found


def prompt_of(log: AuditLog, held: Held) -> str:
    """Returns the prompt of a picture, or that it is erased."""
    texts = log.entry(held.entry)["texts"]
    return "(the prompt is erased)" if texts is None else str(texts["prompt"])


def result_of(log: AuditLog, held: Held) -> list[dict[str, Any]]:
    place = {"id": f"entry_{held.entry}", "to_name": "image"}
    chosen = {**place, "from_name": "verdict", "type": "choices", "value": {"choices": [held.state]}}
    if held.state != REJECTED:
        return [chosen]
    return [chosen, {**place, "from_name": "reason", "type": "textarea", "value": {"text": [reasons_of(log, held)]}}]
