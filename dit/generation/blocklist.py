"""A list of terms that prompts must not have, found also under disguises: other scripts, signs for letters, spaces."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from dit.errors import shortened
from dit.files import read_lines
from dit.generation.policy import Rule, Verdict

LIBRARIES = ("regex", "anyascii", "confusable-homoglyphs")
DIGITS = dict(zip("0134578", "oieastb", strict=True))
SIGNS = {"@": "a", "$": "s", "€": "e", "!": "i", "|": "i"}
AS_L = dict.fromkeys("1!|", "l")
AMONG_SMALL = re.compile(r"(?<=[a-z])I")  # a capital i among small letters looks like an l, which 1 may be too
CLOSING = re.compile(r"[!|](?!\w)")  # these signs stand for a letter only before another
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"  # scripts without spaces
SECONDS = 1.0  # of matching one view of a prompt; a longer search is refused, because it was made to be slow

Map = Callable[[str], str]  # a character to a text


@cache
def plain(character: str) -> str:
    """Returns a character in compatibility form, without marks and case; a space for one that is not printed."""
    kept = [c for c in unicodedata.normalize("NFKD", character) if unicodedata.category(c) not in ("Mn", "Me")]
    return "".join(" " if unicodedata.category(c) in ("Cf", "Cc") else c for c in kept).casefold()


@cache
def ascii_of(character: str) -> str:
    """Returns how a character sounds, in ASCII letters: Cyrillic es is s."""
    from anyascii import anyascii

    return "".join(anyascii(c) for c in plain(character)).casefold()


@cache
def lookalike(character: str) -> str:
    """Returns the Latin letter that a character looks like, by Unicode's table of confusables: Cyrillic es is c. Others
    as `ascii_of`."""
    from confusable_homoglyphs.confusables import confusables_data

    if not character.isascii():
        for found in confusables_data.get(character, []):
            if len(found["c"]) == 1 and found["c"].isascii() and found["c"].isalpha():
                return str(found["c"]).casefold()
    return ascii_of(character)


SPELLINGS: tuple[dict[str, str], ...] = ({}, DIGITS, DIGITS | {"1": "l"}, DIGITS | SIGNS, DIGITS | SIGNS | AS_L)


def views(text: str) -> list[tuple[str, ...]]:
    """Returns the different readings of a text, each with one piece for every character of the text."""
    signs = CLOSING.sub(" ", AMONG_SMALL.sub("1", text))
    readings = (plain,) if text.isascii() else (plain, ascii_of, lookalike)
    found = (
        tuple(letters.get(c) or view(c) for c in (signs if letters else text))
        for letters in SPELLINGS
        for view in readings
    )
    return list(dict.fromkeys(found))


def pattern_of(term: str) -> str:
    """Returns the pattern of a term, as it is and as it looks in Latin letters."""
    readings = dict.fromkeys("".join(map(view, term)) for view in (plain, lookalike))
    return "|".join(map(pattern_of_reading, readings))


def pattern_of_reading(reading: str) -> str:
    """Returns a pattern: every letter once or more, with anything that is no letter or digit between them, as a whole
    word."""
    import regex

    letters = [c for c in reading if c.isalnum()]
    start = "" if regex.match(UNSPACED, letters[0]) else r"(?<![^\W_])"
    end = "" if regex.match(UNSPACED, letters[-1]) else r"(?![^\W_])"
    return start + r"[\W_]*".join(f"{regex.escape(c)}+" for c in letters) + end


class Blocklist(Rule):
    """Refuses prompts that have a term of a file: UTF-8, one term in each line; empty lines and lines that begin with #
    are skipped.

    A prompt is read in several ways: in compatibility form without marks, as it sounds and as it looks in Latin
    letters, with digits and signs as letters. In each, a term is found as a whole word, with repeated letters and with
    spaces, points and invisible characters between its letters. A hit needs one letter, so that numbers are not read as
    words. Inflections, synonyms, other spellings and translations are further terms. Raises ValueError if the file
    cannot be read or has no terms.
    """

    def __init__(self, file: str) -> None:
        try:
            import anyascii
            import confusable_homoglyphs
            import regex

            del anyascii, confusable_homoglyphs
        except ImportError as error:
            raise ValueError(f"the blocklist needs {error.name}, which is missing: pip install 'dit[policy]'") from None
        self.file = file
        self.terms: dict[int, str] = {}
        for number, line in enumerate(read_lines(file), 1):
            if (term := line.strip()) and not term.startswith("#"):
                if not any(c.isalnum() for c in "".join(map(plain, term))):
                    raise ValueError(f"{file}, line {number}: {shortened(term)!r} has no letter or digit to look for")
                self.terms[number] = term
        if not self.terms:
            raise ValueError(f"the blocklist {file} has no terms; write one in each line, or leave the rule out")
        self._pattern = regex.compile("|".join(f"(?P<line{n}>{pattern_of(term)})" for n, term in self.terms.items()))
        held = [*sorted(self.terms.values()), *(f"{name} {version(name)}" for name in LIBRARIES)]
        self.fingerprint = hashlib.sha256("\n".join(held).encode()).hexdigest()[:16]

    def check_prompts(self, prompts: Sequence[str]) -> list[Verdict]:
        return [self._check(prompt) for prompt in prompts]

    def _check(self, prompt: str) -> Verdict:
        for pieces in views(prompt):
            origin = [place for place, piece in enumerate(pieces) for _ in piece]
            try:
                hits = list(self._pattern.finditer("".join(pieces), timeout=SECONDS))
            except TimeoutError:
                return Verdict(
                    False, f"the prompt cannot be compared with {self.file} in {SECONDS:g} s; make it shorter"
                )
            for hit in hits:
                written = prompt[origin[hit.start()] : origin[hit.end() - 1] + 1]
                if any(ascii_of(c).isalpha() for c in written) or self._is_number(hit):
                    return Verdict(False, self._reason(hit, written))
        return Verdict(True)

    def _line(self, hit: Any) -> int:
        return int(hit.lastgroup.removeprefix("line"))

    def _is_number(self, hit: Any) -> bool:
        return not any(map(str.isalpha, self.terms[self._line(hit)]))

    def _reason(self, hit: Any, written: str) -> str:
        line = self._line(hit)
        disguise = "" if written.casefold() == self.terms[line].casefold() else f", written {shortened(written)!r}"
        return f"the prompt has the blocked term {self.terms[line]!r} (line {line} of {self.file}){disguise}"
