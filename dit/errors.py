"""Other libraries' errors, told in a line."""


def first_line(error: BaseException) -> str:
    """The first line that says something, or the kind of error where none does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
