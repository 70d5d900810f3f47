"""One-line messages from errors of other libraries and from long texts."""

import difflib
import zipfile
import zlib
from collections.abc import Iterable

BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError)  # raised for an incomplete file


def first_line(error: BaseException) -> str:
    """Returns the first line of the message that is not empty, or the name of the error's class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def shortened(text: str, length: int = 60) -> str:
    """Returns a text of at most `length` characters; a longer one is cut and ends in "..."."""
    return text if len(text) <= length else text[: length - 3] + "..."


def some(words: Iterable[str], count: int) -> str:
    """Returns the first `count` words, each `shortened`, and the total number if there are more."""
    words = list(words)
    more = f", ... ({len(words)} in all)" if len(words) > count else ""
    return ", ".join(shortened(word) for word in words[:count]) + more


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean ...?' with the closest known name, else the list of names if it is short, else ''."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" There are: {', '.join(known)}." if len(known) <= 40 else ""
