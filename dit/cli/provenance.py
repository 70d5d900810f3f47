"""Says which rows a checkpoint was trained on: `python -m dit.cli.provenance ckpt=RUN`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dit.cli.front import front_door

if TYPE_CHECKING:
    import pyarrow as pa

    from dit.data.data_card import Trained

RELATED = {"batch_size": "data.module.batch_size", "seed": "data.module.seed"}  # the same value under another key
FILE = "rows.parquet"


def history(run: DictConfig, folder: Path, step: int) -> list[tuple[int, int, DictConfig]]:
    """Returns the parts of a training until a step: first step, last step + 1, and the config, which changes where the
    run was resumed with other values (environment.json)."""
    from dit.config_check import check_config
    from dit.files import read_json
    from dit.plain_values import plain

    file = folder / "environment.json"
    found = read_json(file, nan=True).get("resumed", []) if file.is_file() else []
    resumed = [entry for entry in found if entry["step"] <= step]
    configs = [run]
    for entry in reversed(resumed):
        before = DictConfig(OmegaConf.to_container(configs[0]))
        for key, values in entry["changed"].items():
            for name in (key, RELATED.get(key)):
                if name is not None and OmegaConf.select(before, name) is not None:
                    OmegaConf.update(before, name, values["from"])
        check_config("train", plain(before), trusted=False)  # environment.json may name no code either
        configs.insert(0, before)
    parts: list[tuple[int, int, DictConfig]] = [(0, step, configs[0])]
    for entry, config in zip(resumed, configs[1:], strict=True):
        parts = [(first, min(last, entry["step"]), old) for first, last, old in parts if first < entry["step"]]
        parts.append((entry["step"], step, config))
    return [part for part in parts if part[0] < part[1]]


def kept_steps(first: int, last: int, undone: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the parts of the steps `first` to `last` - 1, counted from 0, that are not undone. undone: first and last
    steps, counted from 1."""
    parts = [(first, last)]
    for begin, end in undone:
        pieces = [piece for a, b in parts for piece in ((a, min(b, begin - 1)), (max(a, end), b))]
        parts = [(a, b) for a, b in pieces if a < b]
    return parts


def rows_with_uses(
    parts: list[tuple[int, int, DictConfig]], recorded: dict[str, Any], undone: Iterable[tuple[int, int]] = ()
) -> pa.Table:
    """Returns the training rows with captions, whether they were used or not, and the column `uses`. undone: as in
    `kept_steps`. Raises ValueError if the data are not those of the training."""
    import numpy as np
    import pyarrow as pa
    from hydra.utils import instantiate

    from dit.data.uses import rows_of_source, uses_of

    tables: dict[str, tuple[pa.Table, Any]] = {}
    for first, last, config in parts:
        data = instantiate(config.data.module)
        if config is parts[-1][2]:
            check_data(data.description, recorded)
        for sources, order in data.orders():  # the samples of a step do not depend on how its gradient is accumulated
            key, samples = " ".join(source.fingerprint for source in sources), sum(map(len, sources))
            if key not in tables:
                rows = pa.concat_tables(map(rows_of_source, sources), promote_options="permissive")
                tables[key] = rows, np.zeros(samples, np.int64)
            for begin, end in kept_steps(first, last, undone):
                tables[key][1][:] += uses_of(order, samples, begin, end)
    return pa.concat_tables(
        [rows.append_column("uses", pa.array(counts)) for rows, counts in tables.values()],
        promote_options="permissive",
    )


def check_data(found: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Raises ValueError if the training images are not those that the run has recorded."""
    for name in ("train", "extra"):
        now, then = (where.get(name, {}).get("fingerprint") for where in (found, recorded))
        if then is not None and now != then:
            raise ValueError(
                f"the {name} images have changed since the training (fingerprint {now}, not {then}): which rows were "
                f"seen cannot be said; give back the files that it was trained on"
            )


def report(trained: Trained) -> str:
    """Returns the rows and uses of each licence as text."""
    from dit.data.data_card import shares
    from dit.data.provenance import NONE

    rows, uses = trained.rows, trained.uses
    times = rows["uses"].to_pylist()
    lines = [
        f"{trained.name}, step {trained.step}: {uses} uses of {len(rows)} of {trained.available} rows, each "
        f"{min(times, default=0)} to {max(times, default=0)} times",
        f"{'licence':<24} {'rows':>9} {'uses':>11} {'share':>7}",
    ]
    lines += [
        f"{licence:<24} {count:>9} {used:>11} {used / uses:>7.1%}"
        for licence, count, used in shares(rows, "licence", NONE)
    ]
    return "\n".join(lines)


def loss_without(trained: Trained, file: str) -> dict[str, Any]:
    """Returns what a training without the rows that a list names would lose. Raises ValueError if it names none of the
    rows that were used."""
    import re

    from dit.data.data_card import values
    from dit.data.provenance import NONE, Exclusions

    listed = Exclusions(file)
    entries = trained.rows.to_pylist()
    named = [listed.names(row) for row in entries]
    gone = [row for row, out in zip(entries, named, strict=True) if out]
    if not gone:
        raise ValueError(f"without={file} names none of the {len(entries)} rows that {trained.name} has used")

    def words(rows: list[dict[str, Any]]) -> set[str]:
        return {word for row in rows for word in re.findall(r"\w+", row["caption"].lower())}

    kept = [row for row, out in zip(entries, named, strict=True) if not out]
    licences = values(trained.rows, "licence", NONE)
    of = {out: {licence for licence, is_out in zip(licences, named, strict=True) if is_out == out} for out in (0, 1)}
    return {
        "rows": len(gone),
        "share_of_rows": len(gone) / len(entries),
        "uses": sum(row["uses"] for row in gone),
        "share_of_uses": sum(row["uses"] for row in gone) / trained.uses,
        "licences": sorted(of[1] - of[0]),
        "words": sorted(words(gone) - words(kept)),
    }


def provenance(cfg: DictConfig) -> Path:
    """Prints the rows and uses of each licence, writes rows.parquet, data_card.md, croissant.json and summary.json, and
    prints their folder as the last line."""
    # Slow imports follow after the command line is checked.
    import hashlib
    import json
    from io import BytesIO

    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from dit.checkpoints.native import config_of, find_checkpoint
    from dit.cli.quiet import quiet
    from dit.data.data_card import Trained, croissant, eu_summary, shares
    from dit.data.provenance import NONE
    from dit.errors import some
    from dit.files import read_json, write_atomic
    from dit.plain_values import plain
    from dit.trust import give_consent

    quiet()
    give_consent(cfg.trust)
    path, checkpoint = find_checkpoint(cfg.ckpt)
    run, folder, step = config_of(path, checkpoint), path.parents[1], int(checkpoint["global_step"])
    file = folder / "environment.json"
    recorded = read_json(file, nan=True).get("data", {}) if file.is_file() else {}
    if not recorded:
        print(f"note: {folder} does not record its data; they are taken to be unchanged", file=sys.stderr)
    undone = checkpoint.get("callbacks", {}).get("StabilityGuard", {}).get("undone", [])  # skipped or rolled back
    rows = rows_with_uses(history(run, folder, step), recorded, undone)
    seen = rows.filter(pc.greater(rows["uses"], 0)).sort_by([("uses", "descending")])
    trained = Trained(f"{folder.name}/{path.name}", step, seen, len(rows), plain(run.data))
    print(report(trained))
    summary: dict[str, Any] = {
        "checkpoint": trained.name,
        "step": step,
        "rows": len(seen),
        "available": len(rows),
        "uses": trained.uses,
        "licences": {name: {"rows": count, "uses": used} for name, count, used in shares(seen, "licence", NONE)},
    }
    if cfg.without is not None:
        lost = summary["without"] = loss_without(trained, cfg.without)
        print(
            f"without the rows of {cfg.without}: {lost['rows']} rows fewer ({lost['share_of_rows']:.1%}), which are "
            f"{lost['share_of_uses']:.1%} of the uses; licences of which no row is left: "
            f"{some(lost['licences'], 5) or 'none'}; words of which no caption is left: "
            f"{some(lost['words'], 10) or 'none'}"
        )
    out = (folder / "provenance" if cfg.out is None else Path(cfg.out)).absolute()
    buffer = BytesIO()
    pq.write_table(pa.table(seen), buffer, compression="zstd")
    write_atomic(out / FILE, buffer.getvalue())
    write_atomic(out / "data_card.md", eu_summary(trained))
    card = croissant(trained, FILE, hashlib.sha256(buffer.getvalue()).hexdigest())
    write_atomic(out / "croissant.json", json.dumps(card, indent=2) + "\n")
    write_atomic(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(out, flush=True)
    return out


if __name__ == "__main__":
    front_door("provenance", "dit.cli.provenance:provenance")
