"""Every diagnosis of a latent-variable program in one report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.diagnostics.latent.aggregate import PriorMatch, prior_match
from ppl_dgm.inference.diagnostics.latent.codes import at_rest, encode, rows_of, split
from ppl_dgm.inference.diagnostics.latent.decomposition import Information, Surgery, information_of, surgery_of
from ppl_dgm.inference.diagnostics.latent.gaps import InferenceGaps, inference_gaps
from ppl_dgm.inference.diagnostics.latent.units import LatentUnits, units_of
from ppl_dgm.program import as_program

__all__ = ["LatentReport", "diagnose_latents"]


@dataclass(frozen=True)
class LatentReport:
    """What ails a latent-variable program, part by part; a part that cannot be had is None and `left_out` says why.

    Attributes:
        units: which units and levels say anything about x.
        surgery: the evidence lower bound taken apart.
        prior: the aggregated posterior against the prior.
        gaps: what the guide costs.
        levels: of a hierarchy, what each level adds.
        left_out: {part: reason}.
    """

    units: LatentUnits
    surgery: Surgery | None = None
    prior: PriorMatch | None = None
    gaps: InferenceGaps | None = None
    levels: Information | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Any]:
        """{name: part} of the parts that there are."""
        every = {
            "units": self.units,
            "surgery": self.surgery,
            "prior": self.prior,
            "gaps": self.gaps,
            "levels": self.levels,
        }
        return {name: part for name, part in every.items() if part is not None}

    @property
    def ok(self) -> bool:
        """Whether no level has collapsed and the prior has no holes."""
        return self.units.ok and (self.prior is None or self.prior.ok)

    @property
    def verdict(self) -> str:
        """A sentence or two per part."""
        return "\n".join(part.verdict for part in self.parts.values())

    def __str__(self) -> str:
        said = [f"{name}: {part.verdict}" for name, part in self.parts.items()]
        return "\n".join([*said, *(f"{name}: left out; {reason}" for name, reason in self.left_out.items())])

    def plot(self, folder: str | Path | None = None) -> dict[str, Any]:
        """{part: Figure}, written to a folder as part.png if one is given."""
        figures = {}
        for name, part in self.parts.items():
            figures[name] = part.plot(None if folder is None else Path(folder) / f"{name}.png")
        return figures


def diagnose_latents(
    program: Any,
    data: Any,
    heldout: Tensor | None = None,
    *,
    rows: int = 500,
    gap_rows: int = 50,
    seed: int | None = 0,
) -> LatentReport:
    """Every diagnosis of an amortised latent-variable program: collapsed units, the parts of its bound, holes in the prior, the
    guide's two gaps and, for several levels, what each adds.

    Arguments:
        program: a `Program` (or model) with an amortised guide whose latent sites lie in the plate `data`.
        data: training rows [N, D], or a `Dataset`. Of rows alone the last third is held out.
        heldout: rows that the program has not learned from.
        rows: of each split, at most.
        gap_rows: rows whose best Gaussian is searched for; 0 leaves the gaps out.
        seed: of all draws.

    Returns:
        A `LatentReport`; `print` it, or `plot(folder)`.

    Raises:
        TaskUnavailable: there is no guide, or a latent site that belongs to no row of data.

    Example:
        >>> import ppl_dgm as dgm
        >>> digits = dgm.data.digits()
        >>> pca = dgm.learn(dgm.models.ProbabilisticPCA(64, 4), digits).program
        >>> diagnose_latents(pca, digits, rows=100, gap_rows=0).units.active
        4
    """
    made = as_program(program)
    train, unseen = split(data, heldout)
    left_out: dict[str, str] = {}
    parts: dict[str, Any] = {}
    with at_rest(made, seed):
        codes = encode(made, rows_of(train, rows), 4)
        parts["units"] = units_of(codes)
        several = len(codes.layout.names) > 1
        try:
            parts["surgery"] = surgery_of(made, codes)
            if several:
                parts["levels"] = information_of(made, codes)
        except TaskUnavailable as error:
            left_out["surgery"] = str(error)
    try:
        parts["prior"] = prior_match(made, train, unseen, rows=rows, samples=rows, seed=seed)
    except TaskUnavailable as error:
        left_out["prior"] = str(error)
    if gap_rows:
        try:
            parts["gaps"] = inference_gaps(made, unseen, rows=gap_rows, seed=seed)
        except TaskUnavailable as error:
            left_out["gaps"] = str(error)
    return LatentReport(**parts, left_out=left_out)
