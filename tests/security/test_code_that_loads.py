"""Nothing that is loaded can run code: no remote code, no pickles, no shells, no evaluated strings."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
import yaml

from clsgen_dist.parser import _as_written_loader

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [p for top in ("clsgen_dist", "kernels/clsgen_kernels") for p in sorted((ROOT / top).rglob("*.py"))]
TRUSTED = {"clsgen_dist/checkpoint/saver.py"}
"""Reads DeepSpeed's checkpoints, which are pickles of the run's own (SECURITY.md)."""
OWN_PROCESSES = {("clsgen_dist/curation/row_checks.py", "joblib")}
"""Passes a file to the processes that it has started, in a folder just made that only its user reads."""


@functools.cache
def nodes():
    """Every node of the package's syntax trees, with its file."""
    return [(str(p.relative_to(ROOT)), node) for p in SOURCES for node in ast.walk(ast.parse(p.read_text()))]


@functools.cache
def calls():
    """Every call: file, name with dots, the call."""
    return [(file, ast.unparse(node.func), node) for file, node in nodes() if isinstance(node, ast.Call)]


def keyword(call, name):
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def test_models_and_tokenizers_are_loaded_without_code_of_their_own():
    found = [(file, name, call) for file, name, call in calls() if re.fullmatch(r"Auto\w+\.from_\w+", name)]
    assert len(found) > 12
    wrong = [f"{file}: {name}" for file, name, call in found if keyword(call, "trust_remote_code") != "False"]
    assert wrong == []
    assert not [file for file, _, call in calls() if keyword(call, "trust_remote_code") not in (None, "False")]


def test_no_pickle_is_read_but_a_runs_own():
    loads = [(file, call) for file, name, call in calls() if name in ("torch.load", "load_state_dict")]
    assert {file for file, call in loads if keyword(call, "weights_only") != "True"} == TRUSTED
    arrays = [call for _, name, call in calls() if name == "np.load"]
    assert arrays and all(keyword(call, "allow_pickle") in (None, "False") for call in arrays)
    imported = {
        (file, name.split(".")[0])
        for file, node in nodes()
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    runs_code = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "xmlrpc"}
    assert {(file, name) for file, name in imported if name in runs_code} == OWN_PROCESSES


def test_nothing_is_evaluated_or_given_to_a_shell():
    names = {name for _, name, _ in calls()}
    assert not names & {"eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "yaml.unsafe_load"}
    assert not [file for file, _, call in calls() if keyword(call, "shell") not in (None, "False")]
    safe = [ast.unparse(call) for _, name, call in calls() if name == "yaml.load"]
    assert all("Loader=_as_written_loader()" in call for call in safe), "yaml.load runs constructors of its Loader"


def test_the_loader_of_settings_builds_no_objects():

    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.load("!!python/object/apply:os.system ['true']", Loader=_as_written_loader())
