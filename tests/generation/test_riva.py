"""RivaGAN's mark, with tiny ONNX networks: a bit brightens or darkens a column, and is read from its mean."""

import hashlib
import struct
from functools import cache

import numpy as np
import pytest
from scipy.stats import kstest

pytest.importorskip("onnxruntime")

from dit.generation import riva as riva_module
from dit.generation.riva import Riva

FLOAT, INT64 = 1, 7  # types of tensors in ONNX


def field(number, value):
    """A field of a protocol buffer: of an int, a text, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def node(kind, inputs, output):
    return field(1, b"".join([*(field(1, name) for name in inputs), field(2, output), field(4, kind)]))


def constant(name, values, kind):
    data = struct.pack(f"<{len(values)}{'f' if kind == FLOAT else 'q'}", *values)
    dims = b"" if kind == FLOAT else field(1, len(values))
    return field(5, dims + field(2, kind) + field(8, name) + field(9, data))


def value(number, name, rank):
    dims = b"".join(field(1, field(2, f"{name}_{axis}")) for axis in range(rank))
    return field(number, field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, dims))))


def model(*parts):
    graph = b"".join([*parts[:-1], field(2, "tiny"), parts[-1]])
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


ENCODER = model(  # frame + (data - 0.5) * 0.1, the bits along the width
    node("Sub", ["data", "half"], "centred"), node("Mul", ["centred", "tenth"], "small"),
    node("Reshape", ["small", "columns"], "added"), node("Add", ["frame", "added"], "output"),
    constant("half", [0.5], FLOAT), constant("tenth", [0.1], FLOAT), constant("columns", [-1, 1, 1, 1, 32], INT64),
    value(11, "frame", 5) + value(11, "data", 2) + value(12, "output", 5),
)  # fmt: skip
DECODER = model(  # the means of the columns, which are 0 in a grey picture, + 0.52
    node("Mul", ["frame", "many"], "large"),
    field(1, field(1, "large") + field(2, "mean") + field(4, "ReduceMean") + field(5, field(1, "axes") + field(8, 1)
          + field(8, 2) + field(8, 3) + field(20, 7)) + field(5, field(1, "keepdims") + field(3, 0) + field(20, 2))),
    node("Add", ["mean", "threshold"], "output"),
    constant("many", [10.0], FLOAT), constant("threshold", [0.52], FLOAT),
    value(11, "frame", 5) + value(12, "output", 2),
)  # fmt: skip


@pytest.fixture
def files(tmp_path):
    (tmp_path / "encoder").write_bytes(ENCODER)
    (tmp_path / "decoder").write_bytes(DECODER)
    hashes = [hashlib.sha256(content).hexdigest() for content in (ENCODER, DECODER)]
    return [str(tmp_path / "encoder"), str(tmp_path / "decoder"), *hashes]


def mark(tmp_path, files, number=0):
    (tmp_path / f"key_{number}").write_bytes(bytes([number]) * 32)
    return Riva(str(tmp_path / f"key_{number}"), *files)


GREY = np.full((16, 32, 3), 128, np.uint8)


def test_a_marked_picture_is_found_also_mirrored_and_resized(tmp_path, files):
    riva = mark(tmp_path, files)
    marked = riva.embed(GREY)
    assert (marked.shape, marked.dtype) == (GREY.shape, np.uint8)
    assert abs(marked.astype(int) - 128).max() <= 8
    assert riva.detect(marked).p_value < 1e-6
    assert riva.detect(marked[:, ::-1]).flip == "left-right"
    larger = np.repeat(np.repeat(marked, 2, 0), 2, 1)
    assert riva.detect(larger, (32, 16)).p_value < 1e-6
    assert mark(tmp_path, files, 1).detect(marked).p_value > 1e-4


def test_p_values_without_the_mark_are_at_least_uniform(tmp_path, files, monkeypatch):
    """Also of a decoder that reads the same bits from every picture."""
    monkeypatch.setattr(riva_module, "network", cache(riva_module.network))
    marked = mark(tmp_path, files).embed(GREY)
    found = [mark(tmp_path, files, number).detect(marked).p_value for number in range(1, 150)]
    assert kstest(found, "uniform", alternative="greater").pvalue > 0.001
    assert min(found) < 0.2  # and not all large


def test_other_files_are_refused(tmp_path, files):
    with pytest.raises(ValueError, match=r"has the SHA-256 .* take the file of invisible-watermark 0.2.0"):
        mark(tmp_path, [files[1], files[1], *files[2:]])
    with pytest.raises(ValueError, match="cannot read the network none"):
        mark(tmp_path, ["none", *files[1:]])
    (tmp_path / "encoder").write_bytes(b"no network")
    with pytest.raises(ValueError, match="is not an ONNX network"):
        mark(tmp_path, [files[0], files[1], hashlib.sha256(b"no network").hexdigest(), files[3]])
