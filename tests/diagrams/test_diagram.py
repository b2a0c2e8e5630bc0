"""The Diagram object: convention, options, every format it is written in, the command, and programs drawn
from Pyro."""

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import Circle, PathPatch, Rectangle
from typer.testing import CliRunner

import ppl_dgm as dgm
from oracles.geometry import faults
from oracles.plate_graphs import GRAPHS
from ppl_dgm.diagrams.diagram import diagram

BY_NAME = {g.name: g for g in GRAPHS}
NAMES = sorted(BY_NAME)


def schools(y: torch.Tensor, sigma: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def test_a_strangers_program() -> None:
    drawn = dgm.diagram(schools, torch.zeros(8), torch.ones(8), distributions=True)
    nodes = drawn.scene.nodes
    assert {name: node.kind for name, node in nodes.items()} | {"sigma": "input"} == {
        "mu": "latent", "tau": "latent", "theta": "latent", "y": "observed", "sigma": "input",
    }  # fmt: skip
    assert [(p.name, p.size, p.members >= {"theta", "y"}) for p in drawn.scene.plates] == [("schools", 8, True)]
    assert nodes["mu"].note is not None and nodes["mu"].note.tex == r"\mu \sim \mathcal{N}(0, 5)"
    assert nodes["theta"].note is not None and nodes["theta"].note.tex == r"\theta_{s} \sim \mathcal{N}(\mu, \tau)"
    assert faults(drawn.scene) == []


def test_the_guide_is_dashed_curved_and_optional() -> None:
    with_guide, without = diagram(BY_NAME["vae"]), diagram(BY_NAME["vae"], guide=False)
    assert [(e.source, e.target) for e in with_guide.scene.edges if e.kind == "guide"] == [
        ("x", "z"),
        ("encoder", "z"),
    ]
    assert all(e.kind == "model" for e in without.scene.edges) and "encoder" not in without.scene.nodes
    edge = next(e for e in with_guide.scene.edges if (e.source, e.target) == ("x", "z"))
    chord = edge.curve[-1, 3] - edge.curve[0, 0]
    middle = np.array([1, 3, 3, 1]) @ edge.curve[0] / 8 - edge.curve[0, 0]  # of the curve
    assert abs(chord[0] * middle[1] - chord[1] * middle[0]) / np.hypot(*chord) > 3  # points off the straight line
    dashed = [
        p
        for p in with_guide.figure().axes[0].get_children()
        if p.get_gid() == "edge" and p.get_linestyle() not in ("-", "solid")
    ]  # type: ignore[attr-defined]
    assert len(dashed) == 2


def test_the_convention_of_the_textbook() -> None:
    kinds = {
        "eight_schools_non_centred": ("eta", "theta", "y"),
        "rbm": ("energy", "W"),
        "eight_schools": ("sigma",),
    }
    shapes = {}
    for name, wanted in kinds.items():
        drawn = diagram(BY_NAME[name])
        patches = drawn.figure().axes[0].get_children()
        for node in wanted:
            at = drawn.positions[node]
            circles = [p for p in patches if isinstance(p, Circle) and np.allclose(p.center, at)]
            squares = [
                p
                for p in patches
                if isinstance(p, Rectangle) and p.get_gid() == "node" and np.allclose(p.get_center(), at)
            ]
            shapes[node] = [(round(p.radius, 1), p.get_facecolor()) for p in circles], len(squares)
    assert [len(shapes[n][0]) for n in ("eta", "theta", "y")] == [1, 2, 1]  # deterministic: double
    assert shapes["eta"][0][0][1] == to_rgba("white") and shapes["y"][0][0][1] == to_rgba("0.75")
    assert shapes["energy"] == ([], 1) and shapes["sigma"] == ([], 0)
    assert shapes["W"][0][0][0] < 4 and shapes["W"][0][0][1] == to_rgba("black")


@pytest.mark.parametrize("name", ["bayesian_mixture", "semi_supervised", "rbm"])
def test_only_black_white_and_grey(name: str) -> None:
    drawn = diagram(BY_NAME[name], highlight=[next(iter(BY_NAME[name].graph))])
    for patch in drawn.figure().axes[0].patches:
        for red, green, blue, opaque in (patch.get_facecolor(), patch.get_edgecolor()):
            assert red == green == blue or not opaque


def test_texts_are_drawn_where_the_layout_put_them() -> None:
    """Boxes measured by matplotlib's renderer against those that the geometric test uses."""
    for name in ("bayesian_mixture", "long_names", "lda"):
        drawn = diagram(BY_NAME[name], distributions=True)
        figure = drawn.figure()
        figure.canvas.draw()
        texts = [p for p in figure.axes[0].patches if isinstance(p, PathPatch) and p.get_gid() == "text"]
        for patch, text in zip(texts, drawn.scene.texts(), strict=True):
            box = patch.get_window_extent().transformed(figure.axes[0].transData.inverted())
            left, bottom, right, top = text.box
            assert left - 1.0 <= box.x0 and box.x1 <= right + 1.3
            assert bottom - 0.3 <= box.y0 and box.y1 <= top + 0.3


def test_highlights_a_set_a_trail_and_an_answer() -> None:
    trail = diagram(BY_NAME["sprinkler"], highlight=["sprinkler", "cloudy", "rain"]).scene
    assert {n for n, node in trail.nodes.items() if node.strong} == {"sprinkler", "cloudy", "rain"}
    assert {(e.source, e.target) for e in trail.edges if e.strong} == {
        ("cloudy", "sprinkler"),
        ("cloudy", "rain"),
    }
    both = diagram(BY_NAME["sprinkler"], highlight={"sprinkler", "rain", "wet_grass"}).scene
    assert {(e.source, e.target) for e in both.edges if e.strong} == {
        ("sprinkler", "wet_grass"),
        ("rain", "wet_grass"),
    }

    class Answer:
        trail = ("sprinkler", "wet_grass")

    assert sum(e.strong for e in diagram(BY_NAME["sprinkler"], highlight=Answer()).scene.edges) == 1
    with pytest.raises(dgm.ProgramError, match="'snow', which is not in the diagram"):
        diagram(BY_NAME["sprinkler"], highlight=["snow"])


def test_d_separation_shown() -> None:
    found = dgm.structure(schools, torch.zeros(8), torch.ones(8))
    answer = found.d_separated("mu", "tau", given=["y"])
    scene = dgm.diagram(found, highlight=answer).scene
    assert not answer and scene.nodes["mu"].strong and scene.nodes["tau"].strong and any(e.strong for e in scene.edges)


def test_positions_are_kept_and_plates_follow() -> None:
    places = diagram(BY_NAME["vae"]).positions
    places["z"] = (places["z"][0], places["z"][1] + 30)
    moved = diagram(BY_NAME["vae"], positions=places)
    shift = np.array(moved.positions["x"]) - places["x"]
    for name, place in places.items():
        assert np.allclose(moved.positions[name], place + shift)
    assert faults(moved.scene) == []
    with pytest.raises(dgm.ProgramError, match="positions names 'q'"):
        diagram(BY_NAME["vae"], positions={"q": (0.0, 0.0)})


def test_size_and_wrong_options() -> None:
    assert diagram(BY_NAME["lda"], size=5.0).figure().get_size_inches()[0] == pytest.approx(5)
    width, height = diagram(BY_NAME["lda"], size=(5.0, 2.0)).figure().get_size_inches()
    assert height == pytest.approx(2) and width < 5
    with pytest.raises(dgm.ProgramError, match="orientation is 'up'"):
        diagram(BY_NAME["lda"], orientation="up")
    with pytest.raises(dgm.ProgramError, match="size is -1"):
        diagram(BY_NAME["lda"], size=-1)
    with pytest.raises(dgm.FileError, match="must end in"):
        diagram(BY_NAME["lda"]).save("x.jpeg")


@pytest.mark.parametrize("name", ["vae", "lda", "three_crossing", "alone"])
def test_pictures_open_and_repeat(name: str, tmp_path: Path) -> None:
    drawn = diagram(BY_NAME[name])
    svg, png, pdf = (drawn.save(tmp_path / f"x.{ending}") for ending in ("svg", "png", "pdf"))
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and pdf.read_bytes()[:5] == b"%PDF-"
    width = int.from_bytes(png.read_bytes()[16:20], "big")
    assert width == pytest.approx(drawn.scene.size[0] / 72 * 300, abs=1)  # 300 dots per inch
    again = diagram(BY_NAME[name])
    assert all(again.save(tmp_path / f"y{p.suffix}").read_bytes() == p.read_bytes() for p in (svg, png, pdf))
    assert drawn._repr_svg_().lstrip().startswith("<?xml")


@pytest.mark.parametrize("name", NAMES)
def test_dot_and_mermaid_and_tikz_hold_every_node_edge_and_plate(name: str) -> None:
    drawn, given = diagram(BY_NAME[name]), BY_NAME[name]
    dot, mermaid, tikz = drawn.dot(), drawn.mermaid(), drawn.tikz()
    quoted = r'"(?:[^"\\]|\\.)*"'
    about = rf"\[[^\[\]]*(?:{quoted}[^\[\]]*)*\]"
    statement = rf"  (?:(?:graph|node|edge|{quoted}) {about}|{quoted} -> {quoted}(?: \[[^\]]*\])?);"
    body = dot.splitlines()
    assert body[0] == "digraph {" and body[-1] == "}"
    assert [row for row in body[1:-1] if not re.fullmatch(statement, row)] == []
    assert (
        dot.count(" -> ")
        == mermaid.count(" --> ") + mermaid.count(" -.-> ") + mermaid.count(" --- ")
        == len(drawn.scene.edges)
    )
    assert dot.count('"plate ') == tikz.count(r"\draw[plate]") == len(drawn.scene.plates)
    rows = [row.strip() for row in mermaid.splitlines()]
    assert rows[0] == "flowchart TD" and sum(r.startswith("subgraph") for r in rows) == rows.count("end")
    declared = set(re.findall(r"^(n\d+)[\[(]", "\n".join(rows), re.M))
    assert len(declared) == len(drawn.scene.nodes)
    for plate in given.plates:
        assert len(re.findall(rf"% plate {plate}$", tikz, re.M)) == 1
    assert tikz.count("{") == tikz.count("}") and tikz.count(r"\draw[") == len(drawn.scene.edges) + len(
        drawn.scene.plates
    )


def test_awkward_names_are_escaped(tmp_path: Path) -> None:
    from oracles.plate_graphs import graph

    odd = graph("odd", 'a%b@p_1 c"d*@p_1 e&f g#h {i}', 'a%b e&f -> c"d', p_1=3)
    drawn = diagram(odd)
    assert faults(drawn.scene) == []
    assert ElementTree.parse(drawn.save(tmp_path / "x.svg")).getroot() is not None
    assert r'"c\"d"' in drawn.dot() and "#amp;" in drawn.mermaid() and r"\%" in drawn.tikz()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("name", ["vae", "lda", "three_crossing", "rbm", "long_names"])
def test_tikz_compiles(name: str, tmp_path: Path) -> None:
    document = diagram(BY_NAME[name], distributions=name == "lda").save(tmp_path / "x.tex")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", document.name]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:]
    assert "(1 page" in run.stdout and (tmp_path / "x.pdf").read_bytes()[:5] == b"%PDF-"


def test_the_command(tmp_path: Path) -> None:
    from ppl_dgm.cli import app

    done = CliRunner().invoke(
        app, ["diagram", "VAE", "--out", str(tmp_path / "vae.svg"), "--set", "latent=2", "--no-guide"]
    )
    assert done.exit_code == 0, done.output
    assert "Diagram of VAE: 3 nodes, 2 edges, 1 plate" in done.output
    assert ElementTree.parse(tmp_path / "vae.svg").getroot().tag.endswith("svg")
    source = tmp_path / "mine.py"
    source.write_text(
        "import pyro, pyro.distributions as dist\n\ndef coin():\n"
        "    p = pyro.sample('p', dist.Beta(1.0, 1.0))\n    pyro.sample('x', dist.Bernoulli(p))\n"
    )
    done = CliRunner().invoke(
        app, ["diagram", f"{source}:coin", "--out", str(tmp_path / "coin.tex"), "--distributions", "--json"]
    )
    assert done.exit_code == 0 and '"nodes": ["p", "x"]' in done.output
    assert r"p \sim \mathrm{Beta}(1, 1)" in (tmp_path / "coin.tex").read_text()
