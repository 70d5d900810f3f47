"""The watermark of RivaGAN (Zhang et al. 2019, arXiv:1909.01285): two networks that hide and read 32 bits.

The weights are ONNX files that the user names, rivagan_encoder.onnx and rivagan_decoder.onnx; the wheel of
invisible-watermark 0.2.0 (MIT) contains them. They were trained on frames of videos.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from dit.errors import first_line
from dit.generation.marks import RATE, Mark, Origin
from dit.generation.watermark import FLIPS, Detection, corrected, resized

BITS = 32
THRESHOLD = 0.52  # of the decoder's output, above which a bit is 1


class Riva(Mark):
    """RivaGAN with a message that is drawn from the key: the bits that are read from pictures without a mark are not
    even, so that a message that is chosen by hand would be found too often. encoder, decoder: ONNX files;
    encoder_sha256, decoder_sha256: the SHA-256 that they must have."""

    kind = "riva"

    def __init__(
        self,
        key: str,
        encoder: str,
        decoder: str,
        encoder_sha256: str,
        decoder_sha256: str,
        card: str | None = None,
        rate: float = RATE,
    ) -> None:
        super().__init__(key, card, rate)
        self.hashes = [encoder_sha256, decoder_sha256]
        self.encoder, self.decoder = network(encoder, encoder_sha256), network(decoder, decoder_sha256)
        drawn = np.frombuffer(hmac.digest(self.key, b"dit riva message 1", "sha256")[: BITS // 8], np.uint8)
        self.message = np.unpackbits(drawn)

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"weights": self.hashes}

    def embed(self, picture: np.ndarray) -> np.ndarray:
        inputs = {"frame": frame_of(picture), "data": self.message[None].astype(np.float32)}
        marked = self.encoder.run(None, inputs)[0][0, :, 0].transpose(1, 2, 0)
        return ((marked.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)

    def detect(
        self, picture: np.ndarray, size: tuple[int, int] | None = None, origin: Origin | None = None
    ) -> Detection:
        """Tests a picture by the number of right bits, also mirrored. The p-value is that of the binomial distribution
        with even bits: of a message that has nothing to do with the picture, and at least as large as it must be,
        because the number is whole."""
        whole = size is None or size == (picture.shape[1], picture.shape[0])
        given = picture if whole or size is None else resized(picture, size)
        right = {flip: self.right(np.flip(given, axes) if axes else given) for flip, axes in FLIPS.items()}
        flip = max(right, key=lambda name: right[name])
        p_value = float(binom.sf(right[flip] - 1, BITS, 0.5))
        return Detection(corrected(p_value, len(FLIPS)), len(FLIPS), flip, resized=not whole)

    def right(self, picture: np.ndarray) -> int:
        """Returns how many bits of the message are read from a picture (H, W, 3) uint8."""
        [read] = self.decoder.run(None, {"frame": frame_of(picture)})[0]
        return int(((read > THRESHOLD) == (self.message == 1)).sum())


def frame_of(picture: np.ndarray) -> np.ndarray:
    """Returns a picture (H, W, 3) uint8 as a batch of one video of one frame, (1, 3, 1, H, W) float32 in [-1, 1]."""
    return (picture.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None, :, None]


def network(file: str, sha256: str) -> Any:
    """Returns an ONNX network on the CPU. Raises ValueError without the extra, if the file cannot be read, and if it
    has another SHA-256."""
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("marks=riva needs onnxruntime, which is missing: pip install 'dit[marks]'") from None
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the network {file}: {error.strerror or error}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{file} has the SHA-256 {found}, not {sha256}: take the file of invisible-watermark 0.2.0, or give the "
            f"hash of yours"
        )
    try:
        return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own classes of errors
        raise ValueError(f"{file} is not an ONNX network: {first_line(error)}") from None
