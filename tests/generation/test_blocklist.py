# ruff: noqa: RUF001
"""The blocklist finds a term under disguises, and no other words."""

import sys
import time

import pytest

from dit.generation.blocklist import Blocklist

DISGUISES = {
    "mixed case": "cAsTLe",
    "repeated letters": "caaasssttlleee",
    "spaced": "c a s t l e",
    "far apart": "c   a   s   t   l   e",
    "dotted": "c.a.s.t.l.e",
    "other separators": "c-a_s*t/l~e",
    "broken line": "cas\ntle",
    "digits": "c4stl3",
    "digit for l": "cas71e",
    "signs": "ca$t|e",
    "sign and end of a sentence": "c@stle!",
    "capital I for l": "castIe",
    "zero-width spaces": "c\u200bas\u200btle",
    "zero-width joiners": "c\u200da\u200ds\u200dt\u200dl\u200de",
    "joined to other words by zero-width spaces": "red\u200bcastle\u200bhill",
    "soft hyphen": "cas\u00adtle",
    "combining marks": "".join(letter + "\u0334\u0358\u0321\u0347" for letter in "castle"),
    "letters with accents": "ćäśţłè",
    "Cyrillic": "саѕтlе",
    "Greek": "ϲαѕτle",
    "fullwidth": "ｃａｓｔｌｅ",
    "mathematical": "𝐜𝒶𝔰𝕥𝗅𝚎",
    "circled": "ⓒⓐⓢⓣⓛⓔ",
    "small capitals": "ᴄᴀꜱᴛʟᴇ",
    "emoji between letters": "c🏰a🏰s🏰t🏰l🏰e",
    "several at once": "С.4.$\u200b.т.1.Ε",
    "backwards, shown from right to left": "\u202eeltsac",
}
NEAR_MISSES = (
    "a street in newcastle",
    "castlemaine at night",
    "a herd of cattle",
    "the cast left the stage",
    "a forecast letter",
    "a hassle with tassels",
    "the caste system",
    "broadcast lessons",
)


@pytest.fixture
def castle(tmp_path):
    file = tmp_path / "terms.txt"
    file.write_text("# buildings\n\ncastle\n")
    return Blocklist(str(file))


def allows(rule, prompt):
    [verdict] = rule.check_prompts([prompt])
    return verdict.allowed


def test_at_least_26_of_27_disguises_are_found_and_no_near_miss(castle):
    missed = [name for name, text in DISGUISES.items() if allows(castle, f"a large {text} at dawn")]
    assert len(DISGUISES) == 27
    assert missed == ["backwards, shown from right to left"]
    assert [prompt for prompt in NEAR_MISSES if not allows(castle, prompt)] == []


def test_the_reason_names_the_term_its_line_and_how_it_was_written(castle):
    [verdict] = castle.check_prompts(["a large c4$tle"])
    assert verdict.reason == f"the prompt has the blocked term 'castle' (line 3 of {castle.file}), written 'c4$tle'"
    [plain] = castle.check_prompts(["a Castle"])
    assert plain.reason.endswith("terms.txt)")


@pytest.mark.parametrize(("term", "prompt", "allowed"), [
    ("lost city", "the LOST-C1TY of gold", False),
    ("hill", "a h1ll", False),  # 1 is an i and an l
    ("fall", "they FAIL", True),
    ("zoo", "the year 200", True),  # a number is no word
    ("1984", "a poster of 1984", False),  # unless it is the term
    ("1984", "a poster of 19845", True),
    ("城堡", "山上的城堡很大", False),  # a script without spaces
    ("замок", "старый зaмoк", False),  # with a Latin a and o
    ("Straße", "die STRASSE", False),
])  # fmt: skip
def test_terms_of_other_kinds(tmp_path, term, prompt, allowed):
    (tmp_path / "terms.txt").write_text(term, encoding="utf-8")
    assert allows(Blocklist(str(tmp_path / "terms.txt")), prompt) is allowed


@pytest.mark.parametrize("prompt", ["castl" * 2000, "c" * 20000, "c a s t l " * 2000, "$|!1" * 3000])
def test_a_prompt_made_to_be_slow_is_not_slow(castle, prompt):
    start = time.perf_counter()
    castle.check_prompts([prompt])
    assert time.perf_counter() - start < 4


def test_a_prompt_that_cannot_be_compared_in_time_is_refused(castle, monkeypatch):
    class Slow:
        def finditer(self, text, timeout):
            raise TimeoutError

    castle._pattern = Slow()
    [verdict] = castle.check_prompts(["a castle"])
    assert not verdict.allowed
    assert "cannot be compared" in verdict.reason


@pytest.mark.parametrize(("content", "message"), [
    (b"", "has no terms"),
    (b"# only a comment\n \n", "has no terms"),
    (b"a\n!!!\n", r"line 2: '!!!' has no letter or digit"),
    (b"\xff\xfe\x00", "UTF-16"),
    (b"caf\xe9", "not UTF-8"),
    (None, "cannot read"),
])  # fmt: skip
def test_a_file_without_terms_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "terms.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        Blocklist(str(file))
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_the_extra_the_remedy_is_said(tmp_path, monkeypatch):
    (tmp_path / "terms.txt").write_text("castle")
    monkeypatch.setitem(sys.modules, "anyascii", None)
    with pytest.raises(ValueError, match=r"needs anyascii, which is missing: pip install 'dit\[policy\]'"):
        Blocklist(str(tmp_path / "terms.txt"))


def test_the_fingerprint_follows_the_terms(tmp_path, castle):
    (tmp_path / "same.txt").write_text("castle\n")
    (tmp_path / "more.txt").write_text("castle\ntower\n")
    assert Blocklist(str(tmp_path / "same.txt")).fingerprint == castle.fingerprint
    assert Blocklist(str(tmp_path / "more.txt")).fingerprint != castle.fingerprint
