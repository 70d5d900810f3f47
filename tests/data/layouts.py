"""Writes the pictures of class folders in the other layouts that sources read."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def add(tar: tarfile.TarFile, name: str, data: bytes | str) -> None:
    content = data.encode() if isinstance(data, str) else data
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_shards(folder: Path, samples: list[dict[str, bytes | str]], count: int = 1) -> None:
    """Writes samples, each a dict of suffix -> content, into `count` shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(count):
        with tarfile.open(folder / f"{shard:02}.tar", "w") as tar:
            for number, sample in list(enumerate(samples))[shard::count]:
                for suffix, content in sample.items():
                    add(tar, f"{number:04}.{suffix}", content)


def write_parquet(file: Path, rows: list[dict], group: int = 8) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=group)


def write_layouts(root: Path) -> None:
    """Writes shards/, tables/ and saved/ below a folder of class folders."""
    import datasets

    files = sorted(root.glob("*/*.png"))
    write_shards(root / "shards", [{"png": file.read_bytes(), "cls": file.parent.name} for file in files], count=3)
    rows = [{"image": {"bytes": file.read_bytes(), "path": file.name}, "label": file.parent.name} for file in files]
    write_parquet(root / "tables" / "a.parquet", rows)
    names = sorted({file.parent.name for file in files})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_list(rows, features).save_to_disk(str(root / "saved"))
