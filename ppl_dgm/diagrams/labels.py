"""Names of sites, plates and distributions as mathematics, in the part of TeX that matplotlib and LaTeX
share."""

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["distribution", "indices", "plate_label", "thousands", "typeset"]

GREEK = {
    *[
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "pi",
        "rho",
        "sigma",
        "tau",
    ],
    *[
        "upsilon",
        "phi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Upsilon",
        "Phi",
        "Psi",
        "Omega",
    ],
}
_SPOKEN = {"lam": "lambda", "eps": "varepsilon", "epsilon": "varepsilon", "lmbda": "lambda", "sig": "sigma"}
_LETTERS = dict(zip("αβγδεζηθικλμνξπρστυφχψω", [
    "alpha", "beta", "gamma", "delta", "varepsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda",
    "mu", "nu",
    "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"]))  # fmt: skip
_LETTERS |= dict(zip("ΓΔΘΛΞΠΣΦΨΩ", ["Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"]))
_SPECIAL = {
    '"': "''",
    "_": r"\_",
    "%": r"\%",
    "#": r"\#",
    "&": r"\&",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "^": r"\^{}",
    "~": r"\sim ",
    "\\": r"\backslash ",
}
_DISTRIBUTIONS = {
    "Normal": r"\mathcal{N}", "MultivariateNormal": r"\mathcal{N}",
    "LowRankMultivariateNormal": r"\mathcal{N}",
    "Bernoulli": r"\mathrm{Bern}", "Categorical": r"\mathrm{Cat}", "OneHotCategorical": r"\mathrm{Cat}",
    "Dirichlet": r"\mathrm{Dir}", "Poisson": r"\mathrm{Pois}", "Binomial": r"\mathrm{Bin}",
    "Multinomial": r"\mathrm{Mult}", "Exponential": r"\mathrm{Exp}", "Uniform": r"\mathcal{U}",
    "HalfNormal": r"\mathcal{N}^{+}", "HalfCauchy": r"\mathcal{C}^{+}", "Cauchy": r"\mathcal{C}",
    "StudentT": r"\mathcal{T}", "InverseGamma": r"\mathrm{InvGamma}", "Wishart": r"\mathcal{W}",
    "TransformedDistribution": r"\mathrm{Flow}", "Delta": r"\delta", "Beta": r"\mathrm{Beta}",
    "NegativeBinomial": r"\mathrm{NegBin}", "LogNormal": r"\mathrm{LogNormal}",
}  # fmt: skip


def typeset(name: str) -> str:
    r"""A name as mathematics, without the dollars: Greek letters, subscripts, words upright.

    What follows the first underscore, or trailing digits, is the subscript, unless it is a word after a
    word, as in
    `wet_grass`; `z[3]` is read as `z_3`, `log_x` as log x.

    Example:
        >>> typeset("mu_1"), typeset("theta_kn"), typeset("z2"), typeset("log_sigma"), typeset("decoder")
        ('\\mu_{1}', '\\theta_{kn}', 'z_{2}', '\\log\\,\\sigma', '\\mathrm{decoder}')
    """
    name = re.sub(r"\[([^\]]*)\]", r"_\1", name).strip("_") or name
    parts = [part for part in name.split("_") if part]
    if not parts:
        return rf"\mathrm{{{_escape(name)}}}"
    if parts[0] in ("log", "exp") and len(parts) > 1:
        return rf"\{parts[0]}\," + typeset("_".join(parts[1:]))
    if _is_word(parts[0]) and any(_is_word(part) for part in parts[1:]):
        return r"\ ".join(rf"\mathrm{{{_escape(part)}}}" for part in parts)
    base, digits = _split_digits(parts[0])
    below = [digits] if digits else []
    below += [_subscript(part) for part in parts[1:]]
    return _word(base) + (rf"_{{{','.join(below)}}}" if below else "")


def _is_word(part: str) -> bool:
    return len(part) > 2 and part.isalpha() and part not in GREEK and part not in _SPOKEN


def _split_digits(word: str) -> tuple[str, str]:
    found = re.fullmatch(r"([^\W\d]+)(\d{1,4})", word)
    return (found[1], found[2]) if found else (word, "")


def _word(word: str) -> str:
    """A base: a letter in italics, a Greek letter, or a word upright."""
    word = _SPOKEN.get(word, word)
    if word in GREEK or word == "varepsilon":
        return "\\" + word
    if word in _LETTERS:
        return "\\" + _LETTERS[word]
    if len(word) == 1 and word.isalnum():
        return word
    return rf"\mathrm{{{_escape(word)}}}"


def _subscript(word: str) -> str:
    """An index such as `kn` or `t-1` stays in italics; a Greek letter and a longer word as in a base."""
    if re.fullmatch(r"[A-Za-z]?[-+]?\d*|[A-Za-z]{2}", word) or re.fullmatch(r"[A-Za-z][-+]\d+", word):
        return word
    base, digits = _split_digits(word)
    return _word(base) + (rf"\,{digits}" if digits else "")


def _escape(word: str) -> str:
    """Characters that TeX would take for commands, Greek letters, and what Computer Modern lacks without
    its accents."""
    return "".join(_SPECIAL.get(c) or (rf"\{_LETTERS[c]} " if c in _LETTERS else _plain(c)) for c in word)


def _plain(character: str) -> str:
    if character.isascii():
        return character
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def thousands(size: int) -> str:
    """1234567 with thin spaces between the thousands."""
    return f"{size:,}".replace(",", r"\,")


def plate_label(name: str, size: int | None) -> str:
    """`n = 1, ..., 8` for a plate named by its index, `N = 8` for a capital letter, and `items x 8` for a
    word; no size: N."""
    if len(name) == 1 and name.islower():
        last = name.upper() if size is None else thousands(size)
        return rf"{name} = 1" if size == 1 else rf"{name} = 1,\ldots,{last}"
    if len(name) == 1:
        return typeset(name) if size is None else rf"{typeset(name)} = {thousands(size)}"
    words = r"\ ".join(_escape(word) for word in re.split(r"[_\s]+", name) if word)
    return rf"\mathrm{{{words}}} \times {'N' if size is None else thousands(size)}"


def indices(plates: Sequence[str]) -> dict[str, str]:
    """One index letter for each plate: n for `data`, else the first free letter of its name, else of the
    alphabet."""
    letters: dict[str, str] = {}
    for plate in plates:
        wanted = ("n" if plate == "data" else "") + plate.lower() + "ijklmnpqrstuvwabcdefgh"
        letters[plate] = next(c for c in wanted + "?" if c == "?" or ("a" <= c <= "z" and c not in letters.values()))
    return letters


def distribution(name: str, dist: str, parents: Sequence[str], index: str = "", shape: Sequence[int] = ()) -> str:
    r"""`z ~ N(0, I)`-like text: the variable, its family, and what it depends on.

    A standard normal or a text that already has arguments is written with them; otherwise the parents are
    the arguments.

    Arguments:
        name: the site.
        dist: the distribution's class, or its class with arguments in brackets.
        parents: names of the nodes that it depends on.
        index: letters of the plates, set as the last subscript.
        shape: event shape; a vector's arguments read `0, I` rather than `0, 1`.
    """
    family, _, arguments = dist.partition("(")
    symbol = _DISTRIBUTIONS.get(family, rf"\mathrm{{{_escape(family)}}}")
    inside = _arguments(arguments.rstrip(")"), len(shape) > 0) or ", ".join(typeset(parent) for parent in parents)
    variable = typeset(name)
    if index:
        variable = (
            variable[:-1] + "," + index + "}"
            if variable.endswith("}") and "_{" in variable
            else f"{variable}_{{{index}}}"
        )
    return rf"{variable} \sim {symbol}" + (f"({inside})" if inside else "")


def _arguments(text: str, vector: bool) -> str:
    """Numbers as they are, `loc: 0` without its name, and `0, 1` of a vector as `0, I`."""
    values = [re.sub(r"^\w+\s*[:=]\s*", "", part.strip()) for part in text.split(",") if part.strip()]
    if not values or not all(re.fullmatch(r"[-+\w.]+", value) for value in values):
        return ""
    plain = [re.sub(r"\.0*$", "", value) if re.fullmatch(r"-?\d+\.0*", value) else value for value in values]
    if vector and plain[-1] == "1":
        plain[-1] = "I"
    return ", ".join(value if re.fullmatch(r"[-+\d.I]+", value) else typeset(value) for value in plain)
