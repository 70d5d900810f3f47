"""Fingerprints name caches: they contain every setting that changes the encoding. And prompts encoded in slices."""

import pytest
import torch

from dit.encoders.huggingface import ClipText, LanguageModelText, T5Text
from dit.encoders.joined import AlongFeatures, AlongTokens
from dit.encoders.open_clip import OpenClipText
from dit.types import Condition

from .folders import save_clip, save_language_model, save_open_clip, save_t5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {
        "clip": str(save_clip(root / "clip")), "t5": str(save_t5(root / "t5")), "llm": str(save_language_model(root / "llm")),
        "open_clip": f"local-dir:{save_open_clip(root / 'open_clip')}",
    }  # fmt: skip


KINDS = {
    "clip": lambda folders, **more: ClipText(folders["clip"], **more),
    "t5": lambda folders, **more: T5Text(folders["t5"], **{"length": 12} | more),
    "llm": lambda folders, **more: LanguageModelText(folders["llm"], **{"length": 12, "dtype": "float32"} | more),
    "open_clip": lambda folders, **more: OpenClipText(folders["open_clip"], **more),
}
SHARED = [{"keep_padding": True}, {"zero_null": True}]
SETTINGS = {
    "clip": [*SHARED, {"layer": -2}, {"layer": 1}, {"normalize": False}],
    "t5": [*SHARED, {"length": 7}],
    "llm": [
        {"zero_null": True}, {"length": 7}, {"layer": 2}, {"layer": 2, "normalize": True}, {"prefix": "a photo of "},
        {"suffix": " on the"},
    ],
    "open_clip": [*SHARED, {"layer": -2}, {"layer": 1}, {"normalize": False}],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_different_settings_have_different_fingerprints(folders, kind):
    settings = [{}, *SETTINGS[kind]]
    prints = [KINDS[kind](folders, **more).fingerprint for more in settings]
    assert len(set(prints)) == len(settings)
    assert KINDS[kind](folders, slice_size=3).fingerprint == prints[0], "slices do not change the encoding"


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_encoded_in_slices(folders, kind):
    prompts = [f"{'a ' * (i % 5)}red star" for i in range(7)]
    encoder, batch_sizes = KINDS[kind](folders, slice_size=3), []
    whole, states = KINDS[kind](folders).encode(prompts), encoder.states
    encoder.states = lambda texts, mask: batch_sizes.append(len(texts)) or states(texts, mask)
    encoded = encoder.encode(prompts)
    assert batch_sizes == [3, 3, 1]
    assert torch.equal(encoded.mask, whole.mask)
    torch.testing.assert_close(encoded.tokens, whole.tokens, atol=1e-5, rtol=1e-5)
    if encoded.pooled is not None:
        torch.testing.assert_close(encoded.pooled, whole.pooled, atol=1e-5, rtol=1e-5)


class Part:
    """An encoder that keeps the first `keeps` letters; its real tokens are 1."""

    def __init__(self, keeps, length=4, width=2, real=2, name="part"):
        self.keeps, self.length, self.real, self.fingerprint = keeps, length, real, name
        self.sizes = {"token_dim": width}

    def fit(self, prompts):
        return [prompt[: self.keeps] for prompt in prompts]

    def encode(self, prompts):
        mask = (torch.arange(self.length) < self.real).expand(len(prompts), -1)
        return Condition(tokens=mask[..., None].expand(-1, -1, self.sizes["token_dim"]).float(), mask=mask)


def test_the_fingerprint_depends_on_how_parts_are_joined():
    parts = [Part(3, name="one"), Part(3, name="two")]
    prints = {AlongTokens(parts).fingerprint, AlongFeatures(parts).fingerprint, AlongTokens(parts[::-1]).fingerprint}
    assert len(prints) == 3
    assert AlongTokens(parts).fingerprint == AlongTokens(list(parts)).fingerprint


@pytest.mark.parametrize("join", [AlongTokens, AlongFeatures])
def test_a_prompt_is_truncated_as_by_the_part_that_keeps_most_of_it(join):
    assert join([Part(3), Part(5), Part(1)]).fit(["a red star", "ab"]) == ["a red", "ab"]


def test_a_token_joined_along_features_is_real_if_it_is_for_any_part():
    encoded = AlongFeatures([Part(9, real=1, width=2), Part(9, real=3, width=3)]).encode(["a red star"])
    assert encoded.mask.tolist() == [[True, True, True, False]]
    assert encoded.tokens[0].sum(1).tolist() == [5, 3, 3, 0]


def test_narrow_tokens_are_padded_at_the_end():
    encoded = AlongTokens([Part(9, real=1, width=1), Part(9, real=2, width=3)]).encode(["a red star"])
    assert encoded.mask.sum() == 3
    assert encoded.tokens[0, :3].tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]
