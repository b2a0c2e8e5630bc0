"""Names of sites as mathematics: Greek letters and subscripts."""

import re

__all__ = ["GREEK", "latex_name"]

GREEK = frozenset(
    re.findall(
        r"\w+",
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon "
        "phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega",
    )
)


def latex_name(name: str) -> str:
    r"""A site's name for LaTeX: "mu_1" -> "\\mu_{1}", "x[t-1]" -> "x_{t-1}", "sprinkler" ->
    "\\text{sprinkler}".
    """
    match = re.fullmatch(r"([^\[\]_]+)((?:_[^\[\]]+)?)((?:\[.*\])?)", name)
    if match is None:
        return rf"\text{{{_plain(name)}}}"
    stem, under, index = match.groups()
    letter, digits = re.fullmatch(r"(.*?)(\d*)", stem).groups()  # type: ignore[union-attr]
    if digits and letter and not under:
        stem, under = letter, f"_{digits}"
    parts = [_part(part) for part in [*under[1:].split("_"), *index.strip("[]").split(",")] if part]
    base = _part(stem)
    return base + (f"_{{{', '.join(parts)}}}" if parts else "")


def _part(text: str) -> str:
    if text in GREEK:
        return "\\" + text
    if len(text) == 1 or re.fullmatch(r"[\dtTnNkKijJ+\- ]+", text):
        return text
    return rf"\text{{{_plain(text)}}}"


def _plain(text: str) -> str:
    return re.sub(r"([#$%&_{}])", r"\\\1", text)
