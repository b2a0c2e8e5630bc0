"""The examples in the docstrings are run, module by module; every public name has a docstring."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import ppl_dgm

MODULES = sorted(
    name
    for package in ("ppl_dgm", "ppl_dgm.models", "ppl_dgm.inference")
    for _, name, _ in pkgutil.walk_packages(importlib.import_module(package).__path__, package + ".")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name):
    module = importlib.import_module(name)
    bare = [
        n
        for n in getattr(module, "__all__", ())
        if inspect.isroutine(getattr(module, n)) and not inspect.getdoc(getattr(module, n))
    ]
    bare += [
        n
        for n in getattr(module, "__all__", ())
        if inspect.isclass(getattr(module, n)) and not getattr(module, n).__doc__
    ]
    assert not bare, f"{name}: no docstring on {', '.join(bare)}"


def test_the_public_face_is_importable_by_name():
    for name in ppl_dgm.__all__:
        assert getattr(ppl_dgm, name) is not None, name
