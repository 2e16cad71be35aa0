"""docs/tree.md: a line for every module, from its docstring; and twenty questions that the tree answers.

``python -m tests.test_tree_page`` writes the tree anew.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tree.md"
PACKAGES = ("attention_finetune", "finetune", "diagnostics")
MARK = re.compile(r"(?<=```text\n).*?(?=```)", re.DOTALL)
MOST_CHARACTERS = 110


# Trap: CPython 3.11 shares the depth of ast's recursion between threads, so that a server's thread of another test may
# break it. While tests are collected there is none.
def tree() -> str:
    lines: list[str] = []
    for package in PACKAGES:
        lines += below(ROOT / package, 0)
    return "\n".join(lines) + "\n"


def below(folder: Path, depth: int) -> list[str]:
    """A folder's line, its modules' lines, then its folders."""
    lines = [line(folder.name + "/", folder / "__init__.py", depth)]
    modules = sorted(path for path in folder.glob("*.py") if path.stem != "__init__")
    lines += [line(path.name, path, depth + 1) for path in modules]
    for inner in sorted(path for path in folder.iterdir() if (path / "__init__.py").is_file()):
        lines += below(inner, depth + 1)
    return lines


def line(name: str, path: Path, depth: int) -> str:
    return f"{'  ' * depth}{name}".ljust(34) + first_sentence(path)


def first_sentence(path: Path) -> str:
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"(?<=[.])\s|\n\n", words.replace("``", ""))[0]
    sentence = " ".join(sentence.split()).rstrip(".:;")
    return sentence if len(sentence) <= MOST_CHARACTERS else sentence[: MOST_CHARACTERS - 1].rstrip() + "…"


TREE = tree()


def test_every_module_has_its_line():
    (written,) = MARK.findall(PAGE.read_text(encoding="utf-8"))
    assert written == TREE, "write it anew: python -m tests.test_tree_page"


def test_every_module_says_what_it_is():
    for written in TREE.splitlines():
        assert len(written.split(maxsplit=1)) == 2, written


def test_twenty_questions_name_places_that_exist():
    rows = re.findall(r"^\| (.+?\?) \| `(.+?)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 20
    for question, place in rows:
        path, _, name = place.partition("::")
        assert (ROOT / path).is_file(), question
        if name:
            assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), question


if __name__ == "__main__":
    PAGE.write_text(MARK.sub(lambda _: tree(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
