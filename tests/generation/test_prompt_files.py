"""Prompts from files."""

import pytest

from dit.generation.prompt_files import given_prompts

PROMPTS = ["a red star", 'a "blue", large circle', "ein grüner Stern"]
FILES = {
    "a.txt": 'a red star\n\n  a "blue", large circle\r\nein grüner Stern',
    "a.jsonl": '{"prompt": "a red star"}\n\n{"text": "a \\"blue\\", large circle"}\n{"id": 3, "caption": "ein grüner Stern "}\n',
    "a.csv": 'id,prompt\n1,a red star\n2,"a ""blue"", large circle"\n3,ein grüner Stern\n',
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_prompts(tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8-sig")
    assert given_prompts(str(tmp_path / name)) == PROMPTS


def test_a_text_and_a_list_are_prompts():
    assert given_prompts("a red star") == given_prompts(["a red star"]) == ["a red star"]
    assert given_prompts(["7", 8]) == ["7", "8"]


@pytest.mark.parametrize(("name", "content", "fault"), [
    ("a.txt", None, "cannot read {}: No such file"), ("a.txt", b"\n \n", "{} has no prompts; give at least one"),
    ("a.txt", b"\xff\x00\xe9", "{} is not UTF-8"), ("a.jsonl", b'{"prompt": "a"}\n{"id": 1}\n', "{} line 2 has no prompt, .* it holds id"),
    ("a.jsonl", b'{"prompt": ""}', "{} line 1 has no prompt"), ("a.jsonl", b'{"prompt": 3}', "{} line 1 has no prompt"),
    ("a.jsonl", b'["a"]', "{} line 1 is no object"), ("a.jsonl", b"{", "{} line 1 is not JSON"),
    ("a.csv", b"id,name\n1,a\n", "{}: its first line must name a column prompt; it holds id, name"),
    ("a.csv", b"", "{}: its first line must name a column prompt; it holds nothing"),
    ("a.csv", b"id,prompt\n1,a\n2\n", "{} line 3 has no prompt"), ("a.csv", b'prompt\n"a', "{} line 1 cannot be read as CSV"),
])  # fmt: skip
def test_a_bad_file_ends_in_one_line(tmp_path, name, content, fault):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=fault.format(file)) as error:
        given_prompts(str(file))
    assert "\n" not in str(error.value)
