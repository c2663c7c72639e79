"""The project's own promises: one list of packages, imports in one direction, no local paths."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .fakes import write_set

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "umsf_lib"

# The rooms in the order in which data meets them. A room imports only what stands before it; within
# a room, too, nothing runs in circles.
ORDER = """
config progress run simulation data training models figures pretraining clustering baselines
supervised evaluation maps experiments notebooks __main__
""".split()  # noqa: SIM905  (a list to read, top to bottom)


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        Requirement(line)
        for line in project["dependencies"] + project["optional-dependencies"]["test"]
    ]


def of_extras() -> list[Requirement]:
    """What the extras for users ask for, which those who test have, too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: x for name, x in project["optional-dependencies"].items() if name != "test"}
    return [Requirement(line) for lines in extras.values() for line in lines]


def test_what_an_extra_asks_for_is_tested() -> None:
    asked = {str(r) for r in of_extras()}
    assert asked and asked <= {str(r) for r in declared()}


def test_environment_yml_names_the_same_packages_and_bounds() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    plain = [line for line in listed if isinstance(line, str) and line != "pip"]
    conda = [Requirement(re.sub("^pytorch", "torch", line)) for line in plain]
    found = {r.name: str(r.specifier) for r in conda}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found.pop("python") == project["requires-python"]
    assert found == {r.name: str(r.specifier) for r in declared()}


def test_every_bound_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    bounds = re.findall(r'^ +"[\w-]+>=.*$', text, re.MULTILINE)
    assert len(bounds) == len(declared()) + len(of_extras())
    assert [line for line in bounds if "  # " not in line] == []


def test_constraints_are_plain_and_satisfy_the_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [p for p in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.]+", p)] == []
    pinned = {canonicalize_name(n): v for n, v in (p.split("==") for p in pins)}
    assert len(pinned) == len(pins)
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(pinned[name]), (
            f"{name} {pinned[name]} is out of bounds"
        )


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Each imported module's dotted name, absolute, and whether it lies in umsf_lib."""
    here = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(here[: len(here) - node.level])
            found = [
                f"{base}.{node.module}" if node.module else f"{base}.{a.name}" for a in node.names
            ]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module or ""]
        else:
            continue
        for name in found:
            yield name, name.partition(".")[0] == "umsf_lib"


def test_imports_go_one_way() -> None:
    wrong = []
    for path in sorted(LIBRARY.rglob("*.py")):
        own = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
        inner = {name.split(".")[1] for name, ours in imports(path) if ours and "." in name}
        for other in inner - {own, "hand_on", "__version__"}:
            if own not in ORDER or other not in ORDER:
                wrong.append(f"{own} imports {other}, and one of them is not in ORDER")
            elif ORDER.index(other) > ORDER.index(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}, which stands after {own}")
    assert wrong == []


def test_no_room_runs_in_circles() -> None:
    for room in (path.parent for path in LIBRARY.rglob("__init__.py")):
        files = {path.stem: path for path in room.glob("*.py") if path.stem != "__init__"}
        prefix = ".".join(room.relative_to(ROOT).parts) + "."
        arrows = {
            name: {
                other.removeprefix(prefix).split(".")[0]
                for other, _ in imports(path)
                if other.startswith(prefix)
            }
            & files.keys()
            for name, path in files.items()
        }
        while ends := [name for name, others in arrows.items() if not others & arrows.keys()]:
            for name in ends:
                del arrows[name]
        assert not arrows, f"in {room.name}, {sorted(arrows)} import each other in circles"


ROOMS = sorted(path.parent for path in LIBRARY.rglob("__init__.py") if path.parent != LIBRARY)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_hands_on_names_that_are_there_and_no_files(room: Path) -> None:
    package = importlib.import_module(".".join(room.relative_to(ROOT).parts))
    files = {path.stem for path in room.glob("*.py")}
    assert not files & set(package.__all__)  # once imported, the file would be in the way
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_data_is_found_and_read_without_torch() -> None:
    code = "import sys; from umsf_lib.data import load_layout, find_scenes; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "umsf_lib.data.scene" in done.stdout.split() and "torch" not in done.stdout.split()


HEAVY = {"torch", "sklearn", "scipy", "pandas", "matplotlib", "seaborn", "papermill", "nbformat"}


def imported_by(*arguments: str) -> set[str]:
    """Packages that the command imports, in a process of its own."""
    code = (
        "import sys; from umsf_lib.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('modules:', *sys.modules)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.rpartition("modules:")[2].split()}


def test_help_and_data_check_start_without_what_takes_seconds_to_import(tmp_path: Path) -> None:
    write_set(tmp_path)
    assert HEAVY & imported_by("--help") == set()
    found = imported_by("data", "check", str(tmp_path))
    assert "rasterio" in found and HEAVY & found == set()


def test_a_name_that_a_room_has_not_is_refused() -> None:
    data = importlib.import_module("umsf_lib.data")
    with pytest.raises(AttributeError, match="'umsf_lib.data' has no attribute 'no_such_name'"):
        _ = data.no_such_name


def imported_with(name: str) -> set[str]:
    """Packages that importing a file of ours imports, through all of ours that it imports."""
    path = LIBRARY / f"{name}.py"
    path = path if path.is_file() else LIBRARY / name / "__init__.py"
    here = path.relative_to(ROOT).with_suffix("").parts
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:  # not those inside a function
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = [*here[1 : len(here) - node.level], *(node.module or "").split(".")]
            found |= imported_with("/".join(base))
    return found - set(sys.stdlib_module_names)


def test_the_pretraining_step_needs_no_more_than_torch_and_its_like() -> None:
    """So its benchmark can be carried to a machine without the tutorial's environment."""
    light = {"torch", "numpy", "scipy", "yaml", "filelock", "pydantic", "pydantic_core"}
    assert imported_with("pretraining/moco") == light
    assert "rasterio" in imported_with("pretraining/stage")  # the function looks deep enough


def test_every_file_has_its_place_in_the_order() -> None:
    there = {p.name.removesuffix(".py") for p in LIBRARY.iterdir() if p.suffix == ".py"}
    there |= {p.parent.name for p in LIBRARY.glob("*/__init__.py")}
    assert there - {"__init__"} == set(ORDER)


def test_every_import_is_a_declared_package() -> None:
    modules = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
    known = {modules.get(r.name, r.name.replace("-", "_")) for r in declared()}
    known |= set(sys.stdlib_module_names)
    known |= {"PIL", "affine", "pydantic_core"}  # of matplotlib, rasterio and pydantic
    known |= {"IPython", "packaging", "nbclient", "nbconvert"}  # jupyterlab and pytest need them
    files = [*LIBRARY.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    found = {
        (name.split(".")[0], str(p.relative_to(ROOT))) for p in files for name, _ in imports(p)
    }
    assert [
        f for f in sorted(found) if f[0] not in known | {"umsf_lib", "tests", "benchmarks"}
    ] == []


def tracked_text() -> Iterator[tuple[Path, str]]:
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    for path in (ROOT / line for line in listed.splitlines()):
        try:
            yield path, path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue


def test_no_file_names_a_path_of_one_machine() -> None:
    homes = "|".join(("home", "Users", "root", "work", "tmp", "mnt", "media"))
    machine = re.compile(rf"(?<![\w.~<*-])/(?:{homes})/\w|[A-Z]:\\\\?Users\\")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path, text in tracked_text()
        for match in machine.finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.name
)
def test_recorded_benchmarks_are_records(path: Path) -> None:
    assert json.loads(path.read_text())


def text_without_encoding(path: Path) -> Iterator[str]:
    """Calls that read or write text in the encoding of the locale."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = {keyword.arg for keyword in node.keywords}
        position = {"read_text": 0, "write_text": 1, "open": 3, "fdopen": 3}.get(name, -1)
        of = ast.unparse(node.func).removesuffix(f".{name}").rpartition(".")[2]
        if (
            position < 0
            or "encoding" in given
            or of in ("Image", "Run", "rasterio", "memory", "cls")
        ):
            continue
        words = [a.value for a in node.args if isinstance(a, ast.Constant)]
        if name.endswith("open") and any(isinstance(w, str) and "b" in w for w in words):
            continue
        if len(node.args) <= position:
            yield f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"


def test_text_is_utf_8_whatever_the_locale() -> None:
    files = [*LIBRARY.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert len(files) > 80
    assert [text for path in sorted(files) for text in text_without_encoding(path)] == []
