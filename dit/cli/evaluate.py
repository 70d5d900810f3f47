"""Scores of trained runs, of other people's models and of pictures: from a config to a directory of results."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before the imports below, which take seconds, the command line is checked
    from dit.cli.front import front_door

    front_door("evaluate", "dit.cli.evaluate:evaluate")
    sys.exit()

from hydra.utils import instantiate
from omegaconf import DictConfig

from dit import __version__
from dit.cli.quiet import quiet
from dit.code_digest import code_digest
from dit.data.shapes import Shapes
from dit.devices import device_of
from dit.distributed import init_process_group, rank_and_world_size
from dit.environment import environment
from dit.evaluation.card import Card, Fields, read_parts
from dit.evaluation.floors import floors
from dit.evaluation.likelihood import BitsPerDim
from dit.evaluation.model_scores import ModelScores
from dit.evaluation.prior import Parts, PriorSweep
from dit.evaluation.prompts import class_prompts_of, prompts_from, prompts_of
from dit.evaluation.report import write_report
from dit.evaluation.results import Results
from dit.evaluation.selftest import COUNT as SELF_TEST
from dit.evaluation.selftest import self_test
from dit.evaluation.sources import reference_at
from dit.evaluation.subjects import Subject, code_outside, subject_of
from dit.evaluation.sweep import RESULT_CODE, Cell, Protocol, Sweep, digest_of
from dit.evaluation.tables import plain_row
from dit.evaluation.trade_off import TradeOff
from dit.metrics.base import ImageMetric
from dit.metrics.prior_drift import PriorDrift
from dit.metrics.statistics import Statistics
from dit.plain_values import plain
from dit.scoring.references import protocol_fields, update_references
from dit.training.loggers import wandb_run
from dit.trust import give_consent
from dit.types import CaptionedImages

Reals = dict[str, CaptionedImages]


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


def protocol_of(
    cfg: DictConfig,
    subject: Subject,
    metrics: Mapping[str, dict[str, Any]],
    code: Mapping[str, Mapping[str, str]],
    real: Mapping[str, CaptionedImages],
    statistics: Statistics | None,
    counts: Mapping[str, int],
    prompts: Sequence[str],
) -> Protocol:
    """All that the scores depend on besides what is scored. code: of each metric's parts from outside dit."""
    card = {
        **protocol_fields(prompts, cfg.seed, real, counts),
        "prompts_from": prompts_from(cfg, subject),
        "metrics": dict(metrics),
        "uint8": "round",
    }
    if statistics is not None:
        card["reference"]["val"] = {"statistics": statistics.fingerprint}
    outside = {f"code of {part}": digest for parts in code.values() for part, digest in parts.items()}
    versions = {"dit": __version__, "code": code_digest(*RESULT_CODE), **outside, **environment()["packages"]}
    return Protocol(card, versions, prompts, cfg.seed, min(cfg.shown, len(prompts)))


def real_pictures(
    cfg: DictConfig, subject: Subject, metrics: Mapping[str, ImageMetric]
) -> tuple[Reals, Statistics | None]:
    """The real pictures that are needed: held-out ones, for the metrics and for the floors, and those of training and
    of the subject where a metric needs them; or the statistics that stand for the held-out ones."""
    found: Reals = {}
    statistics = None
    needed = {"val", *(metric.reference_split for metric in metrics.values())}
    for split, own in (("val", cfg.real), ("train", cfg.train), ("subject", cfg.subject)):
        if split not in needed:
            continue
        if isinstance(own, DictConfig):
            source = instantiate(own)
        elif own is not None:
            source = reference_at(own, cfg.size, cfg.statistics and split == "val", cfg.cache_dir)
        else:
            source = subject.real(split)
        if isinstance(source, Statistics):
            statistics = source
        elif source is not None:
            found[split] = source
    return found, statistics


def log_to_wandb(cfg: DictConfig, folder: Path, rows: Sequence[dict[Any, Any]], pictures: dict[str, bytes]) -> None:
    """The rows as a table, plots and grids as images, and the report, in a run of its own."""
    run = wandb_run(folder, cfg.wandb.project, cfg.wandb.mode, cfg.wandb.group, "evaluate", plain(cfg))
    if run is None:
        return
    import io

    import wandb
    from PIL import Image

    try:
        flattened: list[dict[Any, Any]] = [plain_row(row) for row in rows]
        columns: list[str | int] = list(dict.fromkeys(name for row in flattened for name in row))
        table = wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in flattened])
        images = {name: wandb.Image(Image.open(io.BytesIO(data))) for name, data in pictures.items()}
        page = wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False)
        run.log({"sweep": table, "report": page, **images})
    finally:
        run.finish()


def key_of(protocol: Protocol, subjects: Sequence[Fields]) -> str:
    """Names a folder by the protocol and by what is scored, but for the samplers, steps and scales: more of these join
    the cells that are there."""
    kinds = set()
    for subject in subjects:
        fixed = {k: v for k, v in subject.items() if k not in ("sampler", "steps", "guidance", "recipe")}
        kinds.add(digest_of([fixed, {k: v for k, v in subject.get("recipe", {}).items() if k != "sampler"}]))
    return digest_of([protocol.identity, sorted(kinds)])


def counts_of(cfg: DictConfig, real: Mapping[str, CaptionedImages]) -> dict[str, int]:
    """How many real pictures are references: of training all, unless the config says."""
    wanted = {"val": cfg.references, "train": cfg.train_references or sys.maxsize, "subject": sys.maxsize}
    return {split: min(wanted[split], len(source)) for split, source in real.items()}


def evaluate(cfg: DictConfig) -> Path:
    """Scores what is missing, writes the report, and prints the results' directory as the last line."""
    quiet()
    give_consent(cfg.trust)
    init_process_group()
    subject = subject_of(cfg)
    chosen = chosen_metrics(cfg, subject)
    made, of_models = metrics_of(chosen, device_of(cfg.device))
    drifts = {name: metric for name, metric in made.items() if isinstance(metric, PriorDrift)}
    metrics = {name: metric for name, metric in made.items() if name not in drifts}
    if drifts:
        subject.compare_with_base()
    described = {name: description(chosen[name], metric) for name, metric in made.items()}
    real, statistics = real_pictures(cfg, subject, metrics)
    counts = counts_of(cfg, real)
    models = ModelScores(subject, of_models, chosen, real, cfg.seed)
    prompts: list[str] = []
    if metrics:  # without them no pictures are made: the models alone are scored
        prompts = prompts_of(cfg, subject.captions(), real["val"].captions if "val" in real else ())
    cells = subject.cells(prompts) if metrics else []
    code = {name: code_outside(plain(chosen[name])) for name in made}
    protocol = protocol_of(
        cfg, subject, {name: described[name] for name in metrics}, code, real, statistics, counts, prompts
    )
    scored = [cell.subject for cell in cells] or models.subjects
    folder = (Path(cfg.out) if cfg.out else subject.home / key_of(protocol, scored)).absolute()
    tested = {name: [described[name], code[name]] for name in made}
    sweep = Sweep(metrics, protocol, folder, partial(prepare, cfg, made, tested, real, statistics, counts))
    prior = prior_sweep(cfg, subject, drifts, described, protocol, folder) if drifts and cells else None
    warn_of(sweep.notes)
    model_rows = models.rows(folder / "cells", cfg.batch_size)
    for note in subject.notes if rank_and_world_size()[0] == 0 else ():
        print(f"note: {note}", file=sys.stderr)
    cards = sweep.run(cells)
    parts: list[Parts] = [read_parts(sweep.file(cell)) for cell in cells]
    if prior is not None:
        cards, parts = prior.joined(cards, parts)
    results = Results(
        title=subject.title,
        cards=cards,
        parts=parts,
        strips=[sweep.strip(cell) for cell in cells],
        prompts=prompts,
        headlines=sweep.headlines(len(prompts)) | (prior.headlines if prior else {}),
        notes=[*sweep.notes, *subject.notes, *failed_metrics(cards)],
        models=model_rows,
        floors=floors_of(cfg, subject, sweep, real, counts),
        confirmation=confirm_winner(sweep, cells, cards) if cfg.confirm and len(cells) > 1 else None,
    )
    if rank_and_world_size()[0] == 0:
        pictures = write_report(folder, results, trade_off := TradeOff.of(results, made))
        log_to_wandb(cfg, folder, results.table, pictures)
        print(*(trade_off.sentences() if trade_off else ()), sep="\n", end="\n" * (trade_off is not None))
        print(folder, flush=True)
    if cards and all(card.failed is not None for card in cards):
        raise ValueError(f"nothing could be scored: {cards[0].failed}; see {folder} for every cell")
    return folder


def prepare(
    cfg: DictConfig,
    metrics: Mapping[str, ImageMetric],
    described: Mapping[str, Any],
    real: Reals,
    statistics: Statistics | None,
    counts: Mapping[str, int],
) -> None:
    """Tests the metrics, so that a broken one says so before anything is sampled, and shows them what they measure
    against, but for the drift."""
    pictures: CaptionedImages = real["val"] if "val" in real else Shapes("val", SELF_TEST)
    self_test(metrics, described, pictures, Path(cfg.cache_dir))
    if statistics is not None:
        statistics.load_into(metrics.values())
    else:
        measured = [metric for metric in metrics.values() if not isinstance(metric, PriorDrift)]
        update_references(measured, real, counts, Path(cfg.cache_dir), cfg.batch_size)


def prior_sweep(
    cfg: DictConfig,
    subject: Subject,
    metrics: Mapping[str, PriorDrift],
    described: Mapping[str, Any],
    protocol: Protocol,
    folder: Path,
) -> PriorSweep:
    """Returns the sweep that measures the drift from the model before fine-tuning on prompts of the class."""
    prompts = class_prompts_of(cfg, subject, len(protocol.prompts))
    cells = subject.cells(prompts)
    return PriorSweep(metrics, {name: described[name] for name in metrics}, prompts, cells, protocol, folder)


def warn_of(notes: Sequence[str]) -> None:
    """Prints what a reader should bear in mind, once for all processes."""
    for note in notes if rank_and_world_size()[0] == 0 else ():
        print(f"warning: {note}", file=sys.stderr)


def floors_of(
    cfg: DictConfig, subject: Subject, sweep: Sweep, real: Reals, counts: Mapping[str, int]
) -> dict[str, Card]:
    """Cards of real pictures, where there are some and metrics to score them by."""
    if "val" not in real or not sweep.metrics:
        return {}
    coder = next((pipeline.autoencoder.to(pipeline.device) for _, pipeline, _ in subject.models()), None)
    return floors(sweep, real["val"], counts["val"], cfg.batch_size, coder)


def failed_metrics(cards: Sequence[Card]) -> list[str]:
    """Returns a sentence for each metric that could not score the pictures of some cells."""
    failed = dict.fromkeys((name, reason) for card in cards for name, reason in card.lost.items())
    return [f"{name} is missing where it could not score the pictures: {reason}" for name, reason in failed]


def confirm_winner(sweep: Sweep, cells: Sequence[Cell], cards: Sequence[Card]) -> Card | None:
    """Scores the best cell by the first headline again, on other noise."""
    column, higher = next(iter(cards[0].headlines.items()))
    scored = [(card.scores[column], cell) for card, cell in zip(cards, cells, strict=True) if column in card.scores]
    if not scored:
        return None
    best = (max if higher else min)(scored, key=lambda pair: pair[0])[1]
    return sweep.confirm(best, sweep.protocol.seed + len(sweep.protocol.prompts))
