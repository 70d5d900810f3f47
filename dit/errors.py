"""Other libraries' errors, told in a line."""

import zipfile
import zlib

BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError)  # of a file that is not whole


def first_line(error: BaseException) -> str:
    """The first line that says something, or the kind of error where none does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
