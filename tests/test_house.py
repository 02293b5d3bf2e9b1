"""The house: who may import whom.  An arrow goes only down the list, and there is no circle."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter

from common import ROOT

# from the top: a file may import what stands further down, and its neighbours in its own room
FLOORS = "study fork_gpt tasks rollout parallel infra model verify algebra".split()
# who may look upwards, and from which functions alone: a command line is above everything
UPWARDS = {("fork_gpt.py", "start"), ("fork_gpt.py", "run"), ("rollout.py", "print_traces")}


def arrows() -> list[tuple[str, str, str]]:
    """(file, the function that imports, imported module) of every import of ours."""
    out = []
    for path in [*ROOT.glob("*.py"), *(p for f in FLOORS for p in ROOT.glob(f"{f}/*.py"))]:
        name, tree, inside = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text()), {}
        for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            inside |= {id(n): function.name for n in ast.walk(function)}
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            out += [(name, inside.get(id(node), ""), m) for m in names if m.split(".")[0] in FLOORS]
    return out


def floor(name: str) -> int:
    return FLOORS.index(name.split("/")[0].split(".")[0])


def test_arrows_go_down():
    wrong = [
        f"{file} imports {module} in {function or 'the module'}"
        for file, function, module in arrows()
        if floor(module) < floor(file) and (file, function) not in UPWARDS
    ]
    assert not wrong, f"arrows that go up: {wrong}"


def test_no_circle_of_files():
    """Inside a room too: a file is loaded before those that import it."""
    needs = {}
    for file, function, name in arrows():
        if not function:
            whole = (ROOT / name.replace(".", "/")).with_suffix(".py").exists()
            target = name if whole else name.rpartition(".")[0]
            own = file.removesuffix(".py").replace("/", ".")
            needs.setdefault(own, set()).update({target} - {own})
    assert needs["fork_gpt"] > {"model", "tasks.ask"}
    TopologicalSorter(needs).prepare()  # its CycleError names the circle


def test_the_door():
    """At the root stand the files that teach; everything else has a room."""
    door = set("fork_gpt.py model.py rollout.py parallel.py verify.py algebra.py".split())
    assert {p.name for p in ROOT.glob("*.py")} == door


def test_the_grader_and_the_errors_need_no_torch():
    code = "import sys, verify, infra.files, infra.flags; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_the_benches_import_is_there():
    """A bench that runs once a year imported a function that had been renamed."""
    for path in ROOT.glob("bench/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in FLOORS:
                module = importlib.import_module(node.module)
                gone = [a.name for a in node.names if not hasattr(module, a.name)]
                assert not gone, f"{path.name}: {node.module} has no {gone}"
