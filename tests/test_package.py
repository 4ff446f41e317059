"""The shape of the package: what is installed, which room may import which, and what no file may do."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("looking", "engine", "training", "segmenters", "vector", "outputs", "networks", "losses")
# What QGIS runs with a Python of its own: tests/qgis_plugin says what it may import.
PLUGIN = ROOT / "geoseg" / "qgis_plugin"
FILES = sorted(
    path
    for path in [*(ROOT / "geoseg").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    if not path.is_relative_to(PLUGIN)
)
MOST_LINES = 400
# What takes long to import: never at the top of a command, nor of the package itself.
HEAVY = {
    *("torch", "torchvision", "timm", "segmentation_models_pytorch", "pytorch_lightning", "kornia", "rasterio"),
    *("geopandas", "pyogrio", "shapely", "pyproj", "odc", "dask", "distributed", "numpy", "numba", "skimage"),
    *("pydantic", "safetensors", "rich"),
}

# Besides itself and the modules of the core that every room below may use, a room imports from these.
ALLOWED = {
    "networks": set[str](),
    "losses": set[str](),
    "vector": {"core"},
    "outputs": {"core", "vector.features"},
    "segmenters": {"core", "networks", "losses"},
    "training": {"core", "networks", "losses", "segmenters", "vector", "outputs"},
    "looking": {"core", "outputs", "engine"},
    "engine": {"core", "networks", "losses", "segmenters", "vector", "outputs", "training"},
    "core": {"core"},
}
# The front door: its lazy names lead everywhere, and its version is a plain string.
FRONT = "geoseg"


def _name(path: Path) -> str:
    """Return how a test shows a file."""
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), _name(path))


def _imported(tree: ast.AST, *, top_only: bool = False) -> Iterator[str]:
    """Yield the full names that are imported; of ``top_only`` only those that the import of the file imports."""
    nodes = _at_import(tree) if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the file is imported: not in functions, nor for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _at_import(node)


def _room(module: str) -> str:
    """Return the room of a full name ``geoseg.…``: a folder, else the core."""
    part = module.split(".")[1]
    return part if part in ROOMS else "core"


def _packages() -> list[str]:
    found = []
    for top, package in (("geoseg", "geoseg"), ("cli", "geoseg_cli")):
        folders = (path.parent.relative_to(ROOT / top) for path in (ROOT / top).rglob("__init__.py"))
        found += [".".join((package, *folder.parts)) for folder in folders]
    return sorted(found)


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["packages"] == _packages()
    assert settings["package-dir"] == {"geoseg": "geoseg", "geoseg_cli": "cli"}


def test_every_folder_with_code_is_a_package() -> None:
    for path in FILES:
        assert (path.parent / "__init__.py").exists(), _name(path)


def test_the_version_is_told_once() -> None:
    import geoseg

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.get("version", geoseg.__version__) == geoseg.__version__


def test_every_import_of_the_product_is_a_stated_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    stated = [*project["dependencies"], *extras["parquet"], *extras["onnx"], *extras["openvino"], *extras["s3"]]
    names = {entry.split(">")[0].split("[")[0].strip().replace("-", "_").lower() for entry in stated}
    # Import names that differ, and what comes for certain with a stated one.
    names |= {"odc", "affine", "yaml"} | ({"cloudpickle", "tornado"} if "distributed" in names else set())
    names |= {"botocore"} if "boto3" in names else set()
    names |= {"pil"} if "pillow" in names else set()
    names |= {"skimage"} if "scikit_image" in names else set()
    names |= set(sys.stdlib_module_names) | {"geoseg", "geoseg_cli"}
    for path in FILES:
        for module in _imported(_tree(path)):
            assert module.split(".")[0].lower() in names, f"{_name(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_every_file_says_what_it_is_and_stays_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) < MOST_LINES


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "geoseg")], ids=_name)
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if module == FRONT:
        return
    room = _room(module)
    for name in _imported(_tree(path)):
        if name.split(".")[0] == "geoseg_cli":
            pytest.fail(f"{module} imports the command line ({name})")
        if name.split(".")[0] != "geoseg" or name in {FRONT, "geoseg.__version__"} or name.startswith("geoseg.errors."):
            continue
        other = _room(name)
        if other == room and room != "core":
            continue
        allowed = any(name.startswith(f"geoseg.{entry}") for entry in ALLOWED[room]) or other in ALLOWED[room]
        assert allowed, f"{module} ({room}) imports {name} ({other})"


def test_a_room_reaches_no_other_by_the_front_door() -> None:
    for path in (ROOT / "geoseg").rglob("*.py"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "geoseg":
                assert node.attr == "__version__", f"{_name(path)}: geoseg.{node.attr}"


def test_commands_and_the_front_door_import_nothing_heavy_at_their_top() -> None:
    for path in [*(ROOT / "cli").glob("*.py"), ROOT / "geoseg" / "__init__.py", ROOT / "geoseg" / "errors.py"]:
        tops = {name.split(".")[0] for name in _imported(_tree(path), top_only=True)}
        assert not tops & HEAVY, f"{_name(path)}: {tops & HEAVY}"


def test_no_code_is_ever_run_from_a_file() -> None:
    unsafe_modules = {"pickle", "marshal", "shelve", "dill", "joblib"}
    unsafe_calls = {"eval", "exec", "torch.load", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load"}
    # These two can be told, in so many words, not to unpickle.
    made_safe = {("torch.load", "weights_only=True"), ("np.load", "allow_pickle=False")}
    for path in FILES:
        tree = _tree(path)
        modules = {name.split(".")[0] for name in _imported(tree)}
        assert not modules & unsafe_modules, f"{_name(path)}: {modules & unsafe_modules}"
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and not any((ast.unparse(node.func), ast.unparse(word)) in made_safe for word in node.keywords)
        }
        assert not calls & unsafe_calls, f"{_name(path)}: {calls & unsafe_calls}"
        assert not any(call.endswith(("pickle.load", "pickle.loads")) for call in calls), _name(path)
