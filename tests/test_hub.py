import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from dit.hub import load_foreign


@pytest.fixture
def online(monkeypatch):
    """A hub that can be reached."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("dit.hub.why_hub_is_unreachable", lambda: None)


class Loads:
    """Raises each of `errors` in turn, then returns 7. Records whether each call was offline."""

    def __init__(self, *errors):
        self.errors, self.offline = list(errors), []

    def __call__(self):
        self.offline.append(constants.HF_HUB_OFFLINE)
        if self.errors:
            raise self.errors.pop(0)
        return 7


def test_a_cached_model_needs_no_request(online):
    load = Loads()
    assert load_foreign(load, "it", "give it", remote=True) == 7
    assert load.offline == [True]
    assert constants.HF_HUB_OFFLINE is False


def test_the_hub_is_tried_after_the_cache(online):
    load = Loads(OSError("not cached"))
    assert load_foreign(load, "it", "give it", remote=True) == 7
    assert load.offline == [True, False]


def test_a_local_model_may_need_a_file_of_the_hub(online):
    error = RuntimeError("no tokenizer")
    error.__cause__ = LocalEntryNotFoundError("not cached")
    load = Loads(error)
    assert load_foreign(load, "it", "give it", remote=False) == 7
    assert load.offline == [True, False]


@pytest.mark.parametrize(("errors", "remote", "message"), [
    ([OSError("broken\nat length")], False, r"^it cannot be loaded \(broken\); give it$"),
    ([OSError("not cached"), OSError("gated\nask first")], True, r"^it cannot be loaded \(gated\); give it$"),
    ([KeyError()], False, r"\(KeyError\)"),
])  # fmt: skip
def test_a_failure_is_reported_in_one_line(online, errors, remote, message):
    load = Loads(*errors)
    with pytest.raises(ValueError, match=message):
        load_foreign(load, "it", "give it", remote)
    assert not load.errors


def test_an_internal_error_is_not_hidden(online):
    with pytest.raises(ZeroDivisionError):
        load_foreign(Loads(ZeroDivisionError()), "it", "give it", remote=True)
