"""The command that serves a run."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from omegaconf import OmegaConf
from PIL import Image

from dit.cli.serve import cache_of, menu_of, serve
from dit.generation.asking import Ask
from dit.generation.audit import AuditLog, faults
from dit.generation.authority import write_authority
from dit.generation.keys import add_key
from dit.generation.model import loaded

from ..conftest import ROOT, command, composed, only_line_of

PROMPT = "a large red star on a black background"
SECONDS = 240


@pytest.fixture
def started(tiny_run, tmp_path):
    """A function that starts the server of a tiny run with a policy, keys, signatures and an audit log, and returns its
    process and its address."""
    (tmp_path / "terms.txt").write_text("circle\n")
    write_authority(tmp_path / "signing", 30)
    words = [
        "-m",
        "dit.cli.serve",
        f"ckpt={tiny_run}",
        "port=0",
        "device=cpu",
        "drain_seconds=300",
        "sizes=[[32,32],[64,64]]",
        "policy=blocklist",
        f"policy.blocklist.file={tmp_path / 'terms.txt'}",
        f"audit={tmp_path / 'log'}",
        f"picture_cache={tmp_path / 'cache'}",
        f"key_file={tmp_path / 'keys.json'}",
        f"certificate={tmp_path / 'signing' / 'signer.pem'}",
        f"certificate_key={tmp_path / 'signing' / 'signer.key'}",
        f"anchors={tmp_path / 'signing' / 'ca.pem'}",
    ]
    processes = []

    def start():
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, *words], cwd=ROOT, env=dict(os.environ), **pipes))
        return processes[0], processes[0].stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_it_serves_and_sigterm_finishes_what_was_admitted(started, tmp_path):
    """Pictures are signed, the log has a subject for each key, and after SIGTERM nothing that was admitted is lost."""
    alice, bob = (add_key(tmp_path / "keys.json", name, None) for name in ("alice", "bob"))
    process, url = started()
    assert url.startswith("http://127.0.0.1:"), process.stderr.read()
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}

    def post(body, key):
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{url}/v1/images/generations", json=body, headers=headers, timeout=SECONDS)

    one = post({"prompt": PROMPT, "seed": 3}, alice).json()
    assert one["cost"]["network_calls"] > 0
    hit = post({"prompt": PROMPT, "seed": 3}, alice).json()
    assert (hit["cost"]["cache_hits"], hit["cost"]["network_calls"]) == (1, 0)
    picture, same = (base64.b64decode(made["data"][0]["b64_json"]) for made in (one, hit))
    assert Image.open(io.BytesIO(picture)).tobytes() == Image.open(io.BytesIO(same)).tobytes()
    seen = httpx.post(f"{url}/v1/verify", content=picture, headers={"x-api-key": bob}, timeout=SECONDS).json()
    assert (seen["credentials"]["state"], seen["credentials"]["fields"]["seed"]) == ("trusted", 3)
    assert seen["in_words"].startswith("Signed by Local test signer, whom this server trusts, and unchanged since.")
    assert post({"prompt": "a circle"}, bob).json()["error"]["code"] == "content_policy_violation"
    answers = []
    body = {"prompt": PROMPT, "steps": 100, "n": 8, "size": "64x64", "guidance_scale": 2}
    long = threading.Thread(target=lambda: answers.append(post(body, bob)))
    long.start()
    end = time.monotonic() + SECONDS
    while "dit_active_requests 1.0" not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < end
        assert not answers, "the request ended before the signal"
    process.send_signal(signal.SIGTERM)
    long.join(SECONDS)
    assert answers[0].status_code == 200
    assert len(answers[0].json()["data"]) == 8
    assert process.wait(SECONDS) == -signal.SIGTERM
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/readyz")
    assert "Traceback" not in process.stderr.read()
    log = AuditLog(tmp_path / "log", make=False)
    entries = [json.loads(body) for _, body, _ in log.entries()]
    assert [entry["kind"] for entry in entries] == ["key", "delivery", "delivery", "key", "refusal"] + ["delivery"] * 8
    assert [entry["subject"] for entry in entries] == ["alice"] * 3 + ["bob"] * 10
    assert {entry["endpoint"] for entry in entries if entry["kind"] != "key"} == {"/v1/images/generations"}
    log.erase("bob")
    assert [log.entry(number)["texts"] is None for number in (2, 5, 6)] == [False, True, True]
    assert faults(log) == []


def test_all_of_the_run_that_decides_a_picture_decides_its_key_in_the_cache(tiny_run, tmp_path, monkeypatch):
    cfg = composed("serve", [f"ckpt={tiny_run}", "device=cpu", f"picture_cache={tmp_path / 'cache'}"])
    run, about = loaded(cfg, cfg.ckpt)
    menu = menu_of(cfg, run.config, run.pipeline)
    ask = Ask(PROMPT, 3, 1, 4, 2.0, next(iter(menu.samplers)), menu.sizes[0])

    def key(place=None, value="other", known=about, grid=cfg.grid):
        own = run.config.copy()
        if place is not None:
            OmegaConf.update(own, place, value, force_add=True)
        chosen = cfg.copy()
        chosen.grid = grid
        cache = cache_of(chosen, own, menu, known)
        try:
            return cache.key(ask, 3)
        finally:
            cache.close()

    module = tmp_path / "outside_words.py"
    module.write_text("class Words: pass")
    monkeypatch.syspath_prepend(tmp_path)
    places = ("path.sigma", "prediction.kind", "backbone.heads", "text_encoder.new", "autoencoder.new")
    keys = [key(), *map(key, places), key(grid={"_target_": "other"})]
    keys += [key(known={**about, name: "other"}) for name in ("weights", "code")]
    keys += [key("text_encoder._target_", "outside_words.Words")]
    module.write_text("class Words: other = 1")
    keys += [key("text_encoder._target_", "outside_words.Words")]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_a_port_in_use_is_one_line(tiny_run):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"host=127.0.0.1 port={port}: Address already in use; choose another with port="
        ):
            serve(composed("serve", [f"ckpt={tiny_run}", f"port={port}"]))


@pytest.mark.parametrize(("words", "fault"), [
    ([], "ckpt is missing: say which run to serve, ckpt=RUN"),
    (["new_key=alice"], "new_key needs the file that it is added to: key_file=FILE"),
    (["ckpt={run}", "port=0", "sampler=dopri5"], "sampler=dopri5: its number of network calls is not known"),
    (["ckpt={run}", "port=0", "sizes=[[33,32]]"], "33"),
    (["ckpt={run}", "port=0", "key_file={run}/none.json"], "is not a file of keys"),
], ids=lambda value: value[-1].split("=")[0] if value and isinstance(value, list) else "")  # fmt: skip
def test_what_cannot_be_served_is_refused(tiny_run, words, fault):
    with pytest.raises(ValueError, match=fault):
        serve(composed("serve", [word.format(run=tiny_run) for word in words]))


def test_without_the_extra_one_line_says_what_to_install(tiny_run, monkeypatch):
    for name in ("dit.generation.server", "fastapi"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "dit.generation.server")
    with pytest.raises(ValueError, match=r"the server needs fastapi: pip install 'dit\[serve\]'"):
        serve(composed("serve", [f"ckpt={tiny_run}", "port=0"]))


def test_a_new_key_is_printed_once(tmp_path, capsys):
    serve(composed("serve", [f"key_file={tmp_path / 'keys.json'}", "new_key=alice", "calls_per_day=10"]))
    key = capsys.readouterr().out.strip()
    assert key.startswith("dit-")
    assert key not in (tmp_path / "keys.json").read_text()


def test_the_command_line_is_checked_before_anything_is_loaded():
    assert "port=99999" in only_line_of(command("-m", "dit.cli.serve", "ckpt=x", "port=99999"))
