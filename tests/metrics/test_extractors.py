"""Preprocessing equals that of each network's own library, for any size and number of pictures; and CLIP scores."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch_fidelity.defaults import DEFAULTS

from dit.metrics.clip import ClipScore
from dit.metrics.extractors import OpenClip, resized

from ..conftest import composed
from ..encoders.folders import save_open_clip

PROMPTS = ["a red star", "a blue circle", "a red star"]


def noise(count, side, seed=0):
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def by_pil(image, side):
    return Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return f"local-dir:{save_open_clip(tmp_path_factory.mktemp('clip') / 'clip')}"  # for pictures of 16 pixels


@pytest.mark.parametrize(("side", "other"), [(40, 16), (12, 31)])
def test_pictures_are_resized_as_pil_resizes_them(side, other):
    """PIL rounds each of its two passes to whole levels, and clips values below 0 or above 255 in each."""
    images = noise(3, side) // 2 + 64
    theirs = torch.from_numpy(np.stack([by_pil(image, other) for image in images])).permute(0, 3, 1, 2)
    assert (resized(images, other) * 255 - theirs).abs().max() < 1.6
    loud = resized((noise(3, side) // 128) * 255, other)
    assert 0 <= loud.min() < loud.max() <= 1
    assert torch.equal(resized(noise(3, side), side), noise(3, side) / 255)


def test_without_antialiasing_at_most_one_pixel_depends_on_a_line():
    line = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    line[..., 30] = 255
    counts = {antialias: int((resized(line, 16, antialias)[0, 0, 0] > 0).sum()) for antialias in (False, True)}
    assert counts[False] <= 1 < counts[True]


def test_features_of_pictures_are_those_of_open_clip(folder):
    net, _, prepare = open_clip.create_model_and_transforms(folder)
    extractor = OpenClip(folder)
    with torch.no_grad():
        theirs = net.eval().encode_image(torch.stack([prepare(by_pil(image, 16)) for image in noise(3, 16)]))
        resized_by_them = net.encode_image(torch.stack([prepare(by_pil(image, 16)) for image in noise(3, 40)]))
    torch.testing.assert_close(extractor(noise(3, 16))["pool"], theirs, rtol=1e-5, atol=1e-5)
    ours = extractor(noise(3, 40))["pool"]
    assert float((ours - resized_by_them).norm() / resized_by_them.norm()) < 0.02
    without = OpenClip(folder, antialias=False)
    assert float((without(noise(3, 40))["pool"] - ours).norm() / ours.norm()) > 0.1
    assert without.fingerprint != extractor.fingerprint
    assert not any(p.requires_grad for p in extractor.parameters())


def test_features_of_many_pictures_come_in_their_order(folder):
    images = noise(7, 16)
    torch.testing.assert_close(OpenClip(folder, slice_size=3)(images)["pool"], OpenClip(folder)(images)["pool"])


def test_a_batch_at_the_same_address_is_not_taken_from_the_cache(folder):
    extractor, images = OpenClip(folder), noise(2, 16)
    first = extractor(images)["pool"]
    assert not torch.equal(extractor(noise(2, 16, seed=1))["pool"], first)
    assert torch.equal(extractor(images)["pool"], first)


@pytest.mark.parametrize("prefix", ["", "a photo of "])
def test_the_clip_score_is_a_hundred_cosines_of_open_clip(folder, prefix):
    net, _, prepare = open_clip.create_model_and_transforms(folder)
    words = open_clip.get_tokenizer(folder)([prefix + prompt for prompt in PROMPTS])
    with torch.no_grad():
        pictures = net.eval().encode_image(torch.stack([prepare(by_pil(x, 16)) for x in noise(3, 16)]), normalize=True)
        cosines = (pictures * net.encode_text(words, normalize=True)).sum(1).double()
    metric = ClipScore("clip", OpenClip(folder), prefix, hessel=True)
    metric.update(noise(3, 16), PROMPTS)
    each = metric.result().each
    torch.testing.assert_close(each["clip"], 100 * cosines, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(each["clip_hessel"], 2.5 * cosines.clamp(min=0), rtol=1e-5, atol=1e-6)


def test_a_negative_cosine_is_clamped_only_in_hessel_s_score(folder):
    """The extractor returns minus the features of the first prompt."""
    extractor = OpenClip(folder)
    extractor.extract = lambda images: {"pool": -extractor.text_features(PROMPTS[:1]).expand(len(images), -1)}
    metric = ClipScore("clip", extractor, hessel=True)
    metric.update(noise(1, 16), PROMPTS[:1])
    assert metric.compute() == pytest.approx({"clip": -100, "clip_hessel": 0}, abs=1e-4)


def test_the_yaml_files_follow_the_protocol_of_torch_fidelity():
    def settings(name):
        return composed("evaluate", [f"metric={name}"]).metric[name]

    kid = settings("kid")
    assert (kid.subsets, kid.subset_size) == (DEFAULTS["kid_subsets"], DEFAULTS["kid_subset_size"])
    assert settings("inception_score").splits == DEFAULTS["isc_splits"]
    assert settings("precision_recall").k == DEFAULTS["prc_neighborhood"]
    assert settings("cmmd").sigma == 10  # Jayasumana et al. 2024, section 4
    assert not settings("cmmd").extractor.antialias
