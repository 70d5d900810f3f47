"""Writers of pictures in the layouts that other software reads. A shard is written under a temporary name and renamed
when it is complete; its content depends on its pictures alone."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from webdataset import TarWriter

from dit.files import replacing, write_atomic
from dit.generation.encoding import Encoding
from dit.generation.rows import Row, flat, json_of

Add = Callable[[Mapping[str, Any], bytes], None]  # a row, and the content of its file
PNG = Encoding()
ROW_GROUP = 64  # rows of a parquet file that are read together
FEATURE = {"info": {"features": {"image": {"_type": "Image"}}}}  # as HF datasets marks a column of pictures


class Writer(Protocol):
    """Writes shards of pictures into a folder. names: of the files and folders that it writes there; encoding: of the
    pictures."""

    names: ClassVar[re.Pattern[str]]
    folder: Path
    encoding: Encoding
    single: bool  # whether every picture is a file
    metadata_file: str | None  # relative to the folder

    def __init__(self, folder: Path, encoding: Encoding = PNG) -> None: ...

    def file_of(self, shard: int, name: str) -> str:
        """Returns the file of a picture, relative to the folder."""

    def shard(self, shard: int) -> AbstractContextManager[Add]:
        """Returns a context that writes a shard, and yields a function that adds a picture to it."""

    def read(self, row: Row) -> bytes:
        """Returns the content of the file of a picture that was written."""

    def metadata(self, row: Row) -> Row:
        """Returns what the metadata file says of a picture."""


class Folder:
    """Files in one folder, with their prompts in metadata.jsonl."""

    names: ClassVar = re.compile(r"(model_\d+_)?prompt_\d+_seed_\d+(_\d+x\d+)?\.(png|jpg|webp)|metadata\.jsonl")
    single = True
    metadata_file: str | None = "metadata.jsonl"

    def __init__(self, folder: Path, encoding: Encoding = PNG) -> None:
        self.folder, self.encoding = folder, encoding

    def file_of(self, shard: int, name: str) -> str:
        return f"{name}.{self.encoding.suffix}"

    @contextmanager
    def shard(self, shard: int) -> Iterator[Add]:
        yield lambda row, content: write_atomic(self.folder / self.file_of(shard, row["name"]), content)

    def read(self, row: Row) -> bytes:
        return (self.folder / row["file"]).read_bytes()

    def metadata(self, row: Row) -> Row:
        return {"file_name": row["file"], "text": row["prompt"]}


class ImageFolder(Folder):
    """The layout of HF `imagefolder` for many pictures: files in numbered folders below train/, and all fields in
    metadata.jsonl."""

    names: ClassVar = re.compile(r"train/(\d{5,}|metadata\.jsonl)")
    metadata_file: str | None = "train/metadata.jsonl"

    def file_of(self, shard: int, name: str) -> str:
        return f"train/{shard:05d}/{name}.{self.encoding.suffix}"

    def metadata(self, row: Row) -> Row:
        name = str(Path(row["file"]).relative_to("train"))
        rest = {name: value for name, value in flat(row).items() if name not in ("file", "prompt")}
        return {"file_name": name, "text": row["prompt"]} | rest


class WebDataset:
    """Tar files, in which each picture has a .png (.jpg, .webp), its prompt as .txt and its row as .json."""

    names: ClassVar = re.compile(r"\d{5,}\.tar")
    single = False
    metadata_file: str | None = None

    def __init__(self, folder: Path, encoding: Encoding = PNG) -> None:
        self.folder, self.encoding = folder, encoding

    def file_of(self, shard: int, name: str) -> str:
        return f"{shard:05d}.tar"

    @contextmanager
    def shard(self, shard: int) -> Iterator[Add]:
        with (
            replacing(self.folder / self.file_of(shard, "")) as growing,
            TarWriter(str(growing), encoder=False, mtime=0) as tar,
        ):

            def add(row: Mapping[str, Any], content: bytes) -> None:
                parts = {self.encoding.suffix: content, "txt": row["prompt"].encode(), "json": json_of(row).encode()}
                tar.write({"__key__": row["name"], **parts})

            yield add

    def read(self, row: Row) -> bytes:
        with tarfile.open(self.folder / row["file"]) as tar:
            member = tar.extractfile(f"{row['name']}.{self.encoding.suffix}")
            assert member is not None
            return member.read()

    def metadata(self, row: Row) -> Row:
        return row


class Parquet:
    """Parquet files with a column of pictures and the fields of their rows, as HF datasets reads them."""

    names: ClassVar = re.compile(r"\d{5,}\.parquet")
    single = False
    metadata_file: str | None = None

    def __init__(self, folder: Path, encoding: Encoding = PNG) -> None:
        self.folder, self.encoding = folder, encoding

    def file_of(self, shard: int, name: str) -> str:
        return f"{shard:05d}.parquet"

    @contextmanager
    def shard(self, shard: int) -> Iterator[Add]:
        rows, opened = list[Row](), list[pq.ParquetWriter]()
        with replacing(self.folder / self.file_of(shard, "")) as growing:

            def write() -> None:
                if not opened:
                    opened.append(pq.ParquetWriter(growing, schema_of(rows)))
                opened[0].write_table(pa.Table.from_pylist(rows, opened[0].schema))
                rows.clear()

            def add(row: Mapping[str, Any], content: bytes) -> None:
                fields = {name: value for name, value in flat(row).items() if name != "file"}
                rows.append({"image": {"bytes": content, "path": f"{row['name']}.{self.encoding.suffix}"}, **fields})
                if len(rows) == ROW_GROUP:
                    write()

            try:
                yield add
                if rows or not opened:
                    write()
            finally:
                for file in opened:
                    file.close()

    def read(self, row: Row) -> bytes:
        table = pq.read_table(self.folder / row["file"], columns=["image"], filters=[("index", "=", row["index"])])
        return table["image"][0].as_py()["bytes"]

    def metadata(self, row: Row) -> Row:
        return row


def schema_of(rows: Sequence[Row]) -> pa.Schema:
    """Returns the schema of rows with a picture; all have the fields of the first."""
    fields = {name: value for name, value in (rows[0] if rows else {}).items() if name != "image"}
    kinds = {name: pa.int64() if isinstance(value, int) else pa.string() for name, value in fields.items()}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.schema({"image": image} | kinds, metadata={"huggingface": json.dumps(FEATURE)})


WRITERS: dict[str, type[Writer]] = {
    "folder": Folder,
    "imagefolder": ImageFolder,
    "webdataset": WebDataset,
    "parquet": Parquet,
}
