"""The data card of a synthetic data set, as the README.md of a data set on the Hugging Face hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit import __version__
from dit.data.data_card import table
from dit.generation.output import Output
from dit.generation.rows import json_of
from dit.generation.synthesis import Filter, Quotas

MOST = 50  # captions in the table


def card_of(
    output: Output, about: Mapping[str, Any], filter: Filter, data: Mapping[str, Any], licences: str, rejects: Path
) -> str:
    """Returns the card as Markdown. about: what is recorded of the model; data: the settings of its training data;
    licences: of these, in words; rejects: the folder of the rejected pictures."""
    quotas = output.work
    assert isinstance(quotas, Quotas)
    kept, tried, reasons = Counter[int](), Counter[int](), Counter[str]()
    for row in output.rows():
        tried[row["label"]] += 1
        kept[row["label"]] += "file" in row
        if "rejected" in row:
            reasons[row["rejected"].partition(":")[0]] += 1
    name = Path(output.fields.get("out", output.folder)).name  # not that of a holding folder
    lines = [(label, caption, kept[label], tried[label]) for label, caption in enumerate(quotas.captions)]
    total, made = sum(kept.values()), sum(tried.values())
    trained = data.get("path") or data.get("name") or data["module"]["train"]["_target_"]
    where = rejects.relative_to(output.folder.parent)
    confirmed = "what a checker confirmed in the picture" if filter.checker else "nothing confirms it in the picture"
    return f"""---
tags: [synthetic]
pretty_name: {name}
---
# {name}

Every picture of this data set is synthetic: sampled from a diffusion model (the IPTC's digital source type
`trainedAlgorithmicMedia`).

- Pictures: {total}, of {len(quotas.captions)} captions; {quotas.count} were ordered. {made - total} of the
  {made} that were made are rejected.
- Labels: `label` is the number of the caption in the table below, and `prompt` (`text` in metadata.jsonl) is the
  caption. The label is what the model was given, and {confirmed}.
- Model: {about["model"]}, step {about["step"]}, weights {about["weights"]}; dit {__version__}, code {about["code"]}.
- Recipe: `{json_of(about["recipe"])}`
- Training data of the model: {trained}. Licences: {licences}.

## Rejected pictures

{table(["reason", "pictures"], reasons.most_common()) if reasons else "None."}

{f"They are kept in `{where}`; `generated.jsonl` has the reason of each." if reasons else ""}

- Checker: {type(filter.checker).__name__ if filter.checker else "none"}.
- Duplicates: {described(filter)}

## Pictures of each caption

{table(["label", "caption", "kept", "made"], lines, MOST)}

## Limits

The pictures show what the model learned, with its faults, and no more. To measure what they are worth for a task, train
on them and test on real pictures.
"""


def described(filter: Filter) -> str:
    """Returns in words how duplicates were found."""
    found = filter.duplicates
    if found is None:
        return "not looked for."
    where = "the same caption" if found.by_caption else "all captions"
    count = sum(map(len, found.real.values()))
    measure = type(found.measure).__name__
    return (
        f"{measure}, at most {found.threshold:.3g} {found.measure.unit} from an earlier picture of the caption, or "
        f"from one of {count} training pictures of {where}."
    )


def unfilled(output: Output) -> Sequence[str]:
    """Returns the captions with fewer pictures than ordered."""
    quotas = output.work
    assert isinstance(quotas, Quotas)
    kept = Counter(row["label"] for row in output.rows() if "file" in row)
    return [caption for label, caption in enumerate(quotas.captions) if kept[label] < quotas.quota(label)]
