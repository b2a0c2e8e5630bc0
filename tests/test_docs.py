"""The pages are true: their snippets run, what is marked as printed is printed, links resolve, and the table of programs is the cards'.

A snippet of Python is a fenced block; those of one page run one after another in one namespace, in an empty folder. A comment on the
line before a block says otherwise: `<!-- not run: why -->`, or `<!-- slow: how long -->`, which is run by the slow tests alone. A block after
`<!-- printed -->` is what the snippet before it prints.
"""

import contextlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ppl_dgm import registry
from ppl_dgm.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what is in it, the line before it, and how many lines stand above its first."""

    language: str
    text: str
    mark: str
    line: int


def blocks(page):
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        above = text[: match.start()].rstrip().rsplit("\n", 1)[-1]
        mark = above.removeprefix("<!--").removesuffix("-->").strip() if above.startswith("<!--") else ""
        found.append(Block(match[1], match[2], mark, text.count("\n", 0, match.start()) + 1))
    return found


def run(page, slow):
    """Run the snippets of a page; those that are marked slow only if asked to."""
    names, printed = {"__name__": "snippets"}, None
    for block in blocks(page):
        if block.language == "python":
            printed = None
            if block.mark.startswith("not run:") or (block.mark.startswith("slow:") and not slow):
                continue
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * block.line + block.text, page, "exec"), names)
            printed = out.getvalue()
        elif block.mark == "printed" and printed is not None:
            assert plain(printed) == plain(block.text), f"{page.name}, line {block.line}"


def plain(text):
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty folder, and a list of algorithms of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "inference.md"], ids=lambda page: page.name)
def test_snippets(page, alone):
    run(page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name == "inference.md" or any(b.mark.startswith("slow:") for b in blocks(p))],
    ids=lambda page: page.name,
)  # fmt: skip
def test_slow_snippets(page, alone):
    run(page, slow=True)


def test_a_snippet_that_prints_something_else_is_found(alone, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n<!-- printed -->\n```\n3\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md, line 6"):
        run(page, slow=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    text = FENCE.sub("", page.read_text())
    here = [target for target in LINK.findall(text) if not target.startswith(("http://", "https://", "#"))]
    missing = [target for target in here if not (page.parent / target.partition("#")[0]).exists()]
    assert not missing
    named = re.findall(r"(?<![\w/])(?:examples|benchmarks)/\w+\.py", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_table_of_programs_says_what_their_cards_say():
    result = CliRunner().invoke(app, ["models", "--json"])
    assert result.exit_code == 0, result.output
    cards = {row["model"]: row for row in json.loads(result.output)}
    section = (ROOT / "README.md").read_text().partition("## The zoo")[2].partition("\n## ")[0]
    told = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 6:
            told |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells[2:])
    assert sorted(told) == sorted(cards)
    for name, cells in told.items():
        for task, cell in zip(("sample", "score", "infer", "learn"), cells, strict=True):
            assert cell.startswith(cards[name][task]), (
                f"{name}, {task}: {cell!r}, but its card says {cards[name][task]!r}"
            )


def test_every_algorithm_is_in_the_documentation():
    text = (ROOT / "docs" / "inference.md").read_text()
    assert not [name for name in registry._BUILT_IN if f"`{name}`" not in text]


def test_every_part_of_a_vae_is_in_the_documentation():
    from ppl_dgm.models.latent.posteriors import POSTERIORS
    from ppl_dgm.models.latent.priors import PRIORS
    from ppl_dgm.nn import LIKELIHOODS

    text = (ROOT / "docs" / "latent.md").read_text()
    assert not [name for name in (*PRIORS, *POSTERIORS, *LIKELIHOODS) if f"`{name}`" not in text]
