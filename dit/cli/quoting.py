"""Texts on the command line: Hydra reads commas, quotes and brackets as its own signs where they are not quoted."""

from __future__ import annotations

import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from dit.files import CONF

PAIRS = {"(": ")", "[": "]", "{": "}", '"': '"'}


def escaped(text: str) -> str:
    """Returns a text for Hydra's double quotes, in which a backslash escapes only before a quote and at the end."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return re.sub(r'(\\*)"', r'\1\1\\"', re.sub(r"(\\+)$", r"\1\1", text))


def quoted(word: str) -> str:
    """Returns an override for a shell, its strings in Hydra's quotes."""
    key, _, value = word.partition("=")
    is_list = value.startswith("[") and value.endswith("]")
    inner = ",".join(f'"{escaped(text.strip())}"' for text in (divided(value[1:-1]) if is_list else [value]))
    return shlex.quote(f"{key}=[{inner}]" if is_list else f"{key}={inner}")


def divided(text: str) -> list[str]:
    """Returns the parts of a text between commas, but for commas in brackets and double quotes."""
    parts, ends = [""], ""
    for sign in text:
        if ends and sign == ends[-1]:
            ends = ends[:-1]
        elif sign in PAIRS and PAIRS[sign] in text:
            ends += PAIRS[sign]
        if sign == "," and not ends:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def note_of_commas(word: str) -> str:
    """Returns a line that says how to quote a prompt with commas, for an override that Hydra divides at commas into
    several prompts; "" for others."""
    (override,) = OverridesParser.create().parse_overrides([word])
    texts = override.value() if not override.is_sweep_override() else None
    key, _, value = word.partition("=")
    if not key.endswith("prompts") or not isinstance(texts, list) or len(texts) < 2:
        return ""
    if '"' in value or "'" in value:  # then the commas were meant
        return ""
    whole = shlex.quote(f'{key}=["{escaped(value[1:-1])}"]')
    return f"note: {key} has {len(texts)} texts, divided at commas; one text with commas is written {whole}\n"


def fault_of_word(word: str) -> str | None:
    """Returns an error message with a remedy if an override cannot be parsed, else None."""
    try:
        OverridesParser.create().parse_overrides([word])
    except OverrideParseException:
        if "=" not in word:
            groups = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
            return f"{word}: not of the form key=value" + (f", such as {word}=NAME" if word in groups else "")
        return f"{word}: cannot be read; a text with spaces, quotes or signs must be quoted: {quoted(word)}"
    return None
