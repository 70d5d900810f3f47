"""The prompts of an evaluation, from its config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from dit.data.captions import all_captions
from dit.distributed import rank_and_world_size
from dit.errors import shortened, some
from dit.evaluation.real_pictures import DEFAULT_N
from dit.evaluation.subject import Subject
from dit.files import read_lines, write_atomic
from dit.scoring.prompts import held_out_prompts
from dit.scoring.references import CHOSEN, subset_indices
from dit.scoring.unseen_words import training_words, unseen_words


def given_prompts(value: str | Sequence[str] | None) -> list[str] | None:
    """Returns a list, the lines of a .txt file or a single prompt as a list; None for None."""
    if isinstance(value, str):
        return [line.strip() for line in read_lines(value) if line.strip()] if value.endswith(".txt") else [value]
    return None if value is None else list(value)


def prompts_of(cfg: DictConfig, subject: Subject, held_out: Sequence[str]) -> list[str]:
    """n prompts: the config's own or those of a text file, a line each, repeated; or the captions of the pictures that
    are scored; or, in random order, captions of what a run was fine-tuned on, or held-out captions."""
    theirs, taught = subject.captions(), subject.prompts() if cfg.prompts is None else None
    held_out = held_out if taught is None else taught
    for name in ("n", "shown", "references"):
        if cfg[name] is not None and (not isinstance(cfg[name], int) or cfg[name] < 1):
            raise ValueError(f"{name}={cfg[name]} must be a whole number and at least 1")
    own: Sequence[str] | None = given_prompts(cfg.prompts)
    if own is None:
        own = held_out if theirs is None else theirs
        if theirs is None and cfg.real is not None and held_out and not any(held_out):
            raise ValueError(
                f"real={cfg.real} has no captions to be prompts; give some, e.g. prompts=FILE.txt, or prompts=[''] for "
                f"a model that needs none"
            )
    if not own:
        raise ValueError(
            "the list of prompts is empty; give at least one, e.g. prompts='[a red star]' or prompts=FILE.txt"
        )
    n = cfg.n or (DEFAULT_N if theirs is None else len(theirs))
    if own is held_out:
        return held_out_prompts(held_out, n)
    if theirs is None or n >= len(theirs):  # `given_pictures` refuses more
        return [str(own[i % len(own)]) for i in range(n)]
    if 1 < len(own) < len(theirs):
        raise ValueError(
            f"prompts={cfg.prompts}: {len(own)} prompts for {len(theirs)} pictures, of which n={n} are chosen at "
            f"random; give one prompt for each picture, or one for all"
        )
    return [str(own[i % len(own)]) for i in subset_indices(len(theirs), n)]


def class_prompts_of(cfg: DictConfig, subject: Subject, n: int) -> list[str]:
    """Returns n prompts of the class, repeated: the config's, or those of the run. Raises ValueError without any."""
    own = given_prompts(cfg.class_prompts) or subject.class_prompts()
    if not own:
        raise ValueError(
            "prior drift needs prompts of what the model could draw before fine-tuning, and the run names none; give "
            "some, e.g. class_prompts='[a photo of a dog]' or class_prompts=FILE.txt"
        )
    return [str(own[i % len(own)]) for i in range(n)]


def prompts_from(cfg: DictConfig, subject: Subject) -> str:
    """Returns where the prompts come from, for the card."""
    if cfg.prompts is not None:
        return "the config"
    if subject.captions() is not None:
        return "captions of the pictures"
    return f"held-out captions, {CHOSEN}" if subject.prompts() is None else f"captions of the subject, {CHOSEN}"


def unseen_note(cfg: DictConfig, subject: Subject, prompts: Sequence[str], folder: Path) -> list[str]:
    """Returns a sentence on prompts with words that no training caption contains, if they are held-out captions of a
    run: which words, how many prompts, and a file in `folder` of as many training captions to use instead."""
    if cfg.prompts is not None or not any(prompts) or subject.captions() is not None or subject.prompts() is not None:
        return []
    train = subject.real("train")
    captions = [] if train is None else [caption for caption in all_captions(train) if caption]
    if not captions:
        return []
    known = training_words(captions)
    having = [prompt for prompt in prompts if unseen_words([prompt], known)]
    if not having:
        return []
    file = folder / "training_prompts.txt"
    if rank_and_world_size()[0] == 0:
        lines = [" ".join(caption.split()) for caption in held_out_prompts(captions, len(prompts))]
        write_atomic(file, "\n".join(lines) + "\n")
    return [
        f"{len(having)} of {len(prompts)} prompts have words that no training caption contains "
        f"({some(map(repr, unseen_words(having, known)), 8)}), such as {shortened(having[0])!r}; the model cannot know "
        f"them. For training captions instead: prompts={file}"
    ]
