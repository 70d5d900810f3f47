"""A layout whose images are in files of many: shards and tables, local, at a URL or in an object store."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from tqdm import tqdm

from dit.data.remote import Unreachable, expand, protocol_of, stamp_of
from dit.data.rows import Row, indexed
from dit.data.splits import split_of_file


@dataclass(frozen=True)
class FilesLayout:
    """The files of a path; see `expand`. A file that is missing or cut short is a row with the reason. A subclass says
    which rows a file has. settings: what the rows depend on besides the files."""

    path: str
    suffix: ClassVar[str]
    mark: ClassVar[str]  # between the name of a file and that of an image in it

    @property
    def settings(self) -> str:
        return ""

    @property
    def where(self) -> str:
        return f"data.path={self.path}"

    @cached_property
    def urls(self) -> list[str]:
        return expand(self.path, self.suffix)

    @cached_property
    def common(self) -> int:
        """The length of the folder's name that all files begin with."""
        first, last = min(self.urls), max(self.urls)
        same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        return first.rfind("/", 0, same) + 1

    def rows_of(self, url: str) -> list[Row]:
        """Returns the rows of a file, with their names and places in it; what cannot be read with the reason."""
        raise NotImplementedError

    def rows(self, cache_dir: str | None) -> list[Row]:
        with (
            ThreadPoolExecutor() as pool,
            tqdm(total=len(self.urls), desc=f"indexing {self.path}", unit="file", leave=False, delay=1) as bar,
        ):
            found = []
            for number, rows in enumerate(pool.map(lambda url: self._known(url, cache_dir), self.urls)):
                bar.update()
                short = self.urls[number][self.common :]
                split = split_of_file(short)
                for row in rows:
                    row.name = f"{short}{self.mark}{row.name}" if row.name else short
                    row.place, row.split = (number, *row.place), split
                found += rows
        return found

    def _known(self, url: str, cache_dir: str | None) -> list[Row]:
        name = url if protocol_of(url) else os.path.abspath(url)
        try:
            return indexed(cache_dir, f"{name}{self.settings}", stamp_of(url), lambda: self.rows_of(url))
        except Unreachable as error:
            return [Row("", why=error.why)]

    def file(self, row: Row) -> str:
        return f"{self.urls[row.place[0]][: self.common]}{row.name}"
