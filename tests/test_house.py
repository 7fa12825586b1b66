"""The house: which way imports point, and that a wheel holds what the package needs."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TORCH_FREE = {
    "sae",
    "sae.architecture",
    "sae.artifacts",
    "sae.cli",
    "sae.config",
    "sae.digests",
    "sae.errors",
    "sae.hookpoints",
    "sae.latents",
    "sae.locks",
    "sae.mapped",
    "sae.layer_groups",
    "sae.layer_originals",
    "sae.layer_profiles",
    "sae.layer_summary",
    "sae.layer_sums",
    "sae.layer_variance",
    "sae.layered",
    "sae.plots",
    "sae.pydocs",
    "sae.runs",
}
HEAVY = {"torch", "transformers", "vllm", "datasets"}
STAGES = {"autointerp.explain", "autointerp.measure", "autointerp.score"}
SAE_STAGES = {"sae.cache", "sae.convert", "sae.layers", "sae.lens", "sae.train"}


def _imports(path: Path) -> set[str]:
    """Every module that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _modules(folder: str) -> dict[Path, set[str]]:
    return {path.relative_to(ROOT): _imports(path) for path in sorted((ROOT / folder).rglob("*.py"))}


def _offences(folder: str, forbidden: set[str]) -> list[str]:
    """Imports below any of the forbidden packages."""
    return [
        f"{path} imports {name}"
        for path, names in _modules(folder).items()
        for name in names
        if any(name == package or name.startswith(f"{package}.") for package in forbidden)
    ]


def test_the_dictionary_knows_nothing_of_explanations_or_benchmarks() -> None:
    assert _offences("sae", {"autointerp", "benchmarks", "openai", "jinja2", "sklearn"}) == []


def test_the_meaning_knows_no_subject_and_no_torch() -> None:
    assert _offences("autointerp", HEAVY | {"benchmarks"}) == []
    used = {name for names in _modules("autointerp").values() for name in names if name.split(".")[0] == "sae"}
    assert used <= TORCH_FREE


def test_the_torch_free_half_of_sae_imports_no_other() -> None:
    for name in TORCH_FREE:
        path = ROOT / name.replace(".", "/")
        imports = _imports(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
        assert not {i for i in imports if i.split(".")[0] in HEAVY}
        assert {i for i in imports if i.startswith("sae.")} <= TORCH_FREE


@pytest.mark.parametrize("plugins", ["explainers", "scorers"])
def test_plug_ins_do_no_input_or_output(plugins: str) -> None:
    forbidden = {"pathlib", "os", "io", "asyncio", "sqlite3", "openai", "sklearn", *STAGES}
    assert _offences(f"autointerp/{plugins}", forbidden) == []


def test_only_stages_and_benchmarks_import_stages() -> None:
    for path, names in (_modules("autointerp") | _modules("sae")).items():
        assert not names & (STAGES | SAE_STAGES), path


def test_a_wheel_finds_its_prompts_where_it_is_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        assert "autointerp/prompts/score/detection/system.j2" in archive.namelist()
        assert not [name for name in archive.namelist() if name.startswith(("tests/", "benchmarks/", "prompts/"))]
        archive.extractall(site)
    program = (
        "import autointerp; from autointerp.prompting import Prompts; print(autointerp.__file__);"
        "print(Prompts().render('score/detection', {'explanation': 'x', 'texts': ['a']})[0].content)"
    )
    environment = {"PYTHONPATH": str(site), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    where, prompt = done.stdout.split("\n", 1)
    assert Path(where).is_relative_to(site)
    assert prompt.strip()
