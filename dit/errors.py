"""Messages of one line: other libraries' errors, and texts that may be long."""

import difflib
import zipfile
import zlib
from collections.abc import Iterable

BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError)  # of a file that is not whole


def first_line(error: BaseException) -> str:
    """The first line that says something, or the kind of error where none does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def shortened(text: str, length: int = 60) -> str:
    """A text as messages quote it: its beginning and "..." where it has more than `length` characters."""
    return text if len(text) <= length else text[: length - 3] + "..."


def some(words: Iterable[str], count: int) -> str:
    """The first of many words, each as `shortened`, and how many there are where these are not all."""
    words = list(words)
    more = f", ... ({len(words)} in all)" if len(words) > count else ""
    return ", ".join(shortened(word) for word in words[:count]) + more


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the closest of the known names, else the list of them where it is short."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" There are: {', '.join(known)}." if len(known) <= 40 else ""
