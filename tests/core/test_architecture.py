"""The shape of the code base: what may import what, what an import costs, what files may say."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE_ROOTS = (ROOT / "shared/brix_core", ROOT / "brix_langchain", ROOT / "brix_llamaindex")
PACKAGES = sorted(
    (init.parent for root in PACKAGE_ROOTS for init in root.rglob("__init__.py")), key=lambda path: path.parts
)

FRAMEWORKS = re.compile(r"^(langchain|langgraph|llama_index)")
HEAVY = (
    "anthropic",
    "genai_prices",
    "httpx",
    "numpy",
    "openai",
    "sentence_transformers",
    "starlette",
    "tiktoken",
)

# Run in a fresh interpreter, because this one has long imported everything. The difference to
# `before` leaves out what an environment's own start-up files load.
IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys

OPTIONAL = {"anthropic", "openai", "opentelemetry", "redis", "sentence_transformers", "starlette", "uvicorn"}
before = set(sys.modules)
imported, skipped = [], []

def visit(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        skipped.append(name)
        return
    imported.append(name)
    for child in pkgutil.iter_modules(getattr(module, "__path__", ())):
        # The demo needs a server; running a __main__ would start it.
        if child.name not in {"demo", "__main__"}:
            visit(f"{name}.{child.name}")

visit("brix_core")
print(json.dumps({"imported": imported, "skipped": skipped, "loaded": sorted(set(sys.modules) - before)}))
"""

IMPORT_CORE = """
import json, sys

before = set(sys.modules)
import brix_core

print(json.dumps(sorted(set(sys.modules) - before)))
"""


def _fresh_interpreter(code: str, cwd: Path) -> str:
    """Run `code` away from the source tree and return the last line it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def _dotted(package: Path) -> str:
    base = ROOT / "shared" if package.is_relative_to(ROOT / "shared") else ROOT
    return ".".join(package.relative_to(base).parts)


@cache
def _repository_files() -> tuple[Path, ...]:
    """Every tracked file, and every new one that git would not ignore."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return tuple(path for path in paths if path.is_file())


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def test_no_core_module_loads_a_framework(tmp_path: Path) -> None:
    report = json.loads(_fresh_interpreter(IMPORT_EVERYTHING, tmp_path))
    on_disk = {path for path in PACKAGE_ROOTS[0].rglob("*.py") if path.stem not in {"__init__", "__main__"}} - set(
        (PACKAGE_ROOTS[0] / "demo").rglob("*.py")
    )

    assert [name for name in report["loaded"] if FRAMEWORKS.match(name)] == []
    seen = set(report["imported"] + report["skipped"])
    assert {_dotted(path.with_suffix("")) for path in on_disk} <= seen, "a module was not reached"


def test_importing_the_core_loads_nothing_heavy(tmp_path: Path) -> None:
    loaded = json.loads(_fresh_interpreter(IMPORT_CORE, tmp_path))

    assert "brix_core" in loaded
    assert sorted({name.partition(".")[0] for name in loaded} & set(HEAVY)) == []


@pytest.mark.parametrize("root", PACKAGE_ROOTS, ids=_dotted)
def test_every_distributed_package_is_importable_and_typed(root: Path) -> None:
    folders = {path.parent for path in root.rglob("*.py")} | {root}

    assert (root / "py.typed").is_file()
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("package", PACKAGES, ids=_dotted)
def test_public_names_are_declared_sorted_and_importable(package: Path) -> None:
    if package.name == "demo":
        pytest.importorskip("starlette", reason="the demo extra is absent")
    module = importlib.import_module(_dotted(package))
    declared = list(getattr(module, "__all__", []))
    tree = ast.parse(_read_text(package / "__init__.py"))
    reexported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("brix_")
        for alias in node.names
    }

    assert declared == sorted(set(declared))
    assert [name for name in declared if not hasattr(module, name)] == []
    assert sorted(name for name in reexported - set(declared) if not name.startswith("_")) == []


def test_the_shared_folder_is_never_imported_as_a_package() -> None:
    offenders = []
    for path in _repository_files():
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(_read_text(path))):
                targets = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    targets = [node.module or ""]
                if any(target.partition(".")[0] == "shared" for target in targets):
                    offenders.append(f"{path.relative_to(ROOT)}:{node.lineno}")
        elif path.suffix in {".ipynb", ".md"} and re.search(
            r"\b(from\s+shared[\w.]*\s+import|import\s+shared\b)", _read_text(path)
        ):
            offenders.append(str(path.relative_to(ROOT)))

    assert offenders == []


# Split, so that this file does not match itself.
REGISTRY_HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "npm" + "js.com",
    "deb." + "debian.org",
    "proxy." + "golang.org",
    "crates" + ".io",
    "conda" + ".anaconda.org",
]
MACHINE_PATHS = re.compile(r"(?<![\w.\-])/(?:" + "|".join(["work", "root", "tmp/w"]) + r")/")


def test_no_file_names_a_registry_host() -> None:
    hosts = re.compile("|".join(map(re.escape, REGISTRY_HOSTS)), re.IGNORECASE)

    assert _lines_matching(hosts) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert _lines_matching(MACHINE_PATHS) == []


def _lines_matching(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _repository_files()
        for number, line in enumerate(_read_text(path).splitlines(), start=1)
        if pattern.search(line)
    ]


def test_constraints_are_exact_sorted_pins_and_nothing_else() -> None:
    pins = _read_text(ROOT / "constraints.txt").splitlines()

    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin)] == []
    assert pins == sorted(pins, key=str.upper)
