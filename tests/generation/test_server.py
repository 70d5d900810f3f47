"""The server over HTTP, by the clients of its contracts."""

import asyncio
import base64
import hashlib
import io
import json
import random
import socket
import threading
import time
from collections import Counter

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from dit.diffusion.guidance import ClassifierFree
from dit.diffusion.sampler.adaptive import Dopri5
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.runge_kutta import heun
from dit.diffusion.time import UniformTime
from dit.generation.asking import Ask, Limits, Menu, Refused
from dit.generation.audit import AuditLog, faults
from dit.generation.audited import Audited, replay
from dit.generation.batching import shared
from dit.generation.delivery import Delivery
from dit.generation.keys import Key, Keys, add_key, read_keys
from dit.generation.policy import Decision, Policy, Rule, Verdict
from dit.generation.reviews import APPROVED, REJECTED, give, held_in, holding_folder
from dit.generation.screening import Screened
from dit.generation.server import Server, app_of, bound
from dit.generation.service import Service, jobs_of
from dit.pipeline import Recipe

from .test_batching import SECONDS, pipeline, start_all

SECRET = "dit-secret"
PROMPT = "a large red star"


class Refuses(Delivery):
    """Refuses a word and the picture of seed 13, marks the first pixel, appends to the file, and notes what it logs."""

    def __init__(self):
        self.rows, self.facts = [], []

    @property
    def delivered(self):
        return [row for row in self.rows if not {"refused", "failed"} & row.keys()]

    def check_prompts(self, jobs):
        return [[Decision("circle" not in job.prompt, "the policy refuses 'circle'")] for job in jobs]

    def check_pictures(self, jobs, pixels):
        assert pixels.shape[:2] == (len(jobs), 3)
        return [[Decision(job.seed != 13, "an unlucky picture")] for job in jobs]

    def mark(self, jobs, pixels):
        marked = pixels.clone()
        marked[:, :, 0, 0] = 255
        return marked

    def sign(self, row, png):
        return png + b"signed"

    def log(self, row, decisions, png, facts):
        self.rows.append(row)
        self.facts.append(facts)


def menu_of(pipe, limits):
    samplers = {"ddim": ddim, "heun": heun}
    return Menu(pipe, samplers, UniformTime(0.99), ClassifierFree, 4, 2.0, [(32, 32), (64, 32)], limits)


class Running:
    """A server in a thread of this process."""

    def __init__(self, limits=None, keys=(), delivery=None, price=None, cache=None, check=None):
        pipe, batcher = shared(pipeline(), price=price)
        self.gate, self.gates = delivery or Refuses(), []
        self.service = Service(pipe, batcher, menu_of(pipe, limits or Limits()), self.gate, {"weights": "hash"}, cache)
        self.service.warm_up()
        self.keys = Keys(list(keys))
        where = bound("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{where.getsockname()[1]}"
        self.server = Server(self.service, app_of(self.service, self.keys, "tiny", check), 30)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [where]}, daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started)

    def slow(self):
        """Holds the network until `gate.set()`; returns the gate."""
        gate, network = threading.Event(), self.service.batcher.network
        self.gates.append(gate)
        self.service.batcher.network = lambda *given: gate.wait(SECONDS) and network(*given)
        return gate

    def post(self, path, body, **options):
        return httpx.post(self.url + path, json=body, timeout=SECONDS, **options)

    def metric(self, name):
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and line[len(name)] in " {")

    def stop(self):
        for gate in self.gates:
            gate.set()
        self.server.should_exit = True
        self.thread.join(SECONDS)
        self.service.close(1)


def wait_until(holds):
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def running():
    found = Running()
    yield found
    found.stop()


@pytest.fixture
def own(request):
    """A server of this test alone, with the limits and keys of the parameter."""
    found = Running(**getattr(request, "param", {}))
    yield found
    found.stop()


def pixels(text):
    picture = Image.open(io.BytesIO(base64.b64decode(text.removeprefix("data:image/png;base64,"))))
    assert picture.format == "PNG"
    return np.asarray(picture).astype(int)


def expected(prompt=PROMPT, seed=3, steps=4, scale=2.0, sampler=ddim, negative=None):
    recipe = Recipe(sampler, UniformTime(0.99), steps, ClassifierFree(scale), negative)
    found = pipeline()([prompt], [seed], recipe).pixels[0].permute(1, 2, 0).numpy().astype(int)
    found[0, 0] = 255  # the mark
    return found


def alike(text, other):
    assert np.abs(pixels(text) - other).max() <= 1


def test_the_official_openai_client_gets_the_pictures_of_its_seeds(running):
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)
    extra = {"seed": 3, "steps": 6, "guidance_scale": 3.0, "sampler": "heun", "negative_prompt": "star"}
    made = client.images.generate(
        model="tiny", prompt=PROMPT, n=2, size="32x32", response_format="b64_json", extra_body=extra
    )
    assert len(made.data) == 2
    for i, picture in enumerate(made.data):
        alike(picture.b64_json, expected(seed=3 + i, steps=6, scale=3.0, sampler=heun, negative="star"))
    assert made.model_extra["cost"]["network_calls"] == 2 * 2 * (2 * 6 - 1)
    assert [model.id for model in client.models.list()] == ["tiny"]
    wide = client.images.generate(prompt=PROMPT, size="64x32")
    assert pixels(wide.data[0].b64_json).shape == (32, 64, 3)


def test_a_random_seed_is_told_so_that_the_picture_can_be_made_again(running):
    one = running.post("/v1/images/generations", {"prompt": PROMPT}).json()["data"][0]
    again = running.post("/v1/images/generations", {"prompt": PROMPT, "seed": one["seed"]}).json()["data"][0]
    assert np.abs(pixels(one["b64_json"]) - pixels(again["b64_json"])).max() <= 1
    assert running.post("/v1/images/generations", {"prompt": PROMPT}).json()["data"][0]["seed"] != one["seed"]


def test_a_refusal_of_the_policy_has_the_code_of_the_field_and_nothing_is_sampled(running):
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)
    rows, logged = running.service.batcher.rows, len(running.gate.rows)
    with pytest.raises(openai.BadRequestError, match="the policy refuses 'circle'") as refusal:
        client.images.generate(prompt="a red circle")
    assert (refusal.value.code, refusal.value.param) == ("content_policy_violation", "prompt")
    with pytest.raises(openai.BadRequestError, match="the policy refuses 'circle'"):
        client.images.generate(prompt=PROMPT, extra_body={"negative_prompt": "circle"})
    assert running.service.batcher.rows == rows
    assert [row["refused"] for row in running.gate.rows[logged:]] == ["the policy refuses 'circle'"] * 2


def test_a_refused_picture_refuses_the_request_and_says_which(running):
    answer = running.post("/v1/images/generations", {"prompt": PROMPT, "seed": 12, "n": 2})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_policy_violation")
    assert answer.json()["error"]["message"] == "the picture of seed 13: an unlucky picture"
    assert (running.gate.rows[-1]["seed"], running.gate.rows[-1]["refused"]) == (13, "an unlucky picture")


def test_a_delivered_file_is_marked_signed_and_logged_and_says_how_it_was_made(running):
    answer = running.post("/v1/images/generations", {"prompt": PROMPT, "seed": 3, "n": 2}).json()
    files = [base64.b64decode(one["b64_json"]) for one in answer["data"]]
    assert all(file.endswith(b"signed") for file in files)
    for file, row, seed in zip(files, running.gate.rows[-2:], (3, 4), strict=True):
        picture = Image.open(io.BytesIO(file))
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        assert (picture.text["prompt"], picture.text["seed"]) == (PROMPT, str(seed))
        assert json.loads(picture.text["recipe"]) == {"sampler": "ddim", "steps": 4, "guidance": 2.0, "negative": None}
        assert row["pixels_sha256"] == picture.text["pixels_sha256"] == hashlib.sha256(picture.tobytes()).hexdigest()
        assert (row["weights"], row["seed"]) == ("hash", seed)


class Means(Rule):
    """Refuses a word. The score of a prompt is its length, that of a picture its mean."""

    fingerprint = "means"

    def check_prompts(self, prompts):
        return [Verdict("circle" not in prompt, "it has circle", float(len(prompt)), 99.0) for prompt in prompts]

    def check_pictures(self, images):
        return [Verdict(True, "", float(image.float().mean()), 256.0) for image in images]


def test_policy_and_audit_log_serve_several_clients_at_once(tmp_path):
    """Every entry has the decisions about its own prompt, negative prompt and picture."""
    policy = Policy({"mine": Means()})
    delivery = Audited(Screened(policy, None), AuditLog(tmp_path / "log"), "local", {"seed": 0})
    found, prompts = Running(delivery=delivery), [PROMPT, "a small blue star"]
    try:

        def ask(number):
            body = {"prompt": prompts[number % 2], "negative_prompt": "star", "seed": 10 * number, "n": 2}
            return found.post("/v1/images/generations", body)

        answers = start_all(4, ask)
        assert found.post("/v1/images/generations", {"prompt": "a red circle"}).status_code == 400
    finally:
        found.stop()
    assert [answer.status_code for answer in answers] == [200] * 4
    log = AuditLog(tmp_path / "log")
    assert faults(log) == []
    entries = [log.entry(number) for number in range(2, log.head()[0] + 1)]  # 1 is the key of the subject
    assert [entry["kind"] for entry in entries] == ["delivery"] * 8 + ["refusal"]
    pictures = {
        seed: pixels(one["b64_json"])
        for number, answer in enumerate(answers)
        for seed, one in enumerate(answer.json()["data"], 10 * number)
    }
    for entry in entries[:-1]:
        assert entry["texts"]["prompt"] == prompts[entry["seed"] // 10 % 2]
        mean = pictures[entry["seed"]].mean()
        scores = [decision["score"] for decision in entry["decisions"]]
        assert scores == [len(entry["texts"]["prompt"]), len("star"), pytest.approx(mean, rel=1e-5)]
        assert entry["policy"] == policy.fingerprint
    assert entries[-1]["texts"]["refused"] == "policy.mine: it has circle"
    with pytest.raises(ValueError, match="entry 2 is of the server: only pictures of generate can be made again"):
        replay(entries[0])


def test_cog(running):
    given = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 4, "guidance_scale": 2.0, "num_outputs": 2}
    answer = running.post("/predictions", {"input": given | {"width": 32, "height": 32, "scheduler": "ddim"}})
    found = answer.json()
    assert (answer.status_code, found["status"], found["error"]) == (200, "succeeded", None)
    assert found["input"]["prompt"] == PROMPT
    assert found["completed_at"] >= found["started_at"]
    alike(found["output"][0], expected())
    alike(found["output"][1], expected(seed=4))
    named = httpx.put(f"{running.url}/predictions/mine", json={"input": given}, timeout=SECONDS).json()
    assert named["id"] == "mine"
    wrong = running.post("/predictions", {"input": {"prompt": PROMPT, "num_outputs": "two"}})
    assert (wrong.status_code, wrong.json()["status"]) == (422, "failed")
    assert "input.num_outputs='two' must be a whole number" in wrong.json()["error"]
    assert httpx.get(f"{running.url}/health-check").json() == {"status": "READY"}
    assert running.post("/predictions/none/cancel", {}).status_code == 404


def test_sagemaker_and_titan(running):
    assert httpx.get(f"{running.url}/ping").status_code == 200
    titan = {
        "taskType": "TEXT_IMAGE", "textToImageParams": {"text": PROMPT, "negativeText": "star"},
        "imageGenerationConfig": {"numberOfImages": 1, "height": 32, "width": 32, "cfgScale": 3.0, "seed": 3},
    }  # fmt: skip
    for path in ("/invocations", "/model/amazon.titan/invoke"):
        found = running.post(path, titan).json()
        assert found["error"] is None
        alike(found["images"][0], expected(scale=3.0, negative="star"))
    parameters = {"num_inference_steps": 6, "seed": 3}
    alike(
        running.post("/invocations", {"inputs": PROMPT, "parameters": parameters}).json()["images"][0],
        expected(steps=6),
    )
    alike(running.post("/invocations", {"prompt": PROMPT, "seed": 3}).json()["images"][0], expected())
    wrong = running.post("/model/x/invoke", titan | {"taskType": "INPAINTING"})
    assert (wrong.status_code, wrong.json()["message"]) == (
        400,
        "taskType='INPAINTING' is not supported; use TEXT_IMAGE",
    )


@pytest.mark.parametrize(("body", "fault"), [
    ({}, "the prompt is missing"), ({"prompt": 3}, "prompt=3 must be a text"), ({"prompt": PROMPT, "n": 0}, "n=0 must be from 1 to 8"),
    ({"prompt": PROMPT, "n": True}, "n=True must be a whole number"), ({"prompt": PROMPT, "n": 99}, "n=99 must be from 1 to 8"),
    ({"prompt": PROMPT, "steps": 101}, "steps=101 must be from 1 to 100"), ({"prompt": PROMPT, "seed": -1}, "seed=-1"),
    ({"prompt": PROMPT, "seed": 2**40}, "must be from 0 to"), ({"prompt": "star " * 500}, "prompt has 2500 characters"),
    ({"prompt": PROMPT, "size": "33x32"}, "size=33x32: this server makes 32x32, 64x32"), ({"prompt": PROMPT, "size": "big"}, "WIDTHxHEIGHT"),
    ({"prompt": PROMPT, "guidance_scale": 1e9}, "the guidance scale must be from 0 to 100"),
    ({"prompt": PROMPT, "sampler": "hein"}, "no such sampler"), ({"prompt": PROMPT, "stepz": 3}, "Did you mean 'steps'"),
    ({"prompt": PROMPT, "response_format": "url"}, "response_format='url' is not supported; it may be 'b64_json'"),
    ({"prompt": "a large green star"}, "the model was not trained with 'green'"),
    ({"prompt": PROMPT, "guidance_scale": 1, "negative_prompt": "star"}, "has no effect"),
    ({"prompt": PROMPT, "n": 8, "steps": 100, "sampler": "heun"}, "a request may have 2000: ask for fewer"),
], ids=lambda value: value[:24] if isinstance(value, str) else "")  # fmt: skip
def test_what_cannot_be_served_is_refused_with_its_reason(running, body, fault):
    rows = running.service.batcher.rows
    answer = running.post("/v1/images/generations", body)
    assert answer.status_code == 400
    assert fault in answer.json()["error"]["message"]
    assert "\n" not in answer.json()["error"]["message"]
    assert running.service.batcher.rows == rows


def test_other_refusals_have_their_status(running):
    url = f"{running.url}/v1/images/generations"
    assert running.post("/v1/images/generations", {"prompt": PROMPT, "model": "dall-e-3"}).status_code == 404
    for content, status, fault in (
        (b"{half", 400, "not JSON"), (b"[]", 400, "must be a JSON object"), (b"", 400, "not JSON"), (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 90_000, 400, "not JSON"), (b'{"prompt": "\\ud800"}', 400, "not JSON"), (b'{"n": NaN}', 400, "NaN is not a number"), (b"x" * 200_000, 413, "more than 100000 bytes"),
    ):  # fmt: skip
        answer = httpx.post(url, content=content, timeout=SECONDS)
        assert (answer.status_code, fault in answer.json()["error"]["message"]) == (status, True), content[:10]
    assert httpx.get(url).status_code == 405
    missing = httpx.get(f"{running.url}/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


def random_value(draw, depth=0):
    kinds = [
        None, True, draw.randint(-5, 2**40), draw.random() * 1e9, float("nan"), "", PROMPT, "\x00\ud800" * 3,
        "1" * draw.randint(0, 60), [], {},
    ]  # fmt: skip
    if depth < 2 and draw.random() < 0.2:
        return {draw.choice(["prompt", "n", "text", "é"]): random_value(draw, depth + 1)}
    return draw.choice(kinds)


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_requests_get_a_reason_and_never_an_empty_200(running, count):
    draw, statuses = random.Random(0), set()
    fields = [
        "prompt",
        "n",
        "seed",
        "steps",
        "size",
        "sampler",
        "guidance_scale",
        "inputs",
        "parameters",
        "taskType",
        "input",
        "x",
    ]
    paths = ["/v1/images/generations", "/predictions", "/invocations", "/model/m/invoke"]
    with httpx.Client(base_url=running.url, timeout=SECONDS) as client:
        for number in range(count):
            body = {draw.choice(fields): random_value(draw) for _ in range(draw.randint(0, 5))}
            body = {"input": body} if draw.random() < 0.2 else body
            content = json.dumps(body).encode()
            if draw.random() < 0.2:
                content = content[: draw.randint(0, len(content))]
            answer = client.post(draw.choice(paths), content=content)
            statuses.add(answer.status_code)
            assert answer.status_code in (200, 400, 404, 422), (number, body, answer.text)
            if answer.status_code == 200:
                assert "iVBOR" in answer.text
            else:
                assert len(answer.text) > 20, (number, body)
                assert "Traceback" not in answer.text
    assert statuses >= {400, 422}


@pytest.mark.parametrize("own", [{"limits": Limits(pending_calls=40)}], indirect=True)
def test_beyond_the_admitted_network_calls_the_answer_is_429_with_retry_after(own):
    gate, answers = own.slow(), []
    body = {"prompt": PROMPT, "steps": 10}  # 20 network calls
    threads = [
        threading.Thread(target=lambda: answers.append(own.post("/v1/images/generations", body))) for _ in range(2)
    ]
    for count, thread in enumerate(threads, 1):
        thread.start()
        wait_until(lambda count=count: own.service.active == count)
    refused = own.post("/v1/images/generations", body)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "overloaded"
    client = openai.OpenAI(base_url=f"{own.url}/v1", api_key="any", max_retries=0)
    with pytest.raises(openai.RateLimitError, match="try again after"):
        client.images.generate(prompt=PROMPT)
    assert own.metric("dit_pending_calls") == 40, "the first call has not ended"
    gate.set()
    for thread in threads:
        thread.join(SECONDS)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert own.post("/v1/images/generations", body).status_code == 200
    assert own.metric("dit_refused_total") == 2


@pytest.fixture
def keyed(tmp_path):
    from dit.generation.keys import Key

    known = [
        Key("alice", hashlib.sha256(SECRET.encode()).hexdigest(), 20),
        Key("bob", hashlib.sha256(b"other").hexdigest()),
    ]
    found = Running(keys=known)
    yield found
    found.stop()


def test_keys_and_their_quotas(keyed):
    body, path = {"prompt": PROMPT, "steps": 8}, "/v1/images/generations"  # 16 network calls
    assert keyed.post(path, body).status_code == 401
    assert keyed.post(path, body, headers={"Authorization": "Bearer wrong"}).status_code == 401
    client = openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=SECRET, max_retries=0)
    client.images.generate(prompt=PROMPT, extra_body={"steps": 8})
    beyond = keyed.post(path, body, headers={"x-api-key": SECRET})
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (429, "quota_exceeded")
    assert 0 < int(beyond.headers["retry-after"]) <= 86_400
    assert keyed.post(path, body | {"steps": 2}, headers={"x-api-key": SECRET}).status_code == 200, "4 more are 20"
    assert keyed.post(path, body, headers={"x-api-key": "other"}).status_code == 200, "bob has no quota"
    assert keyed.post("/predictions/x/cancel", {}).status_code == 401


def test_a_client_that_leaves_stops_costing(keyed):
    gate = keyed.slow()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{keyed.url}/v1/images/generations", json={"prompt": PROMPT, "steps": 10},
            headers={"x-api-key": SECRET}, timeout=httpx.Timeout(SECONDS, read=0.3),
        )  # fmt: skip
    rows = keyed.service.batcher.rows
    wait_until(lambda: all(job.request.cancelled for job in list(keyed.service._jobs)))
    gate.set()
    wait_until(lambda: keyed.service.active == 0)
    wait_until(lambda: 'status="499"} 1.0' in httpx.get(f"{keyed.url}/metrics").text)
    assert keyed.service.batcher.rows - rows <= 2, "at most the call that had begun"
    assert keyed.keys.used(keyed.keys.known[hashlib.sha256(SECRET.encode()).hexdigest()]) <= 2
    assert keyed.gate.delivered == []


def test_a_client_that_leaves_while_it_sends_is_no_failure(own, caplog):
    with socket.create_connection(("127.0.0.1", int(own.url.rsplit(":", 1)[1]))) as half:
        half.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        time.sleep(0.1)
    wait_until(lambda: 'status="499"} 1.0' in httpx.get(f"{own.url}/metrics").text)
    assert own.metric("dit_requests_total") == 1
    assert "a request failed" not in caplog.text


@pytest.mark.parametrize("own", [{"check": lambda content: {"in_words": content.decode()}}], indirect=True)
def test_a_picture_to_verify_is_bounded_and_may_need_a_key(own, keyed):
    assert httpx.post(f"{own.url}/v1/verify", content=b"hello").json() == {"in_words": "hello"}
    broken = httpx.post(f"{own.url}/v1/verify", content=b"\xff")  # UnicodeDecodeError is a ValueError
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_picture")
    assert httpx.post(f"{own.url}/v1/verify", content=bytes(10_000_001)).status_code == 413
    assert httpx.post(f"{keyed.url}/v1/verify", content=b"hello").status_code == 401
    known = httpx.post(f"{keyed.url}/v1/verify", content=b"hello", headers={"x-api-key": SECRET})
    assert known.json()["error"]["message"] == "this server verifies no pictures"


@pytest.mark.parametrize("own", [{"check": lambda content: {"in_words": content.decode()}}], indirect=True)
def test_few_pictures_to_verify_are_read_at_once(own):
    where, answers = ("127.0.0.1", int(own.url.rsplit(":", 1)[1])), []

    def status():
        answers.append(httpx.post(f"{own.url}/v1/verify", content=b"hello"))
        return answers[-1].status_code

    halves = [socket.create_connection(where) for _ in range(4)]
    for half in halves:
        half.sendall(b"POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
    wait_until(lambda: status() == 429)
    assert answers[-1].headers["retry-after"] == "1"
    for half in halves:
        half.close()
    wait_until(lambda: status() == 200)


def test_a_user_whose_texts_are_erased_is_refused_before_anything_is_sampled(tmp_path):
    log = AuditLog(tmp_path / "log")
    keys = [Key(name, hashlib.sha256(name.encode()).hexdigest()) for name in ("ann", "bob")]
    server = Running(keys=keys, delivery=Audited(Delivery(), log, "local", {}))

    def post(name):
        return server.post("/v1/images/generations", {"prompt": PROMPT}, headers={"x-api-key": name})

    try:
        assert post("ann").status_code == 200
        log.erase("ann")
        rows, entries = server.service.batcher.rows, log.head()[0]
        refused = post("ann")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "erased")
        assert (server.service.batcher.rows, log.head()[0]) == (rows, entries)
        assert post("bob").status_code == 200
    finally:
        server.stop()


def test_what_a_user_wrote_is_not_on_stderr_of_the_server(tmp_path, capsys):
    policy, jobs = Policy({"mine": Means()}), jobs_of(Ask("a circle", 3, 1, 4, 2.0, "ddim", (32, 32)))
    Screened(policy, None).check_prompts(jobs)
    assert capsys.readouterr().err == "refused: seed_3: policy.mine\n"
    Screened(policy, tmp_path / "refusals").check_prompts(jobs)
    assert capsys.readouterr().err == "refused: seed_3: policy.mine: it has circle\n"


def test_a_prediction_can_be_cancelled(own):
    gate, answers = own.slow(), []
    put = threading.Thread(
        target=lambda: answers.append(
            httpx.put(f"{own.url}/predictions/mine", json={"input": {"prompt": PROMPT}}, timeout=SECONDS)
        )
    )
    put.start()
    wait_until(lambda: own.service.active == 1)
    assert httpx.put(f"{own.url}/predictions/mine", json={"input": {"prompt": PROMPT}}).status_code == 409
    assert own.post("/predictions/mine/cancel", {}).json() == {"status": "canceled"}
    gate.set()
    put.join(SECONDS)
    assert answers[0].json()["error"] == "the request was cancelled"


def test_an_id_is_taken_once_and_belongs_to_its_user(keyed):
    gate, url, answers = keyed.slow(), f"{keyed.url}/predictions/mine", []

    def put(secret):
        body = {"input": {"prompt": PROMPT, "num_inference_steps": 2}}
        answers.append(httpx.put(url, json=body, headers={"x-api-key": secret}, timeout=SECONDS).status_code)

    threads = [threading.Thread(target=put, args=(secret,)) for secret in (SECRET, SECRET, "other")]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answers) == 1 and keyed.service.active == 2)
    assert answers == [409], "one of the two of alice"
    assert httpx.put(url, json={}).status_code == 401, "the key is checked first"
    assert keyed.post("/predictions/mine/cancel", {}, headers={"x-api-key": "other"}).status_code == 200
    gate.set()
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(answers) == [200, 409, 499], "alice's was not cancelled by bob"


@pytest.mark.parametrize("own", [{"limits": Limits(requests=1)}], indirect=True)
def test_a_queued_request_that_is_cancelled_never_begins(own):
    from dit.generation.contracts import ask_of

    gate, ask = own.slow(), ask_of({"prompt": PROMPT}, own.service.menu)
    first, second = own.service.submit(ask), own.service.submit(ask)
    own.service.cancel(second)
    own.service.cancel(second)
    assert own.service.active == 1
    gate.set()
    assert first.result.result(SECONDS).calls == 8
    assert second.request.rows == 0
    wait_until(lambda: len(own.gate.rows) == 2)
    assert {row.get("failed") for row in own.gate.rows} == {None, "the request was cancelled"}


def test_a_failure_is_a_500_whose_reason_stays_here_and_the_next_request_is_served(own, caplog):
    network = own.service.batcher.network
    own.service.batcher.network = lambda *given: 1 / 0
    answer = own.post("/v1/images/generations", {"prompt": PROMPT})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "server_error")
    assert "division by zero" not in answer.text, "a reason may name files of the server"
    assert "division by zero" in caplog.text
    assert [row["failed"] for row in own.gate.rows] == ["division by zero"]
    own.service.batcher.network = lambda *given: network(*given) * torch.nan
    assert own.post("/v1/images/generations", {"prompt": PROMPT}).status_code == 500
    assert "not finite" in caplog.text
    own.service.batcher.network = network
    assert own.post("/v1/images/generations", {"prompt": PROMPT}).status_code == 200


def test_no_picture_of_a_request_that_cannot_be_signed_is_logged_as_delivered(own):
    own.gate.sign = lambda row, png: png + b"signed"[: 1 // (1 - row["seed"])]  # fails for the second one
    assert own.post("/v1/images/generations", {"prompt": PROMPT, "n": 2, "seed": 0}).status_code == 500
    assert (len(own.gate.rows), own.gate.delivered) == (2, [])


def test_nothing_is_delivered_without_its_log_entry(own, caplog):
    def full(row, decisions, png, facts):
        raise OSError("no space left on the disk of the log")

    own.gate.log = full
    answer = own.post("/v1/images/generations", {"prompt": PROMPT})
    assert answer.status_code == 500
    assert "b64_json" not in answer.text
    [line] = [line for line in caplog.text.splitlines() if line]
    assert line.endswith("a request failed: no space left on the disk of the log")


def test_liveness_is_apart_from_readiness_and_a_draining_server_refuses(own):
    own.service.draining = True
    assert httpx.get(f"{own.url}/readyz").status_code == 503
    assert httpx.get(f"{own.url}/healthz").status_code == 200
    refused = own.post("/v1/images/generations", {"prompt": PROMPT})
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    own.service.draining, own.service.ready = False, False
    assert httpx.get(f"{own.url}/ping").json() == {"status": "starting"}
    own.service.batcher.close()
    assert httpx.get(f"{own.url}/healthz").status_code == 500


def test_the_page_has_what_may_be_asked_for_and_nothing_can_leave_its_script(running):
    page = httpx.get(running.url).text
    menu = json.loads(page.split('id="menu">')[1].split("</script>")[0])
    assert (menu["model"], menu["samplers"], menu["sizes"]) == ("tiny", ["ddim", "heun"], ["32x32", "64x32"])
    assert "http" not in page.replace("httpx", "")
    assert 'name="viewport"' in page


KINDS = {"good": 0.6, "refused": 0.1, "unknown word": 0.1, "malformed": 0.1, "leaves": 0.1}


async def burst(running, clients, requests):
    """Sends requests of clients, some of which leave, and some of which are at fault; returns how often each kind of
    request had each status."""
    draw, counts = random.Random(0), Counter()

    async def client(number):
        async with httpx.AsyncClient(base_url=running.url, timeout=SECONDS) as http:
            for _ in range(requests // clients):
                kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
                body = {"prompt": {"refused": "a red circle", "unknown word": "a large green star"}.get(kind, PROMPT)}
                body |= {"sampler": draw.choice(["ddim", "heun"]), "guidance_scale": draw.choice([1, 3])}
                content = json.dumps(body | {"steps": draw.randint(1, 3)})[: -1 if kind == "malformed" else None]
                timeout = httpx.Timeout(SECONDS, read=0.001 if kind == "leaves" else SECONDS)
                try:
                    answer = await http.post("/v1/images/generations", content=content, timeout=timeout)
                    assert answer.status_code == 200 or answer.json()["error"]["message"]
                    counts[kind, answer.status_code] += 1
                except httpx.TimeoutException:
                    counts[kind, "left"] += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    return counts


@pytest.mark.parametrize(
    ("clients", "requests"), [(10, 100), pytest.param(50, 1000, marks=pytest.mark.slow)], ids=["100", "1000"]
)
def test_under_load_nothing_is_lost_and_log_and_metrics_agree(tmp_path, clients, requests):
    log = AuditLog(tmp_path / "log")
    own = Running(delivery=Audited(Refuses(), log, "local", {}))
    try:
        counts = asyncio.run(burst(own, clients, requests))
        wait_until(lambda: own.service.active == 0)
        text = httpx.get(f"{own.url}/metrics").text
        by_status = {
            line.split('status="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1])
            for line in text.splitlines() if line.startswith("dit_requests_total{")
        }  # fmt: skip
        pictures, pending = own.metric("dit_pictures_total"), own.metric("dit_pending_calls")
    finally:
        own.stop()
    assert counts.total() == requests
    answers = {"good": 200, "refused": 400, "unknown word": 400, "malformed": 400}
    assert all(answers[kind] == status for kind, status in counts if kind != "leaves"), counts
    assert counts["leaves", "left"] > 0
    assert by_status["400"] == sum(count for (_, status), count in counts.items() if status == 400)
    assert by_status["200"] >= counts["good", 200], "some that left were served at the same moment"
    assert set(by_status) <= {"200", "400", "499"}
    assert sum(by_status.values()) <= requests, "a client may leave before its request is read"
    logged = Counter(json.loads(body)["kind"] for _, body, _ in log.entries())
    assert logged.pop("failure", 0) <= by_status.get("499", 0), "a client may leave before its request is admitted"
    assert logged == {"key": 1, "delivery": by_status["200"], "refusal": counts["refused", 400]}
    assert (pictures, pending) == (logged["delivery"], 0)
    assert faults(log) == []


def test_a_sampler_of_unknown_cost_is_refused():
    pipe = pipeline()
    with pytest.raises(ValueError, match="sampler=dopri5: its number of network calls is not known"):
        Menu(pipe, {"dopri5": Dopri5(1e-3, 1e-3)}, UniformTime(), ClassifierFree, 4, 1.0, [(32, 32)], Limits())


def test_the_largest_seed_may_be_asked_for():
    from dit.generation.contracts import ask_of

    menu = menu_of(pipeline(), Limits())
    assert ask_of({"prompt": PROMPT, "seed": 2**32 - 2, "n": 2}, menu).seeds[-1] == 2**32 - 1
    menu.check(ask_of({"prompt": PROMPT, "seed": 2**32 - 2, "n": 2}, menu))
    with pytest.raises(Refused, match="must be from 0 to 4294967294"):
        menu.check(ask_of({"prompt": PROMPT, "seed": 2**32 - 1, "n": 2}, menu))


def test_costs_are_what_is_computed():
    """The cost that a request is admitted and charged by is the network evaluations of its pictures."""
    pipe = pipeline()
    menu = menu_of(pipe, Limits())
    from dit.generation.contracts import ask_of

    for sampler in ("ddim", "heun"):
        for scale in (1.0, 3.0):
            ask = ask_of({"prompt": PROMPT, "sampler": sampler, "scale": scale, "n": 2, "steps": 5}, menu)
            recipe, condition, cost = menu.order(ask)
            assert cost == pipe(condition, ask.seeds, recipe).nfe * 2


def test_a_new_key_is_shown_once_and_stored_as_a_hash(tmp_path):
    file = tmp_path / "keys.json"
    secret = add_key(file, "alice", 100)
    other = add_key(file, "bob", None)
    text = file.read_text()
    assert secret not in text
    assert other not in text
    assert [(key.name, key.calls_per_day) for key in read_keys(file)] == [("alice", 100), ("bob", None)]
    assert Keys(read_keys(file)).of(secret).name == "alice"
    with pytest.raises(ValueError, match=r"new_key=alice: .* has a key of this name"):
        add_key(file, "alice", 1)
    file.write_text('[{"name": 1}]')
    with pytest.raises(ValueError, match="is not a file of keys"):
        read_keys(file)


def test_a_quota_begins_again_at_midnight():
    from dit.generation.keys import Key

    now = [86_400.0 * 3 + 86_399]
    key = Key("a", "x", 10)
    keys = Keys([key], now=lambda: now[0])
    keys.charge(key, 10)
    with pytest.raises(Refused, match="it begins again in 1 s"):
        keys.charge(key, 1)
    now[0] += 1
    keys.charge(key, 10)


@pytest.mark.slow
def test_a_held_picture_is_given_only_to_its_user_and_only_when_two_approve(tmp_path):
    """The answer is no success; the log has the release."""
    pytest.importorskip("rfc8785")
    log, hold = AuditLog(tmp_path / "log"), holding_folder(tmp_path / "hold")
    keys = [Key(name, hashlib.sha256(name.encode()).hexdigest()) for name in ("ann", "bob")]
    server = Running(keys=keys, delivery=Audited(Delivery(), log, "local", {}, hold))
    ann, bob = ({"x-api-key": name} for name in ("ann", "bob"))

    def given(id, headers):
        found = httpx.get(f"{server.url}/held/{id}", headers=headers, timeout=SECONDS)
        return found.status_code, found.content if found.status_code == 200 else found.json()["error"]["code"]

    try:
        answer = server.post("/v1/images/generations", {"prompt": PROMPT, "n": 2, "seed": 3}, headers=ann)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "pending_review")
        first, second = answer.json()["error"]["message"].rpartition(": ")[2].split(", ")
        assert given(first, ann) == (403, "pending_review")
        assert given(first, bob) == given("0" * 32, ann) == (404, "not_found")
        for reviewer in ("eve", "dan"):
            pictures = held_in(log, hold)
            give(log, pictures[f"{first}.png"], reviewer, APPROVED)
            give(log, pictures[f"{second}.png"], reviewer, REJECTED, "blurred")
        for _ in range(2):
            assert given(first, ann) == (200, (hold / f"{first}.png").read_bytes())
        assert server.metric("dit_pictures_total") == 2
        with server.service._delivering:  # it does not wait for those who sample
            assert given("0" * 32, ann) == (404, "not_found")
            assert given(first, bob) == (404, "not_found")
        assert given(second, ann) == (403, "rejected_in_review")
    finally:
        server.stop()
    bodies = [json.loads(body) for _, body, _ in log.entries()]
    assert [body["of"] for body in bodies if body["kind"] == "release"] == [2]
    assert {body["key"] for body in bodies if body["kind"] == "pending"} == {"ann"}
