"""Imports run one way: a module uses its own floor or a lower one, and no cycle exists."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "kljax"
CATALOGUE = sorted(path.stem for path in (PACKAGE / "derivations/catalogue").glob("[!_]*.py"))
FLOORS = [
    ["_pytree", "special", "doubled", "linalg", "blocks", "constraints", "_record", "_batches"],
    [
        "structure",
        "coordinates",
        "factors",
        "smallfactors",
        "covariances",
        "matrices",
        "dense",
        "subspace",
        "lowrank",
        "relative",
        "kronecker",
        "markov",
        "tridiagonal",
        "filtering",
        "smoothing",
        "paths",
    ],
    ["divergence", "distribution"],
    [
        "families",
        "families.gaussian",
        "families.gaussian_mixes",
        "families.isotropic",
        "families.low_rank",
        "families.block_diagonal",
        "families.gaussian_process",
        "families.matrix_normal",
        "families.circulant",
        "families.gauss_markov",
        "families.block_tridiagonal",
        "families.state_space",
        "families.state_space_laws",
    ],
    [
        "batch.halves",
        "batch.moments",
        "batch.tiles",
        "batch.panels",
        "batch.nearest",
        "batch.matrix",
        "batch.fields",
        "batch.stream",
        "batch",
    ],
    # The objective of a VAE; one name a line, in the order of who may use whom.
    [
        "vae._inputs",
        "vae.terms",
        "vae.translate",
        "vae.schedules",
        "vae.intervals",
        "vae.likelihoods",
        "vae.estimators",
        "vae.shaping",
        "vae.multiplier",
        "vae.importance",
        "vae._posteriors",
        "vae.linear.arguments",
        "vae.linear.latent",
        "vae.linear.model",
        "vae.linear.optimum",
        "vae.linear",
        "vae.aggregate",
        "vae.minibatch",
        "vae.diagnostics",
        "vae.verdicts",
        "vae",
    ],
    [""],
    # Read and write files: imported by the command line alone.
    [
        "batch.rows",
        "batch.tables",
        "batch.safetensors",
        "batch.files",
        "batch.naming",
        "batch.formats",
        "batch.output",
        "batch.together",
        "batch.meter",
        "batch.command",
    ],
    # Why it is true: imported by nothing below.
    [
        "derivations.series",
        "derivations.layout",
        "derivations.smallmatrix",
        "derivations.expression",
        "derivations.naming",
        "derivations.words",
        "derivations.shipping",
        "derivations.expectation",
        "derivations.parameters",
        "derivations.rules",
        "derivations.rules.rule",
        "derivations.rules.draws",
        "derivations.rules.algebra",
        "derivations.rules.moments",
        "derivations.rules.calculus",
        "derivations.rules.bounds",
        "derivations.rules.structured",
        "derivations.derivation",
        "derivations.library",
        "derivations.mutants",
        "derivations.verify",
        "derivations.kill",
        "derivations.anchors",
        "derivations.museum",
        "derivations.precision",
        "derivations.mend",
        "derivations.page",
    ],
    ["derivations.catalogue", *(f"derivations.catalogue.{name}" for name in CATALOGUE)],
    ["derivations", "derivations.render", "derivations.checking", "cli", "__main__"],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "kljax"}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kljax":
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                known = module.removeprefix("kljax.") in FLOOR
                found.add(module if known else node.module)
    return {name.removeprefix("kljax").removeprefix(".") for name in found}


MODULES = {_name(path): _imports(path) for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_has_a_floor():
    assert set(MODULES) == set(FLOOR)


def test_imports_run_down():
    for module, imports in MODULES.items():
        for used in imports:
            assert FLOOR[used] <= FLOOR[module], f"{module} imports {used}, a floor above"


def test_no_cycles():
    done: set[str] = set()
    while len(done) < len(MODULES):
        ready = {m for m, used in MODULES.items() if m not in done and used <= done}
        assert ready, f"a cycle among {sorted(set(MODULES) - done)}"
        done |= ready


def test_core_imports_jax_alone():
    code = (
        "import sys, jax; before = set(sys.modules); import kljax; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    names = set(ast.literal_eval(out.stdout))
    unwanted = {"flax", "optax", "chex", "scipy", "matplotlib", "sklearn", "tqdm", "pyarrow"}
    assert not names & unwanted
