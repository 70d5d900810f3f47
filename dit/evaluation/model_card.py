"""The model card of an exported model, as the README.md of a model on the Hugging Face hub.

It has what the run's files say, and a section only where they say something. What a card cannot do without, the
licences of the weights and of the training data, must be given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dit import __version__
from dit.build import without_captions
from dit.data.data_card import table
from dit.evaluation.card import Card
from dit.evaluation.statistics import text_with_interval
from dit.files import read_json, sha256_of
from dit.runs import Run

TEMPLATE = """---
{{ card_data }}
---
# {{ name }}

A {{ kind }} with {{ parameters }} parameters, trained with dit until step {{ step }}; these are the weights
`{{ weights }}`.

## Files

{{ files }}

## Training

{{ training }}

`config.yaml` of the run has the SHA-256 {{ config_sha256 }}.{{ commit }}

## Training data

{{ rows }} of {{ available }} pictures, used {{ uses }} times in all, by their licences:

{{ licences }}

{{ scores }}
## Marks and policy

These weights put no watermark and no Content Credentials into their pictures, and refuse no prompt. The commands
`generate` and `serve` of dit do both: `marks`, `certificate`, `policy`.

## Limits

The model draws what the captions of its training data name, with the faults of these data. Scores hold for the protocol
that stands beside them.
"""
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def check_licence(licence: str) -> None:
    """Raises ValueError for a name that the hub would not take."""
    if LICENCE.fullmatch(licence) is None or licence in ("other", "unknown"):
        raise ValueError(
            f"licence={licence}: give the name of one licence as the hub writes it, such as apache-2.0 or cc-by-4.0"
        )


def provenance_of(run: Run) -> Mapping[str, Any]:
    """Returns the summary that `dit-provenance` wrote of a checkpoint's training data. Raises ValueError if there is
    none of this checkpoint."""
    file = run.path.parents[1] / "provenance" / "summary.json"
    make = f"python -m dit.cli.provenance ckpt={run.path}"
    if not file.is_file():
        raise ValueError(f"a model card needs the licences of the training data, and there is no {file}: first {make}")
    found: Mapping[str, Any] = read_json(file)
    if (found["checkpoint"], found["step"]) != (name_of(run), run.step):
        raise ValueError(f"{file} is of {found['checkpoint']}, and the model card of {name_of(run)}: first {make}")
    return found


def name_of(run: Run) -> str:
    return f"{run.path.parents[1].name}/{run.path.name}"


def scores_of(run: Run, weights: str) -> Card | None:
    """Returns the card of the newest evaluation of a checkpoint: that of the best cell on fresh noise, which did not
    choose it, or else the only one; None without such a card."""
    files = sorted(run.path.parents[1].glob("evaluations/*/results.json"), key=lambda file: -file.stat().st_mtime)
    for content in (read_json(file, nan=True) for file in files):
        again = [content["again"]] if content.get("again") else []
        cards = [Card(**found) for found in again or (content["cards"] if len(content["cards"]) == 1 else [])]
        for card in cards:
            if card.failed is None and (card.subject.get("checkpoint"), card.subject.get("weights")) == (
                name_of(run),
                weights,
            ):
                return card
    return None


def model_card(run: Run, name: str, weights: str, licence: str, library: str, files: Sequence[str]) -> str:
    """Returns the card as text. name: of the model; weights: which of the run's; licence: of the weights, by the hub's
    name; library: that reads the files; files: what they are, one sentence each. Raises ValueError as `check_licence`
    and `provenance_of`."""
    check_licence(licence)
    data, card, folder = provenance_of(run), scores_of(run, weights), run.path.parents[1]
    task = "unconditional-image-generation" if without_captions(run.config) else "text-to-image"
    recorded = read_json(folder / "environment.json", nan=True) if (folder / "environment.json").is_file() else {}
    commit = recorded.get("git_commit")
    backbone = run.pipeline.backbone
    licences = [(which, found["rows"], found["uses"]) for which, found in data["licences"].items()]
    card_data = ModelCardData(
        license=licence,
        library_name=library,
        pipeline_tag=task,
        tags=["diffusion-transformer", "dit"],
        model_name=name,
        eval_results=results_of(card, task),
    )
    made = ModelCard.from_template(
        card_data,
        template_str=TEMPLATE,
        name=name,
        kind=f"diffusion transformer ({type(backbone).__name__})",
        parameters=f"{sum(parameter.numel() for parameter in backbone.parameters()):,}",
        step=run.step,
        weights=weights,
        files="\n".join(f"- {text[0].upper()}{text[1:]}." for text in files),
        training=table(["setting", "value"], settings_of(run)),
        config_sha256=sha256_of(folder / "config.yaml"),
        commit=f" The code was at commit {commit}." if commit else "",
        rows=data["rows"],
        available=data["available"],
        uses=data["uses"],
        licences=table(["licence", "pictures", "uses"], licences, 50),
        scores=scores_section(card),
    )
    return str(made)


def settings_of(run: Run) -> list[tuple[str, str]]:
    """Returns the settings of a training that a reader looks for first."""
    config, parts = run.config, run.pipeline
    found = {
        "path": type(parts.path).__name__,
        "prediction": type(parts.prediction).__name__,
        "autoencoder": type(parts.autoencoder).__name__,
        "text encoder": type(parts.text_encoder).__name__,
        "latent shape": " x ".join(map(str, parts.latent_shape)),
        "batch size": config.get("batch_size"),
        "learning rate": config.get("optimizer", {}).get("lr"),
        "seed": config.get("seed"),
        "dit that wrote this card": __version__,
    }
    return [(name, str(value)) for name, value in found.items() if value is not None]


def results_of(card: Card | None, task: str) -> list[EvalResult] | None:
    """Returns the scores that the hub shows."""
    if card is None:
        return None
    protocol = card.protocol
    data = f"{protocol['n']} prompts, {protocol['prompts_from']}"
    return [
        EvalResult(
            task_type=task,
            dataset_type="dit-evaluate",
            dataset_name=data,
            metric_type=name,
            metric_name=name,
            metric_value=card.scores[name],
        )
        for name in card.headlines
        if name in card.scores
    ]


def scores_section(card: Card | None) -> str:
    """Returns the scores with their intervals and what they depend on, or "" without any."""
    if card is None:
        return ""
    lines = [
        (name, text_with_interval(value, card.intervals.get(name)), direction(card, name))
        for name, value in card.scores.items()
    ]
    subject, protocol = card.subject, card.protocol
    asked = ", ".join(f"{name} {subject[name]}" for name in ("sampler", "steps", "guidance", "grid") if name in subject)
    size = " x ".join(map(str, protocol["size"]))
    chosen = "; the recipe was chosen on other noise" if "again" in subject else ""
    return f"""## Scores

Of {protocol["n"]} pictures of {size} pixels, from prompts that are {protocol["prompts_from"]}, with {asked}{chosen}.
Intervals hold with 95 %.

{table(["score", "value", "better"], lines, 50)}
"""


def direction(card: Card, name: str) -> str:
    return {True: "higher", False: "lower", None: ""}[card.headlines.get(name)]
