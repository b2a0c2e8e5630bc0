"""Algorithms and programs by name."""

import subprocess
import sys
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest

import ppl_dgm as dgm
import ppl_dgm.registry as registry
from ppl_dgm.errors import ProgramError


@pytest.mark.parametrize("name", sorted(registry._BUILT_IN))
def test_every_built_in_algorithm_is_found_and_runs_with_its_defaults(name):
    cls = registry.find(name)
    assert isinstance(cls(), registry.Algorithm) and cls.__doc__
    assert registry.find(name.upper().replace("-", "_")) is cls
    assert getattr(dgm, cls.__name__) is cls


@pytest.mark.parametrize("name", sorted(dgm.models.names()))
def test_every_program_is_found_however_it_is_spelled(name):
    cls = dgm.models.find(name)
    assert cls.__name__ == name and issubclass(cls, dgm.Program)
    assert dgm.models.find(f" {name.lower()[:2]}-{name.lower()[2:]}_") is cls


def test_unknown_names_list_what_there_is():
    with pytest.raises(ProgramError, match=r"method 'svy' is unknown; did you mean 'svi'\? there are: .*em.*svi"):
        dgm.score(lambda: None, method="svy")
    with pytest.raises(ProgramError, match=r"model 'VAEE' is not in the zoo; did you mean VAE\? there are: "):
        dgm.models.find("VAEE")
    with pytest.raises(AttributeError, match="no attribute 'NoSuchThing'"):
        dgm.NoSuchThing  # noqa: B018
    with pytest.raises(ProgramError, match="name or an object with a method run, but it is a int"):
        dgm.score(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), method=3)


def test_an_algorithm_of_the_users_own(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    @dgm.algorithm("constant")
    @dataclass(frozen=True)
    class Constant:
        value: float = 1.0

        def run(self, program, *args, **kwargs):
            import torch

            return dgm.Score(torch.full((2,), self.value), "estimate", how=program.name)

    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    assert "constant" in dgm.algorithms()
    assert dgm.score(model, method="constant").value.tolist() == [1.0, 1.0]
    assert dgm.score(model, method=Constant(3.0)).value.tolist() == [3.0, 3.0]
    assert dgm.score(model, method=Constant).how == "model"
    assert registry.resolve("constant", value=2.0, unknown=5).value == 2.0
    with pytest.raises(ProgramError, match=r"must be a dataclass with a method run"):
        dgm.algorithm("bad")(int)


def test_importing_the_package_imports_nothing_heavy():
    code = "import ppl_dgm, ppl_dgm.cli, sys; print([m for m in ('torch', 'pyro', 'arviz', 'matplotlib') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
