"""Names are typeset as a textbook would, and every outline that is drawn is as large as the layout took it
to be."""

import pytest
from matplotlib.mathtext import MathTextParser

from ppl_dgm.diagrams import labels
from ppl_dgm.diagrams.glyphs import line, measure


@pytest.mark.parametrize(
    ("name", "tex"),
    [
        ("z", "z"), ("mu_1", r"\mu_{1}"), ("sigma", r"\sigma"), ("z_2", "z_{2}"), ("z2", "z_{2}"),
        ("theta_kn", r"\theta_{kn}"), ("mu_theta", r"\mu_{\theta}"), ("Sigma", r"\Sigma"), ("θ", r"\theta"),
        ("x[t-1]", "x_{t-1}"), ("z_T", "z_{T}"), ("log_sigma", r"\log\,\sigma"), ("decoder",
        r"\mathrm{decoder}"),
        ("wet_grass", r"\mathrm{wet}\ \mathrm{grass}"), ("x_train", r"x_{\mathrm{train}}"),
        ("prior_1", r"\mathrm{prior}_{1}"), ("a%b", r"\mathrm{a\%b}"), ("lambda_", r"\lambda"), ("_",
        r"\mathrm{\_}"),
    ],
)  # fmt: skip
def test_names(name: str, tex: str) -> None:
    assert labels.typeset(name) == tex
    assert MathTextParser("path").parse(f"${tex}$").width > 0  # matplotlib's own reader takes it too


@pytest.mark.parametrize(
    ("name", "size", "tex"),
    [
        ("n", 8, r"n = 1,\ldots,8"), ("n", None, r"n = 1,\ldots,N"), ("N", 1797, r"N = 1\,797"),
        ("items", 40, r"\mathrm{items} \times 40"), ("data", None, r"\mathrm{data} \times N"),
    ],
)  # fmt: skip
def test_plate_labels(name: str, size: int | None, tex: str) -> None:
    assert labels.plate_label(name, size) == tex


def test_distributions() -> None:
    assert labels.distribution("z", "Normal(0, 1)", [], "n", [3]) == r"z_{n} \sim \mathcal{N}(0, I)"
    assert labels.distribution("z", "Normal(0, 1)", []) == r"z \sim \mathcal{N}(0, 1)"
    assert (
        labels.distribution("x_1", "Categorical", ["z", "decoder"], "n")
        == r"x_{1,n} \sim \mathrm{Cat}(z, \mathrm{decoder})"
    )
    assert labels.indices(["data", "documents", "words", "n"]) == {
        "data": "n",
        "documents": "d",
        "words": "w",
        "n": "i",
    }


@pytest.mark.parametrize(
    "tex",
    ["z", r"\mu_{1}", r"\mathrm{data} \times 64", r"\log\,\sigma", r"\mathcal{N}", r"x_{\mathrm{train}}"],
)
def test_widths_agree_with_matplotlib(tex: str) -> None:
    expected = MathTextParser("path").parse(f"${tex}$", 72 * 20, _font(10)).width / 20
    assert measure(tex, 10)[0] == pytest.approx(expected, rel=0.1, abs=1.0)


@pytest.mark.parametrize(
    "tex", ["z", "y_{i}", r"\theta_{kn}", r"\mathrm{wet}\ \mathrm{grass}", r"z_{n} \sim \mathcal{N}(0, I)"]
)
def test_the_outline_lies_within_its_measure(tex: str) -> None:
    made = line(tex)
    box = made.outline.get_extents()
    assert box.x0 >= -0.06 and box.x1 <= made.width + 0.09
    assert box.y1 == pytest.approx(made.above, abs=0.02) and -box.y0 <= made.below + 0.02


def _font(size: float) -> object:
    from matplotlib.font_manager import FontProperties

    return FontProperties(family="cmr10", size=size, math_fontfamily="cm")
