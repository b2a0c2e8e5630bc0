"""Where the packages lie: the two folders beside the core install inside it; no folder is listed by hand."""

from setuptools import find_packages, setup

FOLDERS = {"ppl_dgm": "ppl_dgm", "ppl_dgm.models": "models", "ppl_dgm.inference": "inference"}

setup(
    package_dir=FOLDERS,
    packages=[
        name
        for package, folder in FOLDERS.items()
        for name in (package, *(f"{package}.{child}" for child in find_packages(folder)))
    ],
    package_data={"ppl_dgm": ["py.typed"], "ppl_dgm.inference.targets": ["references/*.json"]},
)
