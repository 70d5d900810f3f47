"""Scores of trained runs, of other people's models and of pictures: from a config to a directory of results."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before the imports below, which take seconds, the command line is checked
    from dit.cli.front import front_door

    front_door("evaluate", "dit.cli.evaluate:evaluate")
    sys.exit()

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from dit import __version__
from dit.cli.quiet import quiet
from dit.code_digest import code_digest
from dit.cost import Meter, Price
from dit.data.shapes import Shapes
from dit.devices import device_of
from dit.distributed import init_process_group, rank_and_world_size
from dit.environment import environment
from dit.evaluation.card import Card, Fields, read_parts
from dit.evaluation.floors import floors
from dit.evaluation.folding import Folded, fold, folded_card
from dit.evaluation.likelihood import BitsPerDim
from dit.evaluation.model_description import code_outside
from dit.evaluation.model_scores import ModelScores
from dit.evaluation.prior import Parts, PriorSweep
from dit.evaluation.prompts import class_prompts_of, prompts_from, prompts_of, unseen_note
from dit.evaluation.real_pictures import Reference, fitting_pictures, real_pictures
from dit.evaluation.report import table_of, write_report
from dit.evaluation.results import Results
from dit.evaluation.selftest import COUNT as SELF_TEST
from dit.evaluation.selftest import self_test
from dit.evaluation.subject import Subject
from dit.evaluation.subjects import subject_of
from dit.evaluation.sweep import RESULT_CODE, Cell, Protocol, Sweep, digest_of
from dit.evaluation.tables import plain_row
from dit.evaluation.trade_off import TradeOff
from dit.metrics.base import ImageMetric
from dit.metrics.prior_drift import PriorDrift
from dit.plain_values import plain
from dit.scoring.fitted_extractors import fit_extractors, learning_extractors
from dit.scoring.references import protocol_fields, update_references
from dit.training.loggers import wandb_run
from dit.trust import give_consent
from dit.types import CaptionedImages


def chosen_metrics(cfg: DictConfig, subject: Subject) -> DictConfig:
    """The config's, or those of the run. Raises ValueError where there are none."""
    chosen = cfg.metric or subject.metric
    if not chosen:
        raise ValueError("there is no run that says by what to score: choose metrics, e.g. metric=[fid,clip_score]")
    return chosen


def metrics_of(chosen: DictConfig, device: str) -> tuple[dict[str, ImageMetric], dict[str, BitsPerDim]]:
    """What judges pictures, and what judges the models themselves, by their names. Raises ValueError for neither."""
    made = {str(name): instantiate(node) for name, node in chosen.items()}
    metrics = {name: metric.to(device) for name, metric in made.items() if isinstance(metric, ImageMetric)}
    of_models = {name: metric for name, metric in made.items() if isinstance(metric, BitsPerDim)}
    if not metrics and not of_models:
        raise ValueError("there is no metric to score with; choose some, e.g. metric=[prompt_accuracy]")
    return metrics, of_models


def description(node: DictConfig, metric: ImageMetric) -> dict[str, Any]:
    """A metric's settings, and by its content the network that it looks through, wherever its weights lie."""
    extractor = getattr(metric, "extractor", None)
    return plain(node) | ({} if extractor is None else {"extractor": dict(extractor.protocol)})


@dataclass(frozen=True)
class Measures:
    """The metrics of pictures by name. described: each for a card. code: of each one's parts from outside dit."""

    every: Mapping[str, ImageMetric]
    described: Mapping[str, dict[str, Any]]
    code: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, chosen: DictConfig, every: Mapping[str, ImageMetric]) -> Measures:
        described = {name: description(chosen[name], metric) for name, metric in every.items()}
        return cls(every, described, {name: code_outside(plain(chosen[name])) for name in every})

    @property
    def drifts(self) -> dict[str, PriorDrift]:
        """Those that compare with the model before fine-tuning."""
        return {name: metric for name, metric in self.every.items() if isinstance(metric, PriorDrift)}

    @property
    def others(self) -> dict[str, ImageMetric]:
        return {name: metric for name, metric in self.every.items() if not isinstance(metric, PriorDrift)}


def protocol_of(
    cfg: DictConfig,
    subject: Subject,
    measures: Measures,
    reference: Reference,
    prompts: Sequence[str],
    size: tuple[int, int],
) -> Protocol:
    """All that the scores depend on besides what is scored."""
    card = {
        **protocol_fields(prompts, cfg.seed, size, reference.real, reference.counts),
        "prompts_from": prompts_from(cfg, subject),
        "metrics": {name: measures.described[name] for name in measures.others},
        "uint8": "round",
    }
    if reference.statistics is not None:
        card["reference"]["val"] = {"statistics": reference.statistics.fingerprint}
    outside = {f"code of {part}": digest for parts in measures.code.values() for part, digest in parts.items()}
    versions = {"dit": __version__, "code": code_digest(*RESULT_CODE), **outside, **environment()["packages"]}
    return Protocol(card, versions, prompts, cfg.seed, min(cfg.shown, len(prompts)))


def log_to_wandb(
    cfg: DictConfig, folder: Path, tables: Mapping[str, Sequence[dict[Any, Any]]], pictures: dict[str, bytes]
) -> None:
    """The rows of each table, plots and grids as images, and the report, in a run of its own."""
    run = wandb_run(folder, cfg.wandb.project, cfg.wandb.mode, cfg.wandb.group, "evaluate", plain(cfg))
    if run is None:
        return
    import io

    import wandb
    from PIL import Image

    try:
        made = {}
        for title, rows in tables.items():
            flattened: list[dict[Any, Any]] = [plain_row(row) for row in rows]
            columns: list[str | int] = list(dict.fromkeys(name for row in flattened for name in row))
            made[title] = wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in flattened])
        images = {name: wandb.Image(Image.open(io.BytesIO(data))) for name, data in pictures.items()}
        page = wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False)
        run.log({**made, "report": page, **images})
    finally:
        run.finish()


def key_of(protocol: Protocol, subjects: Sequence[Fields]) -> str:
    """Names a folder by the protocol and by what is scored, but for the samplers, steps and scales: more of these join
    the cells that are there."""
    kinds = set()
    for subject in subjects:
        swept = ("adapter_scale", "sampler", "steps", "guidance", "cache", "recipe")
        fixed = {k: v for k, v in subject.items() if k not in swept}
        recipe = {k: v for k, v in subject.get("recipe", {}).items() if k not in ("sampler", "cache")}
        kinds.add(digest_of([fixed, recipe]))
    return digest_of([protocol.identity, sorted(kinds)])


def evaluate(cfg: DictConfig) -> Path:
    """Scores what is missing, writes the report, and prints the results' directory as the last line."""
    quiet()
    give_consent(cfg.trust)
    init_process_group()
    Price(**plain(cfg.cost))  # refused before anything is sampled
    subject = subject_of(cfg)
    chosen = chosen_metrics(cfg, subject)
    made, of_models = metrics_of(chosen, device_of(cfg.device))
    if learning_extractors(made.values()):
        fit_extractors(made.values(), fitting_pictures(cfg, subject), Path(cfg.cache_dir))
    measures = Measures.of(chosen, made)
    if measures.drifts:
        subject.compare_with_base()
    references = [real_pictures(cfg, subject, measures.others, size) for size in subject.sizes]
    models = ModelScores(subject, of_models, chosen, references[0].real, cfg.seed)
    # without metrics of pictures none are made: the models alone are scored
    prompts = prompts_of(cfg, subject, references[0].captions) if measures.others else []
    cells = subject.cells(prompts) if measures.others else []
    sweeps = sweeps_of(cfg, subject, measures, references, prompts, cells or models.subjects)
    folder = sweeps[0].folder
    unseen = unseen_note(cfg, subject, prompts, folder)
    warn_of([*dict.fromkeys(note for sweep in sweeps for note in sweep.notes), *unseen])
    model_rows = models.rows(folder / "cells", cfg.batch_size)
    for note in subject.notes if rank_and_world_size()[0] == 0 else ():
        print(f"note: {note}", file=sys.stderr)
    several = [
        scored(cfg, subject, measures, sweep, reference, of_size(cells, sweep.protocol))
        for sweep, reference in zip(sweeps, references, strict=True)
    ]
    several[0] = replace(several[0], models=model_rows, notes=[*several[0].notes, *unseen])
    if rank_and_world_size()[0] == 0:
        trade_offs = [TradeOff.of(results, made) for results in several]
        pictures = write_report(folder, several, trade_offs)
        tables = {"sweep": table_of(several), "models": several[0].table_of_models}
        log_to_wandb(cfg, folder, {title: rows for title, rows in tables.items() if rows}, pictures)
        for trade_off in filter(None, trade_offs):
            print(*trade_off.sentences(), sep="\n")
        print(folder, flush=True)
    cards = [card for results in several for card in results.cards]
    if cards and all(card.failed is not None for card in cards):
        raise ValueError(f"nothing could be scored: {cards[0].failed}; see {folder} for every cell")
    return folder


def of_size(cells: Sequence[Cell], protocol: Protocol) -> list[Cell]:
    """The cells that the protocol scores."""
    return [cell for cell in cells if cell.size == protocol.size]


def sweeps_of(
    cfg: DictConfig,
    subject: Subject,
    measures: Measures,
    references: Sequence[Reference],
    prompts: Sequence[str],
    found: Sequence[Cell] | Sequence[Fields],
) -> list[Sweep]:
    """A sweep for each size of the subject, each with its protocol. Their folder is named by the first size, so that
    more sizes join the cells that are there. found: the cells, or else the descriptions of the models."""
    protocols = [
        protocol_of(cfg, subject, measures, reference, prompts, size)
        for reference, size in zip(references, subject.sizes, strict=True)
    ]
    kinds = [one.subject if isinstance(one, Cell) else one for one in found]
    kinds = [fields for fields in kinds if fields.get("size", protocols[0].size) == protocols[0].size]
    meter = Meter(torch.device(device_of(cfg.device)))
    folder = (Path(cfg.out) if cfg.out else subject.home / key_of(protocols[0], kinds)).absolute()
    return [
        Sweep(measures.others, protocol, folder, partial(prepare, cfg, measures, reference), meter)
        for protocol, reference in zip(protocols, references, strict=True)
    ]


def scored(
    cfg: DictConfig,
    subject: Subject,
    measures: Measures,
    sweep: Sweep,
    reference: Reference,
    cells: Sequence[Cell],
) -> Results:
    """The results of one size, after scoring what is missing."""
    prior = prior_sweep(cfg, subject, measures, sweep) if measures.drifts and cells else None
    cards = sweep.run(cells)
    parts: list[Parts] = [read_parts(sweep.file(cell)) for cell in cells]
    if prior is not None:
        cards, parts = prior.joined(cards, parts)
    prompts = sweep.protocol.prompts
    results = Results(
        title=subject.title,
        cards=cards,
        parts=parts,
        strips=[sweep.strip(cell) for cell in cells],
        prompts=prompts,
        headlines=sweep.headlines(len(prompts)) | (prior.headlines if prior else {}),
        notes=[*sweep.notes, *subject.notes, *reference.notes, *failed_metrics(cards)],
        floors=floors_of(cfg, subject, sweep, reference),
        settings=subject.settings(cells),
        price=Price(**plain(cfg.cost)),
    )
    return replace(results, confirmation=confirm_winner(sweep, cells, results)) if cfg.confirm else results


def prepare(cfg: DictConfig, measures: Measures, reference: Reference) -> None:
    """Tests the metrics, so that a broken one says so before anything is sampled, and shows them what they measure
    against, but for the drift."""
    real, every = reference.real, measures.every
    pictures: CaptionedImages = real["val"] if "val" in real else Shapes("val", SELF_TEST)
    tested = {name: [measures.described[name], measures.code[name]] for name in every}
    self_test(every, tested, pictures, Path(cfg.cache_dir))
    if reference.statistics is not None:
        reference.statistics.load_into(measures.others.values())
    else:
        update_references(measures.others.values(), real, reference.counts, Path(cfg.cache_dir), cfg.batch_size)


def prior_sweep(cfg: DictConfig, subject: Subject, measures: Measures, sweep: Sweep) -> PriorSweep:
    """Returns the sweep that measures the drift from the model before fine-tuning on prompts of the class."""
    protocol, drifts = sweep.protocol, measures.drifts
    prompts = class_prompts_of(cfg, subject, len(protocol.prompts))
    cells, described = of_size(subject.cells(prompts), protocol), {name: measures.described[name] for name in drifts}
    return PriorSweep(drifts, described, prompts, cells, protocol, sweep.folder)


def warn_of(notes: Sequence[str]) -> None:
    """Prints what a reader should bear in mind, once for all processes."""
    for note in notes if rank_and_world_size()[0] == 0 else ():
        print(f"warning: {note}", file=sys.stderr)


def floors_of(cfg: DictConfig, subject: Subject, sweep: Sweep, reference: Reference) -> dict[str, Card]:
    """Cards of real pictures, where there are some and metrics to score them by."""
    if "val" not in reference.real or not sweep.metrics:
        return {}
    pipelines = (model.pipeline for model in subject.models())
    coder = next((pipeline.autoencoder.to(pipeline.device) for pipeline in pipelines), None)
    return floors(sweep, reference.real["val"], reference.counts["val"], cfg.batch_size, coder)


def failed_metrics(cards: Sequence[Card]) -> list[str]:
    """Returns a sentence for each metric that could not score the pictures of some cells."""
    failed = dict.fromkeys((name, reason) for card in cards for name, reason in card.lost.items())
    return [f"{name} is missing where it could not score the pictures: {reason}" for name, reason in failed]


def confirm_winner(sweep: Sweep, cells: Sequence[Cell], results: Results) -> Card | None:
    """Scores the best of several cells by the first headline again, on other noise; of folded results the cells of all
    its runs, and returns their mean. Returns None for a single cell, and if no cell has a headline."""
    folded = fold(results)
    if len(folded.cards) < 2 or not folded.scores:
        return None
    best = folded.best_place(folded.scores[0])
    seed = sweep.protocol.seed + len(sweep.protocol.prompts)
    if not isinstance(folded, Folded):
        return sweep.confirm(cells[best], seed)
    again = [sweep.confirm(cells[i], seed) for i in folded.places[best]]
    return folded_card([card for card in again if card.failed is None] or again[:1], folded.shares)
