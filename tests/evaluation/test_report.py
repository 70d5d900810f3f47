"""The report of sweeps, of failed cells, and of somebody's pictures."""

import csv
import html
import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from dit.cli.evaluate import log_to_wandb
from dit.evaluation import latex
from dit.evaluation.card import Card
from dit.evaluation.page import Section, data_url, finding, page
from dit.evaluation.report import picture_grids, write_report
from dit.evaluation.results import Results, Score, short_paths
from dit.evaluation.statistics import interval_of
from dit.evaluation.tables import cell, columns_of, plain_row, table_csv, with_interval

from ..conftest import composed

N = 64
PROMPT = "a <script>alert('red')</script> & \"large\" star"
EMPTY = {"link", "meta", "img", "br", "wbr"}


class Reader(HTMLParser):
    """Every element closed in its order; the text of every table's cells; all addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.addresses, self.tags = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "srcset")]
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def card_of(share, subject, n=N, nfe=4.0, **others):
    """Of pictures of which this share is right, the first ones."""
    right = torch.arange(n) < round(share * n)
    score = float(right.double().mean())
    near = (10 - 8 * score + torch.linspace(-1, 1, n)).double()
    scores = {"accuracy": score, f"fd_{n}": float(near.mean()), "accuracy_colour": score}
    card = Card(
        subject=subject,
        protocol={"n": n, "seed": 0, "metrics": {"accuracy": {"_target_": "dit.Accuracy"}}},
        versions={"dit": "1.0"},
        cost={"nfe": nfe, "seconds": nfe / 100, "images_per_second": 100 / nfe if nfe else 0.0, "total_seconds": 1.0},
        scores=scores,
        intervals={"accuracy": list(interval_of(right, score)), f"fd_{n}": list(interval_of(near, scores[f"fd_{n}"]))},
        headlines={"accuracy": True, f"fd_{n}": False},
    )
    return replace(card, **others), {"accuracy": right, f"fd_{n}": near, "accuracy_colour": right}


def sweep(shares, **columns):
    """A cell for each combination of the columns, the first varying slowest."""
    cells = []
    for share, values in zip(shares, itertools.product(*columns.values()), strict=True):
        subject = {"checkpoint": "run/step_0000007.ckpt", "weights": "ema", **dict(zip(columns, values, strict=True))}
        cells.append(card_of(share, subject, nfe=float(subject.get("steps", 4))))
    cards, parts = zip(*cells, strict=True)
    strips = [torch.full((2, 3, 8, 8), 10 * i, dtype=torch.uint8) for i in range(len(cards))]
    floors = {"real": card_of(1, {"images": "real"})[0]}
    return Results(
        "run/step_0000007.ckpt", cards, parts, strips, [PROMPT] * N, {"accuracy": True, f"fd_{N}": False}, floors
    )


@pytest.fixture(scope="module")
def results():
    shares = (0.1, 0.9, 1.0, 0.2, 0.98, 0.99)
    made = sweep(shares, sampler=["euler", "heun"], guidance=[2.0], steps=[2, 4, 8])
    return replace(
        made, confirmation=card_of(0.75, {**made.cards[2].subject, "again": "the winner"})[0], notes=["a <note>"]
    )


def page_of(results):
    return page([Section(results, [results.best(score) for score in results.scores], {}, {})])


def test_the_page_is_one_well_formed_file_without_addresses(results, tmp_path):
    pictures = write_report(tmp_path, [results])
    text = (tmp_path / "report.html").read_text()
    read = Reader(text)
    assert len(read.addresses) == len(pictures)
    assert all(address.startswith("data:image/") for address in read.addresses)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r'src="[^"]*"', "", text))
    for name in pictures:
        assert [*tmp_path.glob(f"*/{name}.png")]


def test_every_cell_and_floor_is_in_the_table_once(results):
    read = Reader(page_of(results))
    every = max(read.tables, key=len)
    assert every[0][:3] == ["sampler", "steps", "accuracy"], "guidance is the same in all"
    cells = [(row[0], row[1]) for row in every[1:-1]]
    assert sorted(cells) == sorted((card.subject["sampler"], str(card.subject["steps"])) for card in results.cards)
    assert every[-1][0] == "real"
    assert all(len(row) == len(every[0]) for row in every)


def test_what_all_cells_share_is_said_once(results):
    text = page_of(results)
    assert "6 cells: checkpoint run/step_0000007, weights ema, guidance 2, 64 pictures each, seed 0." in text
    assert not any("ema" in cell for table in Reader(text).tables for row in table for cell in row)


def test_the_best_and_those_that_are_not_significantly_different_are_marked(results):
    every = max(Reader(page_of(results)).tables, key=len)
    column = every[0].index("accuracy")
    marks = {(row[0], row[1]): row[column][0] for row in every[1:-1]}
    assert marks["euler", "8"] == "★"
    assert {cell for cell, mark in marks.items() if mark == "≈"} == {("euler", "4"), ("heun", "4"), ("heun", "8")}


def test_the_winner_is_described_in_words(results):
    best = results.best(Score("accuracy", True))
    assert finding(results, best) == [
        "Best by accuracy: euler, 8 steps (8 NFE), 1.000 [0.943, 1.000].",
        "Not significantly different (95 %): 3 of 5 others; the cheapest is heun, 4 steps (4 NFE), 0.984 [0.917, 0.997].",
    ]
    assert "On fresh noise: 0.75 [0.63, 0.84]." in page_of(results)
    alone = sweep((1.0, 0.1), sampler=["euler"], guidance=[2.0], steps=[2, 4])
    assert (
        finding(alone, alone.best(Score("accuracy", True)))[1] == "It is significantly better than all others (95 %)."
    )
    unknown = replace(alone, parts=[{}, {}])
    assert "significance is unknown" in finding(unknown, unknown.best(Score("accuracy", True)))[1]
    assert unknown.best(Score("accuracy", True)).row["steps"] == 2


def test_failed_cells_are_listed_with_their_reason_and_are_no_rows(results):
    cards = [
        replace(results.cards[0], failed="3 pictures are <NaN>", scores={}, intervals={}, cost={}),
        *results.cards[1:],
    ]
    strips = [torch.empty(0, 3, 1, 1, dtype=torch.uint8), *results.strips[1:]]
    some = replace(results, cards=cards, parts=[{}, *results.parts[1:]], strips=strips)
    text = page_of(some)
    assert "<dt>euler, 2 steps</dt><dd>3 pictures are &lt;NaN&gt;</dd>" in text
    assert len(max(Reader(text).tables, key=len)) == 1 + 5 + 1
    grid = picture_grids(some)["prompt_0"]
    assert grid.size == picture_grids(results)["prompt_0"].size  # its place is left blank
    none = replace(results, cards=[replace(card, failed="no", scores={}, intervals={}) for card in cards], parts=[{}] * 6,
                   strips=[strips[0]] * 6, floors={}, confirmation=None)  # fmt: skip
    assert "No cell has scores." in page_of(none)
    assert picture_grids(none) == {}


def test_text_of_others_is_no_html(results, tmp_path):
    model = {"model": "<i>", "group": "<i>", "setting": None, "scores": {"bits": 3.0}, "made_with": {"a": 1}}
    strange = replace(results, title="<b>run</b>", models=[model])
    write_report(tmp_path, [strange])
    text = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in text
    assert "“a &lt;script&gt;alert" in text
    assert not {"i", "note"} & set(Reader(text).tags)
    for raw in ("<b>run", "<i>", "<note>"):
        assert raw not in text


def test_one_card_of_given_pictures(tmp_path):
    card, parts = card_of(0.9, {"images": "samples.npz"}, nfe=0.0, intervals={})
    single = Results(
        "samples.npz", [card], [parts], [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], [PROMPT] * N, card.headlines
    )
    assert set(write_report(tmp_path, [single])) == {"pictures"}
    text = (tmp_path / "report.html").read_text()
    assert "samples.npz: accuracy 0.9062." in text
    assert "★" not in text.split("How to read")[0]
    (table,) = Reader(text).tables
    assert table == [["images", "accuracy", f"fd {N}", "accuracy colour"], ["samples.npz", "0.9062", "2.75", "0.9062"]]


def test_a_model_without_samplers_and_several_subjects():
    model = sweep((0.5, 0.6), steps=[2, 4])
    assert results_name(model, 0) == "2 steps"
    assert results_name(sweep((0.5, 0.6), steps=[1, 2]), 0) == "1 step"
    names = [f"run_{i}/step_0000007.ckpt" for i in range(2)]
    several = sweep((0.5, 0.6, 0.7, 0.8), checkpoint=names, steps=[2, 4])
    assert results_name(several, 3) == "run_1, 4 steps"
    assert short_paths(["a/x/1.ckpt", "a/x/2.ckpt"]) == {"a/x/1.ckpt": "1.ckpt", "a/x/2.ckpt": "2.ckpt"}
    assert short_paths(["a/x", "a/b/x"]) == {"a/x": "a/x", "a/b/x": "b"}
    assert short_paths(["a/1.ckpt"]) == {"a/1.ckpt": "a/1.ckpt"}
    assert len(picture_grids(several)) == 2
    larger = replace(several, strips=[torch.zeros(2, 3, 16 * (1 + i), 16, dtype=torch.uint8) for i in range(4)])
    assert len(picture_grids(larger)) == 2


def results_name(results, place):
    return results.name_of(results.scored[place])


def test_floors_of_another_number_of_pictures_are_described(results):
    floor = card_of(1, {"images": "real"}, n=40)[0]
    text = page_of(replace(results, floors={"real": floor}))
    assert "Too few real pictures were left for the same N: 40 real pictures have fd_40 2.00 [1.81, 2.19]." in text
    every = max(Reader(text).tables, key=len)
    assert every[-1][every[0].index(f"fd {N}")] == "\N{EN DASH}"
    assert "No floors: there are no real pictures besides" in page_of(replace(results, floors={}))
    failed = replace(floor, failed="broken", scores={})
    assert "real pictures could not be scored: broken" in page_of(replace(results, floors={"real": failed}))


def test_cards_are_readable_and_exact(results):
    text = page_of(results)
    assert "<dt>metrics.accuracy._target_</dt><dd>dit.Accuracy</dd>" in text
    exact = [json.loads(html.unescape(found)) for found in re.findall("<pre>(.*?)</pre>", text, re.S)]
    assert [len(group["cells"]) for group in exact] == [6, 1, 1]
    found = [group["scores"] for group in exact[0]["cells"]]
    assert found == [card.scores for card in results.cards]


def test_numbers_have_two_uncertain_digits():
    row = {"a": 0.96875, "b": 12.3456, "intervals": {"a": [0.9, 0.99], "b": [12.0456, 12.6456]}}
    assert with_interval(row, "a") == "0.969 [0.900, 0.990]"
    assert with_interval(row, "b") == "12.35 [12.05, 12.65]"
    assert with_interval({"a": 0.5}, "a") == "0.5"
    a, b = columns_of([row], [], ["a", "b"])
    assert cell(row, a)["sides"] == ["0.069", "0.021"]
    assert cell(row, b)["sides"] == ["0.30", "0.30"]
    assert cell({"a": 1.0, "intervals": {"a": [-float("inf"), float("inf")]}}, a)["ends"] == []


def test_a_table_for_spreadsheets_has_flat_intervals(results):
    (first, *_) = csv.DictReader(io.StringIO(table_csv(results.rows)))
    low, high = results.cards[0].intervals["accuracy"]
    assert (float(first["accuracy_low"]), float(first["accuracy_high"])) == (low, high)
    assert "intervals" not in plain_row(results.rows[0])


def test_wandb_gets_the_rows_the_pictures_and_the_page(results, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    pictures = write_report(tmp_path, [results])
    models = [{"model": "tiny, ema", "bits_per_dim": 3.5}]
    tables = {"sweep": results.rows, "models": models}
    log_to_wandb(composed("evaluate", ["wandb.mode=offline"]), tmp_path, tables, pictures)
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    found = [json.loads(file.read_text()) for file in sorted(media.glob("table/*.json"))]
    assert found[0] | {"columns": ["model", "bits_per_dim"], "data": [["tiny, ema", 3.5]]} == found[0]
    table = found[1]
    first = dict(zip(table["columns"], table["data"][0], strict=True))
    assert first["accuracy"] == results.cards[0].scores["accuracy"]
    assert [first["accuracy_low"], first["accuracy_high"]] == results.cards[0].intervals["accuracy"]
    assert len(table["data"]) == 6
    assert len([*media.glob("images/**/*.png")]) == len(pictures)
    (page_file,) = media.glob("html/*.html")
    assert page_file.read_text() == (tmp_path / "report.html").read_text()


def test_a_heavy_picture_goes_into_the_page_smaller():
    noise = torch.randint(0, 256, (800, 2000, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    buffer = io.BytesIO()
    Image.fromarray(noise.numpy()).save(buffer, format="PNG")
    assert data_url(buffer.getvalue()).startswith("data:image/jpeg")
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, format="PNG")
    assert data_url(small.getvalue()).startswith("data:image/png")


def test_the_table_for_papers_has_every_cell_with_its_interval_and_the_best_in_bold(results, tmp_path):
    write_report(tmp_path, [results])
    text = (tmp_path / "results.tex").read_text()
    assert text.count("{") == text.count("}")
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + len(results.cards) + 1  # the head, the cells, the floor
    assert len({line.count("&") for line in lines}) == 1
    assert [line for line in lines if line.startswith("euler & 8") and r"\mathbf{1.000_{-0.057}^{+0.000}}" in line]
    assert {suffix for file in (tmp_path / "plots").iterdir() for suffix in [file.suffix]} == {".png", ".pdf", ".svg"}


def test_signs_of_latex_are_escaped():
    assert latex.escaped(r"a_b & 50% \x") == r"a\_b \& 50\% \textbackslash{}x"


def test_equal_results_give_equal_files(results, tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, [results])
    files = [file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*.*")]
    assert files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
