"""Laws of batching at the network call."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from dit.adapters.extra import ExtraConditions
from dit.backbones.text_dit import TextDiT
from dit.cost import Cost
from dit.diffusion.guidance import ClassifierFree, Interval
from dit.diffusion.path import Linear
from dit.diffusion.prediction import Flow
from dit.diffusion.sampler.ddim import ddim
from dit.diffusion.sampler.multistep import dpmpp, unipc
from dit.diffusion.sampler.runge_kutta import heun
from dit.diffusion.time import UniformTime
from dit.encoders.autoencoder import PretrainedAutoencoder
from dit.encoders.text import WordEncoder
from dit.generation.batching import Batcher, Cancelled, Request, SharedBackbone, shared
from dit.layers.step_cache import FirstBlockCache
from dit.pipeline import Pipeline, Recipe
from dit.types import Condition

from ..backbones.test_backbones import BACKBONES, inputs, woken

WORDS = ["a", "large", "small", "red", "blue", "star", "circle"]
PROMPTS = ["a large red star", "a small blue circle", "star", "", "a star"]
SECONDS = 30  # until a test that hangs fails


def pipeline() -> Pipeline:
    text, small = WordEncoder(WORDS, width=12), {"channels": 4, "width": 48, "depth": 2, "heads": 4}
    net = woken(lambda: TextDiT(token_dim=12, pooled_dim=12, **small))
    return Pipeline(net, Linear(), Flow(), text, PretrainedAutoencoder("shapes_autoencoder"), (4, 8, 8))


def recipes():
    return [
        Recipe(sampler, UniformTime(0.99), steps, guidance)
        for sampler, steps, guidance in [
            (ddim, 3, ClassifierFree(1.0)), (heun, 4, ClassifierFree(3.0)), (dpmpp, 6, ClassifierFree(2.0)),
            (unipc, 5, Interval(4.0)), (lambda *given: ddim(*given, eta=1.0), 7, ClassifierFree(5.0)),
        ]
    ]  # fmt: skip


@pytest.fixture
def batched():
    one, batcher = shared(pipeline(), max_rows=16)
    yield one, batcher
    batcher.close()


def start_all(count, job):
    """Runs job(i) in threads that all start at once; returns the results in order."""
    gate = threading.Barrier(count)

    def run(i):
        gate.wait(SECONDS)
        return job(i)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count), timeout=SECONDS))


def test_pictures_are_as_alone_for_any_mixture_of_requests(batched):
    """Different samplers, steps, guidance, text lengths, sizes and numbers of pictures."""
    one, batcher = batched
    plain, how, shapes = pipeline(), recipes(), [(4, 8, 8), (4, 8, 8), (4, 4, 8)]

    def given(i):
        prompts = [PROMPTS[i % 5], PROMPTS[(i + 1) % 5]][: 1 + i % 2]
        return prompts, range(i, i + len(prompts)), how[i % 5]

    def sample(i):
        with batcher.sampling() as request:
            samples = one(*given(i), shape=shapes[i % 3])
        assert request.rows == samples.nfe * len(samples.images), "each request counts its own rows"
        return samples

    made = start_all(15, sample)
    alone = [plain(*given(i), shape=shapes[i % 3]) for i in range(15)]
    for ours, expected in zip(made, alone, strict=True):
        torch.testing.assert_close(ours.images, expected.images, atol=1e-5, rtol=0)
        assert ours.nfe == expected.nfe
    assert batcher.rows == sum(expected.nfe * len(expected.images) for expected in alone)
    assert batcher.rows / batcher.calls > 2.5


@pytest.mark.parametrize("name", ["mmdit", "flux_guided", "dit", "pixart_micro", "in_context", "ddt"])
def test_rows_of_every_kind_of_backbone_can_be_joined(name):
    net, (x, time, condition) = woken(BACKBONES[name]), inputs()
    batcher = Batcher(net, torch.device("cpu"), "32", longest_wait=SECONDS)
    rows = [torch.tensor([0]), torch.tensor([1, 2])]
    keeps = getattr(net, "reads_padding", True)

    both = threading.Barrier(2)

    def call(i):
        with batcher.sampling():
            both.wait(SECONDS)
            return batcher(x[rows[i]], time[rows[i]], condition[rows[i]] if keeps else condition[rows[i]].trim())

    with torch.no_grad():
        expected = net(x, time, condition)
    torch.testing.assert_close(torch.cat(start_all(2, call)), expected, atol=1e-5, rtol=0)
    assert (batcher.calls, batcher.rows) == (1, 3)
    batcher.close()


def test_the_duration_of_jumps_divides_the_calls_of_flow_maps_alone():
    """Samplers of jumps give it to every network (consistency); only a flow map reads it."""
    (x, time, condition), durations = inputs(), []
    given = [condition, replace(condition, extra={**condition.extra, "duration": torch.full((3,), 0.5)})]
    for mapped, calls in ((False, 1), (True, 2)):
        net = woken(BACKBONES["dit"])
        net = ExtraConditions(["duration"], {"duration": 0.0})(net) if mapped else net
        net.register_forward_pre_hook(lambda net, args: durations.append("duration" in args[2].extra))
        batcher, both = Batcher(net, torch.device("cpu"), "32", longest_wait=1.0), threading.Barrier(2)
        one = SharedBackbone(net, batcher)

        def call(i, one=one, both=both):
            with one.batcher.sampling():
                both.wait(SECONDS)
                return one(x, time, given[i])

        start_all(2, call)
        assert batcher.calls == calls
        batcher.close()
    assert sorted(durations) == [False, False, True]


class Clock:
    """A meter of seconds and joules that are spent by hand, two joules in a second."""

    seconds = 0.0

    def now(self):
        return Cost(0.0, self.seconds, 2 * self.seconds)


def test_requests_share_calls_by_rows_and_their_costs_sum_up_to_what_was_spent():
    clock, (x, time, condition), both = Clock(), inputs(), threading.Barrier(2)

    def network(x, time, condition):
        clock.seconds += 3.0
        return x

    batcher = Batcher(network, torch.device("cpu"), "32", longest_wait=SECONDS, meter=clock)
    requests, rows = [Request(batcher), Request(batcher)], [torch.tensor([0]), torch.tensor([1, 2])]

    def call(i):
        with batcher.sampling(requests[i]):
            both.wait(SECONDS)
            batcher(x[rows[i]], time[rows[i]], condition[rows[i]])

    start_all(2, call)
    assert [request.cost for request in requests] == [Cost(1, 1.0, 2.0), Cost(2, 2.0, 4.0)]
    clock.seconds += 100.0  # nobody samples
    with batcher.sampling() as last:
        batcher(x[rows[0]], time[rows[0]], condition[rows[0]])
        clock.seconds += 1.0  # decoding
    assert last.cost == Cost(1, 4.0, 8.0)
    batcher.close()


class Gated:
    """A network that waits at a gate and notes the sizes and shapes of its calls."""

    def __init__(self):
        self.gate, self.entered, self.seen = threading.Event(), threading.Event(), []

    def __call__(self, x, time, condition):
        self.seen.append([int(value) for value in time])
        self.entered.set()
        assert self.gate.wait(SECONDS)
        if bool((time < 0).any()):
            raise ValueError("a negative time")
        return 2 * x


class Threads:
    """Requests that each make one call, started one after the other."""

    def __init__(self, batcher):
        self.batcher, self.results, self.threads = batcher, {}, []

    def start(self, name, rows=1, side=2, busy=True):
        """busy: the network is, so that the call waits."""
        request, waiting = Request(self.batcher), len(self.batcher._waiting)

        def run():
            with self.batcher.sampling(request):
                condition = Condition(label=torch.zeros(rows, dtype=torch.int64))
                try:
                    times = torch.full((rows,), float(name))
                    self.results[name] = self.batcher(torch.ones(rows, 1, side), times, condition)
                except Exception as error:
                    self.results[name] = error

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()
        while busy and len(self.batcher._waiting) == waiting:
            threading.Event().wait(0.001)
        return request

    def join(self):
        for thread in self.threads:
            thread.join(SECONDS)
            assert not thread.is_alive()


@pytest.fixture
def gated():
    network = Gated()
    batcher = Batcher(network, torch.device("cpu"), "32", max_rows=4, longest_wait=0.001)
    threads = Threads(batcher)
    threads.start(0, busy=False)
    assert network.entered.wait(SECONDS)  # the network is busy: what follows waits
    yield network, batcher, threads
    network.gate.set()
    batcher.close()


def test_the_oldest_rows_go_first_and_shapes_are_not_mixed(gated):
    """No request waits for more than one call of each other group, and a call has at most max_rows rows."""
    network, _, threads = gated
    for name, rows, side in [(1, 1, 3), (2, 2, 2), (3, 1, 3), (4, 1, 2), (5, 3, 2), (6, 6, 3)]:
        threads.start(name, rows, side)
    network.gate.set()
    threads.join()
    assert network.seen == [[0], [1, 3], [2, 2, 4], [5, 5, 5], [6] * 6]
    assert all(torch.equal(made, 2 * torch.ones_like(made)) for made in threads.results.values())


def test_a_cancelled_request_ends_and_costs_no_more(gated):
    network, batcher, threads = gated
    waits, other = threads.start(1), threads.start(2)
    waits.cancel()
    threads.threads[1].join(SECONDS)
    assert isinstance(threads.results[1], Cancelled)
    network.gate.set()
    threads.join()
    assert network.seen == [[0], [2]]
    assert (waits.rows, other.rows, batcher.rows) == (0, 1, 2)


def test_a_request_is_aborted_at_its_next_network_call(batched):
    one, batcher = batched
    request, seen = Request(batcher), []

    def after_two(point, x, estimate):
        seen.append(point)
        if len(seen) == 2:
            request.cancel()

    with pytest.raises(Cancelled), batcher.sampling(request):
        one(PROMPTS[:1], [0], Recipe(ddim, UniformTime(0.99), 16, ClassifierFree(1.0)), watch=after_two)
    assert (len(seen), request.rows) == (2, 2)
    with batcher.sampling():
        assert one(PROMPTS[:1], [0], recipes()[0]).images.isfinite().all(), "others go on"


def test_a_request_that_fails_fails_alone(gated):
    network, batcher, threads = gated
    for name in (1, -2, 3):
        threads.start(name)
    network.gate.set()
    threads.join()
    assert network.seen == [[0], [1, -2, 3], [1], [-2], [3]]
    assert (batcher.calls, batcher.rows) == (3, 3), "what failed is not counted"
    assert isinstance(threads.results[-2], ValueError)
    assert all(isinstance(threads.results[name], torch.Tensor) for name in (0, 1, 3))


def test_what_waits_when_the_network_stops_fails_and_does_not_hang(gated):
    network, batcher, threads = gated
    threads.start(1)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closed:
        pass
    network.gate.set()
    closing.join(SECONDS)
    threads.join()
    assert isinstance(threads.results[0], torch.Tensor)
    assert isinstance(threads.results[1], RuntimeError)
    with pytest.raises(RuntimeError, match="the network has stopped"), batcher.sampling():
        batcher(torch.ones(1, 1, 2), torch.ones(1), Condition(label=torch.zeros(1, dtype=torch.int64)))


def test_a_step_cache_is_refused_because_rows_have_no_places_of_their_own(batched):
    how = Recipe(ddim, UniformTime(0.99), 4, ClassifierFree(1.0), cache=FirstBlockCache(0.1))
    with pytest.raises(ValueError, match="cache: SharedBackbone does not let its blocks be run"):
        batched[0].check(how)
    with pytest.raises(ValueError, match="max_rows=0"):
        Batcher(lambda x, time, condition: x, torch.device("cpu"), "32", max_rows=0)
