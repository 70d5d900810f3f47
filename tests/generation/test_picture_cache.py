"""The cache of pictures, and what the server does with a hit."""

import base64
import hashlib
import json
import sqlite3
import threading

import httpx
import pytest
import torch

from dit.cost import Price
from dit.generation.asking import Ask, Limits
from dit.generation.audit import AuditLog, faults
from dit.generation.audited import Audited
from dit.generation.keys import Key
from dit.generation.picture_cache import PictureCache
from dit.generation.policy import Policy
from dit.generation.screening import Screened

from .test_server import PROMPT, SECRET, Means, Refuses, Running, wait_until

MADE_WITH = {"weights": "0123", "code": "4567", "grid": {}, "samplers": {"ddim": {"eta": 0}, "heun": {}}}
ASK = Ask(PROMPT, 3, 1, 4, 2.0, "ddim", (32, 32))
PATH, BODY = "/v1/images/generations", {"prompt": PROMPT, "seed": 3, "n": 2}


def cache_of(folder, most=10**6, **made_with):
    return PictureCache(folder, most, MADE_WITH | made_with)


def picture(number):
    return torch.randint(0, 256, (3, 8, 12), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)


def test_a_picture_comes_back_as_it_was_also_after_a_restart(tmp_path):
    cache = cache_of(tmp_path)
    key = cache.key(ASK, 3)
    assert cache.get(key) is None
    cache.put(key, picture(0))
    assert torch.equal(cache.get(key), picture(0))
    cache.put(key, picture(1))
    assert torch.equal(cache_of(tmp_path).get(key), picture(1))
    cache.drop(key)
    assert cache.get(key) is None
    assert not list(tmp_path.glob("??/*"))


def test_all_that_decides_a_picture_decides_its_key(tmp_path):
    def key(ask=None, seed=3, name="a", **made_with):
        return cache_of(tmp_path / name, **made_with).key(Ask(**{**ASK.__dict__, **(ask or {})}), seed)

    same = key()
    changes = [
        *({"ask": {name: value}} for name, value in (
            ("prompt", "a star"), ("negative", "star"), ("steps", 5), ("scale", 3.0), ("sampler", "heun"), ("size", (64, 32)),
        )),
        *({name: "other"} for name in ("weights", "code", "precision")),
        {"seed": 4}, {"grid": {"sigma": 1}}, {"samplers": {"ddim": {"eta": 1}}},
    ]  # fmt: skip
    found = [key(**change) for change in changes]
    assert len({same, *found}) == 1 + len(changes)
    assert key(ask={"n": 2, "seed": 2}) == key(name="b") == same, "the place in a request decides nothing"
    assert key(samplers=MADE_WITH["samplers"] | {"new": {}}) == same, "another sampler decides nothing"


def test_the_size_is_bounded_and_what_was_asked_for_last_is_kept(tmp_path):
    cache_of(tmp_path / "a").put("0" * 64, picture(0))
    size = sum(file.stat().st_size for file in (tmp_path / "a").glob("??/*"))
    cache = cache_of(tmp_path / "b", most=3 * size + 50)
    keys = [str(number) * 64 for number in range(5)]
    for number, key in enumerate(keys):
        cache.put(key, picture(number))
        assert cache.get(keys[0]) is not None
    assert [cache.get(key) is not None for key in keys] == [True, False, False, True, True]
    assert len(list((tmp_path / "b").glob("??/*"))) == 3


def test_a_damaged_file_is_named_and_dropped_and_files_of_killed_processes_are_removed(tmp_path, capsys):
    cache, key = cache_of(tmp_path), "a" * 64
    cache.put(key, picture(0))
    file = cache.file(key)
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    assert cache.get(key) is None
    assert f"warning: {file} is damaged or missing; its picture is made anew" in capsys.readouterr().err
    assert not file.exists()
    cache.put(key, picture(0))
    strays = [file.with_name("b" * 64 + ".png"), file.with_name(f".{file.name}.x1y2.tmp")]
    users = [file.with_name(name) for name in ("thesis.txt", "b.png", "B" * 64 + ".png")]
    for one in strays + users:
        one.write_bytes(b"half")
    assert cache_of(tmp_path).get(key) is not None
    assert not any(one.exists() for one in strays)
    assert all(one.exists() for one in users)


def test_a_folder_with_other_files_is_refused_and_keeps_them(tmp_path):
    (tmp_path / "en").mkdir()
    (tmp_path / "en/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="it has other files; name another folder"):
        cache_of(tmp_path)
    assert (tmp_path / "en/notes.txt").read_text() == "mine"


def test_keeping_a_picture_reads_no_list_of_the_others(tmp_path):
    cache, plans = cache_of(tmp_path), []
    cache._base.set_trace_callback(plans.append)
    cache.put("a" * 64, picture(0))
    cache.get("a" * 64)
    cache._base.set_trace_callback(None)
    assert not [plan for plan in plans if "ORDER BY used" in plan], "there is room"
    [[*_, plan]] = cache._base.execute("EXPLAIN QUERY PLAN SELECT max(used) FROM pictures")
    assert "pictures_by_use" in plan


def test_an_error_that_ends_the_transaction_is_named_itself(tmp_path):
    cache = cache_of(tmp_path)

    def fill():
        with cache._transaction():
            cache._base.execute("ROLLBACK")  # as sqlite does where the disk is full
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        fill()


def test_a_cache_that_cannot_be_written_is_a_warning_and_one_that_cannot_be_opened_an_error(tmp_path, capsys):
    cache = cache_of(tmp_path / "a")
    cache.close()
    cache.put("a" * 64, picture(0))
    assert cache.get("a" * 64) is None
    assert capsys.readouterr().err.count(f"warning: picture_cache={tmp_path / 'a'}: ") == 2
    (tmp_path / "b").mkdir()
    (tmp_path / "b/index.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match=r"picture_cache=.*b cannot be used: .*not a database; name another folder"):
        cache_of(tmp_path / "b")
    base = sqlite3.connect(tmp_path / "a/index.sqlite")
    base.execute("PRAGMA user_version=7")
    base.close()
    with pytest.raises(ValueError, match="it has version 7, and this is 1"):
        cache_of(tmp_path / "a")


@pytest.fixture
def served(tmp_path):
    """Starts servers with the cache of a folder."""
    started = []

    def start(delivery=None, keys=(), price=None, limits=None, **made_with):
        cache = cache_of(tmp_path / "cache", **made_with)
        found = Running(delivery=delivery, keys=keys, price=price, limits=limits, cache=cache)
        started.append(found)
        return found

    yield start
    for one in started:
        one.stop()


def files(answer):
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


def test_a_hit_has_equal_pixels_and_costs_no_call_and_is_marked_signed_and_logged_anew(served):
    running = served()
    first = running.post(PATH, BODY)
    rows = running.service.batcher.rows
    again = running.post(PATH, BODY)
    assert running.service.batcher.rows == rows
    assert files(again) == files(first)
    assert all(file.endswith(b"signed") for file in files(again))
    costs = [answer.json()["cost"] for answer in (first, again)]
    assert [(cost["network_calls"], cost["cache_hits"]) for cost in costs] == [(16, 0), (0, 2)]
    assert [row["seed"] for row in running.gate.rows] == [3, 4, 3, 4]
    assert [facts["cache_hit"] for facts in running.gate.facts] == [False, False, True, True]
    assert [facts["cost"]["network_calls"] for facts in running.gate.facts] == [8, 8, 0, 0]
    more = running.post(PATH, BODY | {"n": 3})
    assert more.json()["cost"]["cache_hits"] == 2
    assert running.service.batcher.rows == rows + 8, "only the third picture is made"
    assert files(more)[:2] == files(first)
    assert (running.metric("dit_cache_hits_total"), running.metric("dit_pictures_total")) == (4, 7)


def test_other_weights_are_no_hit(served):
    before = served()
    before.post(PATH, BODY)
    other = served(weights="8888")
    assert other.post(PATH, BODY).json()["cost"]["cache_hits"] == 0
    assert before.post(PATH, BODY).json()["cost"]["cache_hits"] == 2


def test_a_policy_that_changes_refuses_a_hit_and_the_picture_is_not_kept(served, tmp_path):
    """The same files are asked for under two policies; the refusal is in the log, and says that it is of a hit."""
    screened = Screened(Policy({"mine": Means()}), None)
    running = served(Audited(screened, AuditLog(tmp_path / "log"), "local", {"seed": 0}))
    assert running.post(PATH, BODY).status_code == 200
    strict = Means()
    strict.fingerprint = "strict"
    strict.check_pictures = lambda images: [type(v)(False, "not today") for v in Means.check_pictures(strict, images)]
    screened.policy = Policy({"mine": strict})
    refused = running.post(PATH, BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_policy_violation")
    assert "not today" in refused.json()["error"]["message"]
    screened.policy = Policy({"mine": Means()})
    assert running.post(PATH, BODY).json()["cost"]["cache_hits"] == 0
    log = AuditLog(tmp_path / "log", make=False)
    entries = [json.loads(body) for _, body, _ in log.entries()][1:]  # without the key of the subject
    assert [entry["kind"] for entry in entries] == ["delivery"] * 2 + ["refusal"] * 2 + ["delivery"] * 2
    assert [entry["cache_hit"] for entry in entries] == [False, False, True, True, False, False]
    assert {entry["policy"] for entry in entries[2:4]} != {entry["policy"] for entry in entries[:2]}
    assert faults(log) == []


def test_a_picture_that_is_refused_is_never_kept(served):
    running = served()
    for _ in range(2):
        assert running.post(PATH, {"prompt": PROMPT, "seed": 13}).status_code == 400
    assert [facts["cache_hit"] for facts in running.gate.facts] == [False, False]


def test_a_damaged_picture_is_made_anew(served, tmp_path, capsys):
    running = served()
    first = running.post(PATH, BODY)
    for file in (tmp_path / "cache").glob("??/*.png"):
        file.write_bytes(b"damaged")
    again = running.post(PATH, BODY)
    assert (again.json()["cost"]["cache_hits"], files(again)) == (0, files(first))
    assert capsys.readouterr().err.count("is damaged or missing") == 2


def test_a_picture_that_the_cache_lost_since_admission_is_charged(served, tmp_path):
    key = Key("alice", hashlib.sha256(SECRET.encode()).hexdigest(), 40)
    running = served(keys=[key])
    statuses = []
    for _ in range(3):
        statuses.append(running.post(PATH, BODY, headers={"x-api-key": SECRET}).status_code)
        for file in (tmp_path / "cache").glob("??/*.png"):
            file.write_bytes(b"damaged")
    assert (statuses, running.keys.used(key)) == ([200, 200, 429], 32), "16 each; three are beyond the quota"


def test_requests_without_network_calls_are_bounded_too(served):
    running = served(limits=Limits(pending_requests=1))
    assert running.post(PATH, BODY).status_code == 200
    gate = running.slow()
    other = threading.Thread(target=running.post, args=(PATH, BODY | {"seed": 5}))
    other.start()
    wait_until(lambda: running.service.active == 1)
    refused = running.post(PATH, BODY)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "it has 1 unfinished requests" in refused.json()["error"]["message"]
    gate.set()
    other.join()
    assert running.post(PATH, BODY).json()["cost"]["cache_hits"] == 2


def test_a_hit_is_not_charged_and_the_price_is_in_body_header_and_metrics(served):
    key = Key("alice", hashlib.sha256(SECRET.encode()).hexdigest(), 20)
    running = served(Refuses(), [key], Price(36000.0, "EUR"))
    headers = {"x-api-key": SECRET}
    costs = [running.post(PATH, BODY, headers=headers).json()["cost"] for _ in range(3)]
    assert [cost["network_calls"] for cost in costs] == [16, 0, 0], "three would be beyond the quota"
    assert running.keys.used(key) == 16
    assert costs[0]["price"] == pytest.approx(10 * costs[0]["seconds"], rel=1e-3)
    assert (costs[1]["price"], costs[1]["currency"]) == (0, "EUR")
    titan = {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": PROMPT}, "imageGenerationConfig": {"seed": 3}}
    answer = running.post("/model/x/invoke", titan, headers=headers)
    assert set(answer.json()) == {"images", "error"}
    assert json.loads(answer.headers["x-dit-cost"]) | {"seconds": 0} == costs[1] | {"seconds": 0, "cache_hits": 1}
    assert running.metric("dit_machine_seconds_total") == pytest.approx(costs[0]["seconds"], rel=0.01)
    assert running.metric("dit_price_total") == pytest.approx(costs[0]["price"], rel=0.01)
    assert 'dit_price_total{currency="EUR"}' in httpx.get(f"{running.url}/metrics").text
