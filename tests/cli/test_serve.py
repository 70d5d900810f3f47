"""The command that serves a run."""

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

from dit.cli.serve import serve
from dit.generation.audit import AuditLog, faults

from ..conftest import ROOT, command, composed, only_line_of

PROMPT = "a large red star on a black background"
SECONDS = 240


@pytest.fixture
def started(tiny_run, tmp_path):
    """The process of a server of a tiny run with a policy and an audit log, and its address."""
    (tmp_path / "terms.txt").write_text("circle\n")
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
    ]
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    line = process.stdout.readline().strip()
    yield process, line
    process.kill()
    process.communicate()


def test_it_serves_and_sigterm_finishes_what_was_admitted(started, tmp_path):
    process, url = started
    assert url.startswith("http://127.0.0.1:"), process.stderr.read()
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    one = httpx.post(f"{url}/v1/images/generations", json={"prompt": PROMPT}, timeout=SECONDS).json()
    assert one["cost"]["network_calls"] > 0
    again = {"prompt": PROMPT, "seed": one["data"][0]["seed"]}
    hit = httpx.post(f"{url}/v1/images/generations", json=again, timeout=SECONDS).json()
    assert (hit["data"], hit["cost"]["cache_hits"], hit["cost"]["network_calls"]) == (one["data"], 1, 0)
    refused = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a circle"}, timeout=SECONDS)
    assert refused.json()["error"]["code"] == "content_policy_violation"
    answers = []
    body = {"prompt": PROMPT, "steps": 100, "n": 8, "size": "64x64", "guidance_scale": 2}
    long = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{url}/v1/images/generations", json=body, timeout=SECONDS))
    )
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
    bodies = [json.loads(body) for _, body, _ in log.entries()]
    assert [body["kind"] for body in bodies] == ["key", "delivery", "delivery", "refusal"] + ["delivery"] * 8
    assert {body["endpoint"] for body in bodies[1:]} == {"/v1/images/generations"}
    assert faults(log) == []


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
