"""Which rows a checkpoint has used, against the batches that training was given."""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from dit.cli.provenance import provenance
from dit.cli.train import train
from dit.data.source import selected
from dit.data.uses import uses_of
from dit.training.diffusion import DiffusionModule

from ..conftest import composed

SMALL = [
    "experiment=folder", "debug=one_batch", "trainer.accelerator=cpu",
    "trainer.max_steps=6", "backbone.width=32", "backbone.depth=1", "backbone.heads=2", "batch_size=8", "data.size=8",
    "data.val_share=0.3", "recipe.steps=1", "callbacks.checkpoints.every=2",
]  # fmt: skip


def trained(folder, pictures, *words):
    places = [f"run_dir={folder}", f"cache_dir={folder.parent / 'cache'}", f"data.path={pictures}"]
    return train(composed("train", [*SMALL, *places, *words]))


@pytest.fixture(autouse=True)
def fresh_selection():
    selected.cache_clear()


@pytest.fixture
def pictures(tmp_path):
    root, draw, lines = tmp_path / "pictures", np.random.default_rng(0), []
    root.mkdir()
    for i in range(40):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "text": f"picture w{i}", "id": f"id{i}"})
        lines[-1] |= {"licence": ["cc0", "cc-by"][i % 2], "url": f"https://{'ab'[i % 2]}.org/{i}"} if i % 4 else {}
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


@pytest.fixture
def given(monkeypatch):
    """The samples of all batches that training was given."""
    found, step = [], DiffusionModule.training_step

    def recording(self, *args, **named):
        batches = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        found.extend(i for batch in batches for i in batch.index.tolist())
        return step(self, *args, **named)

    monkeypatch.setattr(DiffusionModule, "training_step", recording)
    return found


def asked(run, *words):
    out = provenance(composed("provenance", [f"ckpt={run}", *words]))
    return json.loads((out / "summary.json").read_text()), pq.read_table(out / "rows.parquet")


def counts_by_id(rows):
    return dict(zip(rows["id"].to_pylist(), rows["uses"].to_pylist(), strict=True))


def test_rows_are_those_that_training_was_given_with_their_licences(pictures, tmp_path, given, capsys):
    from dit.data.folder import Folder

    run = trained(tmp_path / "run", pictures)
    source = Folder(str(pictures), 8, "train", val_share=0.3)
    expected = Counter(source.provenance["id"][i].as_py() for i in given)
    capsys.readouterr()
    summary, rows = asked(run)
    assert counts_by_id(rows) == expected
    assert summary["uses"] == len(given) == 6 * 8
    assert summary["available"] == len(source)
    licences = Counter(
        "no licence" if i % 4 == 0 else ["cc0", "cc-by"][i % 2] for i in (int(name[2:]) for name in expected)
    )
    assert {name: entry["rows"] for name, entry in summary["licences"].items()} == licences
    assert sum(entry["uses"] for entry in summary["licences"].values()) == 48
    printed = capsys.readouterr().out
    assert f"step 6: 48 uses of {len(expected)} of {len(source)} rows" in printed
    assert "no licence" in printed
    early, _ = asked(run / "checkpoints" / "step_0000004.ckpt", f"out={tmp_path / 'early'}")
    assert (early["step"], early["uses"]) == (4, 32)


@pytest.mark.parametrize(
    ("policy", "undone"), [("skip", slice(2, 3)), ("roll_back", slice(2, 4))], ids=["skip", "roll_back"]
)
def test_rows_of_steps_that_are_not_in_the_weights_are_not_counted(
    pictures, tmp_path, given, monkeypatch, policy, undone
):
    """Step 3 has a loss that is not finite; roll_back finds that after step 4, and continues from step 2."""
    from dit.data.folder import Folder

    loss = DiffusionModule.loss

    def broken(self, *args):
        found = loss(self, *args)
        return replace(found, losses=found.losses * (float("nan") if self.global_step == 2 else 1))

    monkeypatch.setattr(DiffusionModule, "loss", broken)
    parts = 2
    run = trained(
        tmp_path / "run", pictures, f"callbacks.guard.policy={policy}", f"trainer.accumulate_grad_batches={parts}"
    )
    source = Folder(str(pictures), 8, "train", val_share=0.3)
    steps = [given[8 * step : 8 * step + 8] for step in range(6)]
    del steps[undone]
    summary, rows = asked(run)
    assert summary["uses"] == 8 * len(steps)
    assert counts_by_id(rows) == Counter(source.provenance["id"][i].as_py() for step in steps for i in step)


def test_a_resumed_run_with_another_batch_size_counts_each_part_by_its_own(pictures, tmp_path, given):
    from dit.data.folder import Folder

    run = trained(tmp_path / "run", pictures, "trainer.max_steps=4")
    changed = ["resume_override=true", "batch_size=4", "seed=3", "trainer.max_steps=9"]
    trained(tmp_path / "run", pictures, f"resume={run}", *changed)
    source = Folder(str(pictures), 8, "train", val_share=0.3)
    summary, rows = asked(run)
    assert summary["uses"] == len(given) == 4 * 8 + 5 * 4
    assert counts_by_id(rows) == Counter(source.provenance["id"][i].as_py() for i in given)


def test_what_a_training_without_rows_would_lose(pictures, tmp_path, capsys):
    run = trained(tmp_path / "run", pictures)
    (tmp_path / "list.txt").write_text("b.org\n")  # every picture with a licence and an odd number: all of cc-by
    summary, rows = asked(run, f"without={tmp_path / 'list.txt'}")
    listed = {name: uses for name, uses in counts_by_id(rows).items() if int(name[2:]) % 2}
    lost = summary["without"]
    assert (lost["rows"], lost["uses"]) == (len(listed), sum(listed.values()))
    assert lost["share_of_uses"] == pytest.approx(sum(listed.values()) / 48)
    assert lost["licences"] == ["cc-by"]
    assert lost["words"] == sorted(f"w{name[2:]}" for name in listed)
    assert "licences of which no row is left: cc-by" in capsys.readouterr().out
    (tmp_path / "list.txt").write_text("c.org\n")
    with pytest.raises(ValueError, match=r"names none of the \d+ rows that"):
        asked(run, f"without={tmp_path / 'list.txt'}")


def test_changed_data_are_refused(pictures, tmp_path):
    run = trained(tmp_path / "run", pictures)
    for file in sorted(pictures.glob("*.png"))[:10]:
        file.unlink()
    selected.cache_clear()
    with pytest.raises(ValueError, match="train images have changed since the training"):
        asked(run)


def test_a_run_on_data_without_provenance_counts_numbered_samples(tiny_run, tmp_path):
    summary, rows = asked(tiny_run, f"out={tmp_path}")
    assert summary["uses"] == 6 * 8
    assert summary["available"] == 256
    assert summary["licences"] == {"no licence": {"rows": len(rows), "uses": 48}}


def test_the_cards_describe_the_table(pictures, tmp_path):
    run = trained(tmp_path / "run", pictures)
    summary, rows = asked(run, f"out={tmp_path / 'out'}")
    card = json.loads((tmp_path / "out" / "croissant.json").read_text())
    assert card["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    [file] = card["distribution"]
    assert file["sha256"] == hashlib.sha256((tmp_path / "out" / file["contentUrl"]).read_bytes()).hexdigest()
    [records] = card["recordSet"]
    assert [field["source"]["extract"]["column"] for field in records["field"]] == rows.column_names
    assert sorted(card["license"]) == ["cc-by", "cc0"]
    text = (tmp_path / "out" / "data_card.md").read_text()
    for heading in ("## 1. General information", "## 2. List of data sources", "## 3. Data processing aspects",
                    "### 2.3 Data crawled and scraped from online sources", "### 3.1 Respect of reservation of rights"):  # fmt: skip
        assert heading in text
    assert f"{summary['available']} images were available, {summary['rows']} were used, 48 times in total" in text
    assert f"| a.org | {sum(int(n[2:]) % 4 == 2 for n in rows['id'].to_pylist())} |" in text


@pytest.mark.parametrize("limit", [None, 17])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 3), (2, 40), (10, 11)], ids=str)
def test_whole_epochs_are_counted_like_single_batches(limit, first, last):
    from dit.data.order import KeyedBatches, subset

    among = None if limit is None else np.sort(subset(23, limit))
    order = KeyedBatches(limit or 23, 6, seed=4, among=among)
    counted = uses_of(order, 23, first, last)
    assert np.array_equal(counted, uses_of(iter(order), 23, first, last))
    assert counted.sum() == 6 * (last - first)


@pytest.fixture
def shaped(tmp_path):
    """Pictures of three shapes with a caption each."""
    draw, root = np.random.default_rng(0), tmp_path / "shaped"
    root.mkdir()
    for i in range(40):
        size = [(32, 32, 3), (24, 48, 3), (48, 24, 3)][i % 3]
        Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text(f"w{i}")
    return root


BUCKETS = ["data=buckets", "data.size=32", "data.val_share=0.3", "batch_size=8", "data.module.side_multiple=8"]


def test_samples_in_buckets_are_those_of_their_pictures(shaped, tmp_path):
    """Against the batches of the loader's own order: sample numbers continue from bucket to bucket."""
    from itertools import islice

    from dit.cli.provenance import rows_with_uses

    words = [*BUCKETS, f"data.path={shaped}", f"cache_dir={tmp_path}", "trainer.accumulate_grad_batches=2"]
    cfg = OmegaConf.create(OmegaConf.to_container(composed("train", words), resolve=True))
    rows = rows_with_uses([(0, 3, cfg), (3, 7, cfg)], {})
    data = instantiate(cfg.data.module)
    captions = [caption for bucket in data.buckets for caption in bucket.captions]
    [(_, order)] = data.orders(parts=2)
    expected = Counter(captions[visit.sample] for batch in islice(order, 14) for visit in batch)
    found = dict(zip(rows["caption"].to_pylist(), rows["uses"].to_pylist(), strict=True))
    assert {caption: uses for caption, uses in found.items() if uses} == expected
    assert len(set(rows["crop"].to_pylist())) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("words", [BUCKETS, ["data.size=32"]], ids=["buckets", "squares"])
def test_a_run_that_is_resumed_with_another_accumulation_counts_what_it_was_given(shaped, tmp_path, given, words):
    steps = [(1, 4), (4, 7), (2, 10)]  # accumulate_grad_batches, and the step up to which it holds
    for parts, last in steps:
        resumed = [f"resume={tmp_path / 'run'}"] if (tmp_path / "run").exists() else []
        settings = [f"trainer.accumulate_grad_batches={parts}", f"trainer.max_steps={last}", *resumed]
        run = trained(tmp_path / "run", shaped, *words, *settings)
    train_data = instantiate(OmegaConf.load(run / "config.yaml").data.module)
    sources = getattr(train_data, "buckets", [train_data.train])
    captions = [caption for source in sources for caption in source.captions]
    _, rows = asked(run)
    found = dict(zip(rows["caption"].to_pylist(), rows["uses"].to_pylist(), strict=True))
    assert found == Counter(captions[i] for i in given)
