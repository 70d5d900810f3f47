"""Pictures in one npz file, in the format of ADM's evaluator (Dhariwal and Nichol 2021, arXiv:2105.05233)."""

from __future__ import annotations

import hashlib
import math
import struct
import zipfile
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
from numpy.lib import format as npy
from tqdm import tqdm

from dit.errors import BROKEN_ZIP, first_line

MEMBER = "arr_0.npy"


def members(path: str | Path) -> set[str]:
    """Returns the names of the arrays in an npz. Raises ValueError if it is not an npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except BROKEN_ZIP as error:
        raise ValueError(f"{path} cannot be read as npz, or is incomplete: {first_line(error)}") from None


def array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns shape, whether the order is Fortran's, and dtype of an array. Leaves the stream at its first byte."""
    read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
    return read(stream)


class NpzPictures:
    """The pictures `arr_0` of an npz, (N, H, W, 3) uint8. Other arrays, such as labels, are ignored; captions are "".

    Pictures are read on demand: from an uncompressed file in any order, from a compressed one fastest in ascending
    order. The whole file is read once, to verify its checksums and for the fingerprint, which depends on the pictures
    and not on the compression. Raises ValueError for any other layout, and for an incomplete file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        found = members(path)
        if "arr_0" not in found:
            self._refuse(f"holds {', '.join(sorted(found)) or 'nothing'}")
        try:
            archive = zipfile.ZipFile(self.path)
            self.stream = archive.open(MEMBER)
            self.shape, fortran, dtype = array_header(self.stream)
        except BROKEN_ZIP as error:
            raise ValueError(f"{path} cannot be read, or is incomplete: {first_line(error)}") from None
        except ValueError:
            self._refuse("holds an arr_0 that is not an array")
        if dtype != np.uint8 or fortran or len(self.shape) != 4 or self.shape[3] != 3 or 0 in self.shape:
            order = " in Fortran's order" if fortran else ""
            self._refuse(f"holds arr_0 of shape {self.shape} and type {dtype}{order}")
        self.start = self.stream.tell()
        self.fingerprint = self._fingerprint()
        self.rows = self._mapped(archive.getinfo(MEMBER))
        self.captions = [""] * self.shape[0]

    def _refuse(self, found: str) -> NoReturn:
        raise ValueError(f"{self.path} {found}; pictures must be arr_0 of shape (N, H, W, 3) and type uint8, 0 to 255")

    def _fingerprint(self) -> str:
        digest, size = hashlib.sha256(f"npz 1 {self.shape}".encode()), math.prod(self.shape)
        bar = tqdm(total=size, desc=f"reading {self.path}", unit="B", unit_scale=True, leave=False)
        try:
            with bar:
                while chunk := self.stream.read(1 << 22):
                    digest.update(chunk)
                    bar.update(len(chunk))
        except BROKEN_ZIP as error:
            raise ValueError(f"{self.path} is broken: {first_line(error)}") from None
        if self.stream.tell() != self.start + size:
            self._refuse(f"holds {self.stream.tell() - self.start} of the {size} bytes that its arr_0 must have")
        return digest.hexdigest()[:16]

    def _mapped(self, info: zipfile.ZipInfo) -> np.memmap | None:
        """Returns the array, mapped from the file, or None if it is compressed."""
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        with open(self.path, "rb") as file:  # the member's local header: 30 bytes, its name, and an extra field
            file.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
        return np.memmap(self.path, np.uint8, "r", info.header_offset + 30 + name + extra + self.start, self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def images(self, index: np.ndarray) -> np.ndarray:
        rows = np.asarray(index)
        if self.rows is not None:
            pictures = self.rows[rows]
        else:
            size = math.prod(self.shape[1:])
            pictures = np.empty((len(rows), *self.shape[1:]), np.uint8)
            for place, row in enumerate(rows):
                self.stream.seek(self.start + int(row) * size)
                pictures[place] = np.frombuffer(self.stream.read(size), np.uint8).reshape(self.shape[1:])
        return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
