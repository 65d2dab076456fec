"""The examples in docstrings: every public metric, geometry function and model has one, and each runs."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import flr.models

MODULES = [
    "flr.metrics.functional",
    "flr.landmarks.geometry",
    "flr.landmarks.definition",
    "flr.landmarks.scheme",
    *(f"flr.models.{module.name}" for module in pkgutil.iter_modules(flr.models.__path__)),
]
# Built of an optional package; parts of other models; a helper of error lines; a class whose methods have examples.
WITHOUT = {"TimmBackbone", "InvertedResidual", "inverted_residuals", "conv", "scaled", "point_of", "Scheme"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    public = {
        word: each
        for word, each in vars(module).items()
        if inspect.isfunction(each) or inspect.isclass(each)
        if each.__module__ == name and not word.startswith("_")
    }
    assert [word for word, each in public.items() if ">>>" not in (each.__doc__ or "")] == [
        word for word in public if word in WITHOUT
    ]
