"""The package that a user installs holds every module of the tree, and each is found where it belongs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"ppl_dgm": "ppl_dgm", "models": "ppl_dgm/models", "inference": "ppl_dgm/inference"}


def tree() -> dict[str, Path]:
    """Every .py file of the three folders, by the path at which it must install."""
    return {
        f"{installed}/{file.relative_to(ROOT / folder).as_posix()}": file
        for folder, installed in FOLDERS.items()
        for file in (ROOT / folder).rglob("*.py")
    }


def module_name(installed: str) -> str:
    """`ppl_dgm/models/__init__.py` is the module `ppl_dgm.models`."""
    return installed.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree: no earlier build's leftovers get in, and none are left."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", target]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [file] = target.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_holds_every_module_of_the_tree_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
    missing = sorted(tree().keys() - packed.keys())
    assert not missing, f"not in the wheel (does each folder have its __init__.py?): {missing}"
    assert sorted(packed.keys() - tree().keys()) == []
    assert [name for name, file in tree().items() if file.read_bytes() != packed[name]] == []


def test_wheel_marks_the_package_as_typed_and_holds_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "ppl_dgm/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"ppl_dgm"}


def test_wheel_holds_the_stored_references(wheel: Path) -> None:
    folder = ROOT / "inference/targets/references"
    with zipfile.ZipFile(wheel) as archive:
        packed = {Path(name).name: archive.read(name) for name in archive.namelist() if name.endswith(".json")}
    assert packed == {file.name: file.read_bytes() for file in folder.glob("*.json")} and packed


def test_wheel_is_for_every_platform_and_offers_the_command(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "ppl-dgm = ppl_dgm.cli:main" in archive.read(name).decode()


def test_metadata_states_the_ranges(metadata: Message) -> None:
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    always = {need.name: need.specifier for need in requirements if need.marker is None}
    named = ["torch", "pyro-ppl", "arviz", "networkx", "matplotlib", "numpy", "pandas", "scikit-learn", "scipy"]
    assert sorted(always) == sorted([*named, "safetensors", "typer", "rich"])
    assert always["torch"].contains("2.6.0") and not always["torch"].contains("2.5.1")
    assert always["arviz"].contains("0.20.0") and always["arviz"].contains("1.0.0")
    pythons = Requirement(f"python{metadata['Requires-Python']}").specifier
    assert [minor for minor in range(8, 17) if pythons.contains(f"3.{minor}")] == [11, 12, 13]
    assert "parquet" in metadata.get_all("Provides-Extra", [])


def test_constraints_lie_within_the_ranges(metadata: Message) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    for text in metadata.get_all("Requires-Dist", []):
        need = Requirement(text)
        assert need.name in pins, f"constraints.txt has no tested version of {need.name}"
        assert need.specifier.contains(pins[need.name]), f"{need.name}=={pins[need.name]} is outside {need}"


def test_every_module_of_the_wheel_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    names = sorted(module_name(installed) for installed in tree() if not installed.endswith("__main__.py"))
    script = (
        "import importlib, json, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"print(json.dumps({{n: importlib.import_module(n).__file__ for n in {names!r}}}))"
    )
    # -I keeps the current folder out; an installed copy comes after the wheel and shows by its path.
    run = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert [name for name, file in found.items() if tmp_path not in Path(file).parents] == []


def test_this_environment_finds_every_module_in_the_tree() -> None:
    """The editable install sees the files as they are now, new ones too."""
    astray = {}
    for installed, file in tree().items():
        found = importlib.util.find_spec(module_name(installed))
        origin = found.origin if found is not None else None
        if origin is None or Path(origin).resolve() != file:
            astray[module_name(installed)] = origin
    assert not astray, f"found elsewhere or nowhere; run make setup: {astray}"
