"""Trains a tiny open_clip model on captioned pictures, which the CLIP metrics of the shapes data use."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from dit.diffusion.noise import generator
from dit.hub import MERGES
from dit.training.module import SampleLosses, TrainedModule
from dit.types import CaptionedBatch, to_device


def trimmed_merges(texts: Iterable[str]) -> bytes:
    """Returns the merges of CLIP's byte-pair encoding that the texts use, in their order, gzipped in CLIP's layout."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    tokenizer = SimpleTokenizer()
    pieces = {piece for text in set(texts) for word in text.lower().split() for piece in tokenizer.bpe(word).split()}
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    needed: set[str] = set(pieces)
    kept: list[str] = []
    for line in reversed(lines[1 : 49152 - 256 - 2 + 1]):  # if the result of a merge is needed, so are its two parts
        left, right = line.split()
        if left + right in needed:
            kept.append(line)
            needed |= {left, right}
    return gzip.compress("\n".join([lines[0], *reversed(kept)]).encode(), mtime=0)


class ClipModule(TrainedModule):
    """Trains with a symmetric contrastive loss over the pictures of a batch and `negatives` distinct captions of the
    data set, which include all captions of the batch. For shapes, captions that differ in one word are always included.

    At the end of the fit, writes the model to RUN/clip in open_clip's `local-dir` layout, in float16.
    """

    headlines = MappingProxyType({"val/retrieval": True})

    def __init__(
        self,
        captions: Iterable[str],
        net: dict[str, Any],
        preprocess: dict[str, Any],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        seed: int,
        negatives: int = 192,
    ) -> None:
        super().__init__(optimizer, schedule, seed)
        from open_clip import CLIP
        from open_clip.tokenizer import SimpleTokenizer

        self.captions = sorted(set(captions))
        self.merges = trimmed_merges(self.captions)
        self.config = {"model_cfg": net, "preprocess_cfg": preprocess}
        self.negatives = negatives
        length = net["text_cfg"]["context_length"]
        merges = Path(self._temporary_merges())
        self.tokenizer = SimpleTokenizer(bpe_path=str(merges), context_length=length)
        merges.unlink()
        net["text_cfg"]["vocab_size"] = self.tokenizer.vocab_size
        self.net = CLIP(**net)
        mean, std = (torch.tensor(preprocess[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
        self.mean, self.std = mean, std

    def _temporary_merges(self) -> str:
        import tempfile

        with tempfile.NamedTemporaryFile(suffix=".gz", delete=False) as file:
            file.write(self.merges)
        return file.name

    def logits(self, images: Tensor, captions: list[str]) -> Tensor:
        """Returns the scaled cosines (B, K) of pictures (B, 3, H, W) uint8 and K captions."""
        x = (images.float() / 255 - self.mean.to(images.device)) / self.std.to(images.device)
        pictures = self.net.encode_image(x.to(self.dtype), normalize=True).float()
        texts = self.net.encode_text(self.tokenizer(captions).to(self.device), normalize=True).float()
        return self.net.logit_scale.float().exp().clamp(max=100) * pictures @ texts.T

    def training_step(self, batches: list[CaptionedBatch], part: int) -> Tensor:
        batch = batches[0]
        own = sorted(set(batch.captions))
        draw = generator(self.seed, self.global_step, 0)  # three keys: two are used for the order of the pictures
        order = torch.randperm(len(self.captions), generator=draw).tolist()
        others = [self.captions[i] for i in order if self.captions[i] not in set(own)]
        pool = own + others[: max(self.negatives - len(own), 0)]
        logits = self.logits(batch.images, pool)
        target = to_device(torch.tensor([own.index(c) for c in batch.captions]), self.device)
        shown = F.one_hot(target, len(own)).T.bool()  # (K', B): which pictures show a caption
        by_text = logits[:, : len(own)].T
        right = by_text.masked_fill(~shown, -torch.inf).logsumexp(1)
        loss = (F.cross_entropy(logits, target) + (by_text.logsumexp(1) - right).mean()) / 2
        return self.log_loss(loss, part, [SampleLosses(batch.index, batch.epoch)])

    def validation_step(self, batch: CaptionedBatch, _: int) -> None:
        """Logs the retrieval accuracy: the share of held-out pictures whose caption is the nearest of all captions of
        the data set."""
        best = self.logits(batch.images, self.captions).argmax(1).tolist()
        hits = [self.captions[b] == c for b, c in zip(best, batch.captions, strict=True)]
        self.log_mean("val/retrieval", sum(hits) / len(hits), len(hits))

    def on_fit_end(self) -> None:
        if not self.trainer.is_global_zero:
            return
        folder = Path(self.trainer.default_root_dir) / "clip"
        folder.mkdir(exist_ok=True)
        (folder / "open_clip_config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        (folder / MERGES).write_bytes(self.merges)
        state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in self.net.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")
