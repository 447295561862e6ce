"""Lists every place of the source tree that could make code or objects out of data, each with the reason why it cannot.

A new call of `torch.load`, `yaml.load`, `eval` and their kind fails here until it is written down with its reason.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mose", "data_prep", "pretrain", "finetune", "cluster", "benchmarks")

# Calls by their last names, whatever the object before the dot.
CALLS = {
    "load_checkpoint",
    "load_state_dict_from_url",
    "from_pretrained",
    "literal_eval",
    "safe_globals",
    "add_safe_globals",
    "all_gather_object",
    "broadcast_object_list",
    "import_module",
    "fromfile",
    "memmap",
    "ds_to_universal.main",
    "unsafe_load",
    "full_load",
    "Unpickler",
}
# Calls that only count with this object before the dot, because other objects have methods of the same name.
QUALIFIED = {"torch": {"load"}, "np": {"load"}, "numpy": {"load"}, "yaml": {"load", "load_all"}, "hub": {"load"}}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# `pickle` is imported by two modules, for the name of its error alone.
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "pandas", "runpy", "imp"}
KEYWORDS = {"trust_remote_code", "allow_pickle", "pickle_module"}

CHECKPOINT = "weights-only is forced around it, but for states that this user signed or --trust-checkpoint names"
WEIGHTS_ONLY = "weights_only=True, with stand-ins for three classes of DeepSpeed"
PLAIN = "allow_pickle=False: arrays of plain values only"
BETWEEN_RANKS = "values between ranks of one job, never from a file"
OUR_ENCODER = "our own class, which reads safetensors and runs no code of the folder"
ALLOWED = {
    ("mose/files/npy_file.py", "np.load"): PLAIN,
    ("mose/files/npy_file.py", "allow_pickle=False"): PLAIN,
    ("mose/files/yaml_file.py", "yaml.load"): "with the safe loader, which makes plain values",
    ("mose/dataset/row_index.py", "allow_pickle=False"): "writes an array",
    ("mose/model/attention_mose.py", "import_module"): "a constant name: the flash_attn package, if it is installed",
    ("data_prep/packing/pack.py", "import_module"): "a member of the enumeration of packing modes names it, never a file",
    ("data_prep/sources/blobs/pack.py", "allow_pickle=False"): "writes an array",
    ("data_prep/filters/blob_set.py", "allow_pickle=False"): "writes an array",
    ("data_prep/cli.py", "import_module"): "constant names: the module of a command, imported when it is asked for",
    ("data_prep/dedup/grouping.py", "allow_pickle=False"): "writes an array",
    ("data_prep/pipeline/near_duplicates.py", "allow_pickle=False"): "writes an array",
    ("data_prep/dedup/storage/segment_file.py", "memmap"): "numbers, read as numbers whatever the file holds",
    ("data_prep/dedup/storage/text_store.py", "memmap"): "bytes of texts, read as bytes whatever the file holds",
    ("data_prep/pipeline/duplicates.py", "allow_pickle=False"): "writes an array",
    ("data_prep/sources/detection/secrets.py", "import_module"): "constant names: the detectors of detect-secrets",
    ("benchmarks/choose_exit.py", "from_pretrained"): OUR_ENCODER,
    ("benchmarks/deduplication.py", "import_module"): "a constant name",
    ("benchmarks/selection.py", "import_module"): "constant names: the command line of each package",
    ("mose/dataset/functions.py", "import_module"): "a constant table of languages names the package of each grammar",
    ("data_prep/synthconl/mining/documentation.py", "literal_eval"): "a docstring's value: literals only, no names and no calls",
    ("finetune/embedding/choose_exit.py", "from_pretrained"): OUR_ENCODER,
    ("finetune/embedding/processes.py", "from_pretrained"): OUR_ENCODER,
    ("finetune/embedding/search/index.py", "from_pretrained"): OUR_ENCODER,
    ("finetune/evaluation/benchmark/run.py", "np.load"): PLAIN,
    ("finetune/evaluation/benchmark/run.py", "allow_pickle=False"): PLAIN,
    (
        "finetune/evaluation/systems/sentence_model.py",
        "trust_remote_code=remote_code",
    ): "off unless the config asks",
    ("benchmarks/embedding.py", "from_pretrained"): OUR_ENCODER,
    ("benchmarks/embedding.py", "trust_remote_code=True"): "a folder that the benchmark wrote itself",
    ("benchmarks/search.py", "from_pretrained"): OUR_ENCODER,
    ("pretrain/storage/node_labels.py", "memmap"): "numbers, in a folder that only this user can write",
    ("pretrain/analysis/doctor.py", "import_module"): "constant names: what a GPU run needs, if it is installed",
    ("finetune/distributed.py", "broadcast_object_list"): BETWEEN_RANKS,
    ("benchmarks/gpu_parts/correctness.py", "import_module"): "a constant name",
    ("benchmarks/gpu_parts/parts.py", "import_module"): "a part of this folder, by its place in a constant list",
    ("benchmarks/retrieval_step.py", "trust_remote_code=True"): "a folder that the benchmark wrote itself",
    ("pretrain/checkpoints/merged_weights.py", "import pickle"): "for the name of its error",
    ("pretrain/checkpoints/merged_weights.py", "torch.load"): WEIGHTS_ONLY,
    ("pretrain/checkpoints/merged_weights.py", "safe_globals"): WEIGHTS_ONLY,
    ("pretrain/checkpoints/store.py", "all_gather_object"): BETWEEN_RANKS,
    ("pretrain/parallel/context.py", "all_gather_object"): BETWEEN_RANKS,
    ("pretrain/parallel/engine.py", "import pickle"): "for the name of its error",
    ("pretrain/parallel/engine.py", "load_checkpoint"): CHECKPOINT,
    ("pretrain/parallel/engine.py", "ds_to_universal.main"): CHECKPOINT,
    ("pretrain/parallel/weights_only.py", "import pickle"): "for the name of its error",
    ("pretrain/parallel/weights_only.py", "safe_globals"): "three classes of DeepSpeed, none of which runs code of the file",
}


def called(node: ast.expr) -> tuple[str, str]:
    """The name of the object before the dot, and the name of what is called."""
    if isinstance(node, ast.Attribute):
        owner = node.value
        return (owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""), node.attr
    return "", node.id if isinstance(node, ast.Name) else ""


def loaders(tree: ast.AST) -> Iterator[str]:
    """What in a syntax tree could make code or objects out of data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"import {node.module}"
        elif isinstance(node, ast.Call):
            owner, name = called(node.func)
            whole = f"{owner}.{name}" if owner else name
            if whole in CALLS:
                yield whole
            elif name in CALLS:
                yield name
            elif name in QUALIFIED.get(owner, ()) or (isinstance(node.func, ast.Name) and name in BUILTINS):
                yield whole
            for keyword in node.keywords:
                if keyword.arg in KEYWORDS:
                    yield f"{keyword.arg}={ast.unparse(keyword.value)}"


def found() -> dict[tuple[str, str], list[Path]]:
    """Every loader of our packages, by file and name."""
    places: dict[tuple[str, str], list[Path]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in loaders(ast.parse(path.read_text("utf-8"))):
                places.setdefault((path.relative_to(ROOT).as_posix(), name), []).append(path)
    return places


def test_every_loader_is_listed_with_its_reason() -> None:
    assert sorted(found().keys() - ALLOWED.keys()) == []


def test_the_list_names_nothing_that_is_gone() -> None:
    assert sorted(ALLOWED.keys() - found().keys()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path, mmap_mode='r')",
        "yaml.load(text)",
        "read(path, allow_pickle=True)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "eval(text)",
        "def f():\n    exec(compile(text, 'x', 'exec'))",
        "engine.load_checkpoint(folder)",
        "dist.all_gather_object(values, value)",
        "importlib.import_module(name)",
    ],
)
def test_each_kind_is_found(source: str) -> None:
    assert list(loaders(ast.parse(source)))


@pytest.mark.parametrize(
    "source", ["model.eval()", "json.loads(text)", "yaml.safe_load(text)", "re.compile('x')", "torch.compile(f)"]
)
def test_harmless_calls_are_not(source: str) -> None:
    assert not list(loaders(ast.parse(source)))
