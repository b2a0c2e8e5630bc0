"""A run that is stopped at a step and taken up again from its checkpoint must be the run that was never stopped."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.inference.chains import sampling

__all__ = ["assert_resumes"]


class _Interrupted(Exception):
    pass


def assert_resumes(
    method: Any, stop: int, file: Path, monkeypatch: pytest.MonkeyPatch, program: Any, *args: Any
) -> None:
    """Stop the run before step `stop`, resume it under another seed, and compare every draw, statistic and count."""
    whole = dgm.infer(program, *args, method=method, seed=0)
    resumable = dataclasses.replace(method, checkpoint=file)
    advance = sampling.ChainSampler._advance

    def until(self: Any, density: Any, run: Any, report: Any) -> None:
        if run.t == stop:
            raise _Interrupted
        advance(self, density, run, report)

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(sampling.ChainSampler, "_advance", until)
        with pytest.raises(_Interrupted):
            dgm.infer(program, *args, method=resumable, seed=0)
    resumed = dgm.infer(program, *args, method=resumable, seed=99)
    for site in whole.draws:
        assert torch.equal(whole.draws[site], resumed.draws[site]), site
    for name in whole.stats:
        assert torch.equal(whole.stats[name], resumed.stats[name]), name
    assert resumed.cost.gradients == whole.cost.gradients
    assert resumed.cost.warmup_gradients == whole.cost.warmup_gradients
    assert resumed.cost.evaluations == whole.cost.evaluations
