"""Who may import whom, and what no module may do: read from the syntax trees of our packages, and tried on made-up sources."""

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("data_prep", "pretrain", "finetune", "cluster")
PACKAGES = ("mose", *STAGES)
PARALLEL = "pretrain.parallel."

# What a package may not import, at any depth of its code; the part before the first dot of the imported name decides.
FORBIDDEN = {
    "mose": {*STAGES, "deepspeed", "megatron", "webdataset"},
    "data_prep": {"pretrain", "finetune", "cluster", "torch", "webdataset", "transformers"},
    "pretrain": {"data_prep", "finetune", "cluster", "webdataset"},
    "finetune": {"data_prep", "pretrain", "cluster", "deepspeed", "megatron", "webdataset"},
    "cluster": {"data_prep", "pretrain", "finetune", "torch", "numpy", "deepspeed", "megatron"},
}
# What one module may import against the table, inside its functions: it runs in a process of its own on a compute node.
MAY_IMPORT = {"cluster.preflight.measure": {"torch"}}
CLUSTER_USES = {
    "mose.config",
    "mose.command",
    "mose.run_directory",
    "mose.errors",
    "mose.files.atomic_file",
    "mose.model.cost",
    "mose.model.model_config",
    "mose.files.json_file",
    "mose.files.lock",
    "mose.files.records",
    "mose.files.streams",
    "mose.files.yaml_file",
}

# What each package must not bring into memory when all of its modules are imported.
NEVER_LOADED = {
    "data_prep": ("torch", "webdataset", "transformers"),
    "finetune": ("deepspeed", "megatron"),
    "cluster": ("torch", "deepspeed", "megatron"),
}

# The model file is copied into every exported folder with its siblings, so these are all that it may need there.
MODEL_FILE = "mose.model.modeling_mose"
TASKS_FILE = "mose.model.tasks_mose"
MODEL_NEEDS = {"torch", "transformers", "flash_attn"}

MOST_ENTRIES = 12
# The order of the rooms: what stands in a folder may use only what stands left of it, late imports inside functions included;
# imports that only a type checker reads do not count.
ORDER = {
    "mose": "errors array_types seeding files command config schedule dataset tokenizer model run_directory checkpoint",
    "mose.files": "storage safe_path mapped_file atomic_file json_file records yaml_file npy_file parquet_errors lock "
    "stop_signal streams",
    "mose.dataset": "packed_sequence shard_format row_index packing_modes manifest pairs languages functions",
    "mose.model": "configuration_mose initialization projection_heads attention_mose rows_mose modeling_mose tasks_mose "
    "sharding size model_config exits cost",
    "mose.model.cost": "devices shape memory step",
    "mose.checkpoint": "safetensors_file fast_tokenizer retrieval_prompts sentence_folder exit_selection card_facts card_use "
    "model_card converted_checkpoint published_checkpoint",
    "data_prep": "console packing sources filters shards tokenization pipeline execution dedup tools synthconl cli",
    "data_prep.sources": "detection repositories file_kinds directory git_objects git_checkout installed_packages blobs stack_v2 "
    "registry ingest",
    "data_prep.sources.detection": "rules refresh language generated encoding secrets licences choice",
    "data_prep.sources.blobs": "pack store",
    "data_prep.sources.stack_v2": "parquet_file file_columns row_batches row_cache rows grouped",
    "data_prep.sources.ingest": "folder_lock blob_writer grouping fetching",
    "data_prep.sources.ingest.grouping": "columns config bucket_file sorting parts run command",
    "data_prep.sources.ingest.fetching": "config counts wanted remote fetcher command",
    "data_prep.filters": "dropped_log name_list blob_set opt_out config filters word_hashes ngram_table evaluation_texts "
    "evaluation_ngrams decontamination fingerprint",
    "data_prep.packing": "config rows dense faithful next_sentence pack",
    "data_prep.shards": "lineage rows summary",
    "data_prep.tokenization": "encoding chunking train_tokenizer",
    "data_prep.pipeline": "near_duplicates config assignment duplicates held_out shuffle_buffer chunker row_shuffle "
    "split_writer task_marker task estimate",
    "data_prep.pipeline.estimate": "sample cost estimate",
    "data_prep.execution": "task_files lease inputs markers source_states statistics finish progress task_runner "
    "worker_pool pack status",
    "data_prep.dedup": "minhash storage config inputs phase signatures candidates verification grouping cut runner command",
    "data_prep.dedup.storage": "documents segment_file text_store origins",
    "data_prep.dedup.minhash": "shingles signatures banding groups",
    "data_prep.tools": "inspect_row lineage card dropped_sample dropped ledger removal verify_lineage verify stats",
    "data_prep.tools.removal": "removal_list journal rewrite command",
    "data_prep.tools.stats": "charts drawing counts held_out_copies sections page command",
    "data_prep.synthconl": "mining translation release",
    "data_prep.synthconl.mining": "documentation functions rules pairs seed_file code_search_net seeds",
    "data_prep.synthconl.translation": "prompt config answer journal counts server translator command",
    "data_prep.synthconl.release": "config rows duplicates statistics card command",
    "pretrain": "data config storage parallel model step checkpoints monitoring analysis train mock_step cli",
    "pretrain.data": "rows row_cost order mixture masking balancing micro_batch loader prefetch",
    "pretrain.config": "objective deepspeed_options run identity frozen",
    "pretrain.storage": "local_rows node_labels joined_rows range_rows window_file staged_rows run_data",
    "pretrain.parallel": "stage topology zero partition tensor sequence context machine watchdog weights_only engine launch",
    "pretrain.model": "terms loss activation_checkpointing compilation dropout padded_decoder training_model warm_start",
    "pretrain.model.terms": "vocabulary term masked_tokens row_task distillation registry",
    "pretrain.checkpoints": "run_state files probe signature merged_weights store beginning model_card parity export "
    "export_command",
    "pretrain.monitoring": "garbage stacks metrics step_times throughput profiler step_log learning",
    "finetune": "config device distributed run_log checkpoints pair_files batches retrieval embedding classification "
    "evaluation cli",
    "finetune.embedding": "config fingerprint encoder processes inputs vector_files embed exit_costs choose_exit search",
    "finetune.classification": "examples rows scores evaluate log trainer train",
    "finetune.retrieval": "augmentation prompts examples loss collapse forward gradient_cache optimization log trainer "
    "validation train",
    "finetune.evaluation": "metrics ranking embedding baselines results paired table tasks systems benchmark cards report",
    "finetune.evaluation.cards": "results command",
    "finetune.evaluation.report": "page held_out charts picture table data_part training_part score_part command",
    "finetune.evaluation.systems": "system store embedding mose_model sentence_model server mteb_exit lexical classifier",
    "finetune.evaluation.benchmark": "config models statistics result run table figures command",
    "finetune.evaluation.baselines": "lexical bag pairs",
    "finetune.embedding.search": "functions store index page command",
    "finetune.evaluation.tasks": "task docstring_search parts codesearchnet code_translation poj104 bigclonebench judged_search "
    "registry command",
    "finetune.evaluation.tasks.parts": "problem judges readers",
    "cluster": "slurm jobs launch preflight supervise status plan doctor cli",
    "cluster.jobs": "config profile stages words script",
    "cluster.launch": "freeze submit pipeline",
    "cluster.status": "read show",
    "cluster.plan": "failures layouts show",
    "cluster.preflight": "records judge show measure run command before_start",
    "cluster.supervise": "history decide progress stacks supervisor",
    "pretrain.analysis": "count_baselines estimate validation held_out exit_gradients plot learning_report diagnose step_rows "
    "compare list_checkpoints doctor",
}

Modules = dict[str, ast.Module]


def read_modules() -> Modules:
    """Every module of our packages, by its dotted name."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {dotted_name(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8"), str(path)) for path in paths}


def dotted_name(path: Path) -> str:
    """`mose/model/size.py` -> `mose.model.size`; an `__init__.py` keeps its name, to distinguish it from a module."""
    return ".".join(path.with_suffix("").parts)


def top(name: str) -> str:
    """The package that a dotted name begins with."""
    return name.partition(".")[0]


def imported_names(module: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Absolute dotted names that one statement imports; `from a import b` gives `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    folder = module.split(".")[: -node.level] if node.level else []
    base = [*folder, *([node.module] if node.module else [])]
    return [".".join([*base, alias.name]) for alias in node.names]


def all_imports(module: str, tree: ast.Module) -> list[str]:
    """Names imported anywhere in a module, inside functions too."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return [name for node in nodes for name in imported_names(module, node)]


def nodes_at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Nodes that run when a module is imported: not the bodies of functions, not what only a type checker reads."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from nodes_at_import(statement.orelse)
            continue
        yield statement
        for _, value in ast.iter_fields(statement):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt | ast.ExceptHandler):
                yield from nodes_at_import([node for part in value for node in getattr(part, "body", [part])])


def wrong_direction(modules: Modules) -> list[str]:
    """Imports against the table."""
    return [
        f"{module} imports {name}"
        for module, tree in modules.items()
        for name in all_imports(module, tree)
        if is_wrong(module, name)
    ]


def is_wrong(module: str, name: str) -> bool:
    """Whether the table forbids `module` to import `name`."""
    package = top(module)
    if top(name) in FORBIDDEN[package] - MAY_IMPORT.get(module, set()):
        return True
    return (
        package == "cluster" and name.startswith("mose.") and not any(f"{name}.".startswith(f"{used}.") for used in CLUSTER_USES)
    )


def importers(modules: Modules, library: str) -> list[str]:
    """Modules that import `library`, anywhere in their code."""
    return [m for m, tree in modules.items() if any(top(name) == library for name in all_imports(m, tree))]


def engine_homes(modules: Modules) -> list[str]:
    """What is wrong with where DeepSpeed and megatron-core come in: one file of `pretrain/parallel/` each."""
    homes = {library: importers(modules, library) for library in ("deepspeed", "megatron")}
    found = [
        f"{library} is imported in {names}, expected one module of {PARALLEL}"
        for library, names in homes.items()
        if len(names) != 1 or not names[0].startswith(PARALLEL)
    ]
    return found or (["deepspeed and megatron share one module"] if homes["deepspeed"] == homes["megatron"] else [])


def import_graph(modules: Modules) -> dict[str, set[str]]:
    """Which of our modules each one imports when it is itself imported."""
    graph: dict[str, set[str]] = {}
    for module, tree in modules.items():
        nodes = (node for node in nodes_at_import(tree.body) if isinstance(node, ast.Import | ast.ImportFrom))
        names = {name for node in nodes for name in imported_names(module, node)}
        graph[module] = {part for name in names for part in (name, name.rpartition(".")[0]) if part in modules}
    return graph


def read_at_run_time(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes of a module but those that only a type checker reads."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def runtime_imports(modules: Modules) -> set[tuple[str, str]]:
    """(importing module, imported module) pairs among our own modules, late imports included."""
    pairs = set()
    for module, tree in modules.items():
        nodes = (node for node in read_at_run_time(tree) if isinstance(node, ast.Import | ast.ImportFrom))
        names = {name for node in nodes for name in imported_names(module, node)}
        pairs |= {(module, part) for name in names for part in (name, name.rpartition(".")[0]) if part in modules}
    return pairs


def backward_imports(modules: Modules, order: dict[str, str]) -> list[str]:
    """Imports from right to left in a folder's order, and entries of a folder that its order does not name."""
    found, pairs = [], sorted(runtime_imports(modules))
    for folder, names in order.items():
        place = {name: number for number, name in enumerate(names.split())}
        entries = {module.removeprefix(f"{folder}.").partition(".")[0] for module in modules if module.startswith(f"{folder}.")}
        found += [f"{folder}: {entry} stands in no order" for entry in sorted(entries - set(place) - {"__init__"})]
        found += [f"{folder}: the order names {entry}, which is not there" for entry in sorted(set(place) - entries)]
        for user, used in pairs:
            if user.startswith(f"{folder}.") and used.startswith(f"{folder}."):
                a, b = (module.removeprefix(f"{folder}.").partition(".")[0] for module in (user, used))
                found += [f"{user} imports {used}"] if place.get(a, 0) < place.get(b, 0) else []
    return found


def crowded(modules: Modules) -> list[str]:
    """Folders with more entries beside `__init__.py` than a person takes in at once."""
    entries: dict[str, set[str]] = {}
    for module in modules:
        folder, _, name = module.rpartition(".")
        while folder:
            entries.setdefault(folder, set()).add(name)
            folder, _, name = folder.rpartition(".")
    counts = {folder: len(names - {"__init__"}) for folder, names in entries.items()}
    return [f"{folder} has {count} entries" for folder, count in sorted(counts.items()) if count > MOST_ENTRIES]


def unordered(modules: Modules, order: dict[str, str]) -> list[str]:
    """Folders of the ordered packages that have no order."""
    folders = {module.rpartition(".")[0] for module in modules if top(module) in {top(folder) for folder in order}}
    return sorted(folders - set(order))


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Each module that can reach itself; modules that no cycle runs through are peeled off first."""
    left = {module: set(targets) for module, targets in graph.items()}
    while True:
        pointed_at = {target for targets in left.values() for target in targets}
        loose = {module for module, targets in left.items() if not targets or module not in pointed_at}
        if not loose:
            return [f"import cycle through {module}" for module in sorted(left)]
        left = {module: targets - loose for module, targets in left.items() if module not in loose}


def habits(module: str, tree: ast.Module) -> Iterator[str]:
    """What one module does that none may."""
    if not ast.get_docstring(tree):
        yield "does not open with a docstring"
    if module.endswith(".__init__") and len(tree.body) > 1:
        yield "holds more than its docstring"
    if module.rpartition(".")[2] == "utils":
        yield "is called utils"
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield "has a global statement"
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield "has a star import"
        elif isinstance(node, ast.ImportFrom) and node.level and not module.startswith("mose.model."):
            yield "has a relative import"
        elif edits_search_path(node):
            yield "edits sys.path"
    for statement in tree.body:
        if runs_at_import(statement):
            yield f"does work when it is imported (line {statement.lineno})"


def edits_search_path(node: ast.AST) -> bool:
    """Whether a node changes where Python looks for modules."""
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).startswith(("sys.path.", "site.addsitedir"))
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    return any(ast.unparse(target).startswith("sys.path") and "hooks" not in ast.unparse(target) for target in targets)


def runs_at_import(statement: ast.stmt) -> bool:
    """A call, loop or block at module level; imports whose warnings are silenced are no work."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    if isinstance(statement, ast.With):
        return not all(
            isinstance(n, ast.Import | ast.ImportFrom) or ast.unparse(n).startswith("warnings.") for n in statement.body
        )
    return isinstance(statement, ast.For | ast.While)


def shipped_with_model(modules: Modules) -> set[str]:
    """The model file and the siblings it reaches by relative imports: what an exported folder carries."""
    shipped, waiting = set[str](), {MODEL_FILE, TASKS_FILE} & set(modules)
    while waiting:
        module = waiting.pop()
        shipped.add(module)
        nodes = (node for node in ast.walk(modules[module]) if isinstance(node, ast.ImportFrom) and node.level)
        names = {name for node in nodes for name in imported_names(module, node)}
        waiting |= {part for name in names for part in (name, name.rpartition(".")[0]) if part in modules} - shipped
    return shipped


def foreign_to_model(modules: Modules) -> list[str]:
    """Imports of the shipped model files that a process without our packages could not satisfy."""
    allowed = MODEL_NEEDS | sys.stdlib_module_names
    shipped = shipped_with_model(modules)
    statements = (
        (module, node)
        for module in sorted(shipped)
        for node in ast.walk(modules[module])
        if isinstance(node, ast.Import | ast.ImportFrom)
    )
    found = []
    for module, node in statements:
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > 1:
                found.append(f"{module} imports from outside its folder")
            continue
        found += [f"{module} imports {name}" for name in imported_names(module, node) if top(name) not in allowed]
    return found


@pytest.fixture(scope="module")
def modules() -> Modules:
    return read_modules()


def test_imports_follow_the_table(modules: Modules) -> None:
    assert wrong_direction(modules) == []


def test_each_engine_has_one_home(modules: Modules) -> None:
    assert engine_homes(modules) == []


def test_no_import_cycles(modules: Modules) -> None:
    assert cycles(import_graph(modules)) == []


def test_no_late_import_closes_a_cycle(modules: Modules) -> None:
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for user, used in runtime_imports(modules):
        graph[user].add(used)
    assert cycles(graph) == []


def test_rooms_are_used_in_one_order(modules: Modules) -> None:
    assert backward_imports(modules, ORDER) == []


def test_every_room_has_an_order(modules: Modules) -> None:
    assert unordered(modules, ORDER) == []


def test_no_room_is_crowded(modules: Modules) -> None:
    assert crowded(modules) == []


def test_no_module_has_a_bad_habit(modules: Modules) -> None:
    assert [f"{module} {habit}" for module, tree in modules.items() for habit in habits(module, tree)] == []


def test_model_files_stand_alone(modules: Modules) -> None:
    assert MODEL_FILE in modules
    assert foreign_to_model(modules) == []


def test_every_folder_is_a_package(modules: Modules) -> None:
    """A folder without `__init__.py` would not be installed."""
    folders = {module.rpartition(".")[0] for module in modules}
    assert {folder for folder in folders if f"{folder}.__init__" not in modules} == set()


@pytest.mark.parametrize("package", sorted(NEVER_LOADED))
def test_package_does_not_load(package: str, modules: Modules) -> None:
    names = [name.removesuffix(".__init__") for name in modules if top(name) == package]
    lines = [
        "import importlib, json, sys",
        f"for name in {names!r}: importlib.import_module(name)",
        "print(json.dumps(list(sys.modules)))",
    ]
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    loaded = {name.strip(' "[]').split(".")[0] for name in result.stdout.splitlines()[-1].split(",")}
    assert loaded >= {package}
    assert loaded & set(NEVER_LOADED[package]) == set()


def made_up(**sources: str) -> Modules:
    """Modules from sources; a double underscore in a name stands for a dot."""
    return {name.replace("__", "."): ast.parse('"""One sentence."""\n' + textwrap.dedent(text)) for name, text in sources.items()}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mose__tokenizer", "import pretrain.step"),
        ("pretrain__step", "from finetune.retrieval import loss"),
        ("data_prep__task", "def run():\n    import torch.nn as nn\n    return nn"),
        ("finetune__train", "from megatron.core import tensor_parallel"),
        ("cluster__jobs__script", "from mose.tokenizer import load_tokenizer"),
    ],
)
def test_a_wrong_direction_is_seen(module: str, source: str) -> None:
    assert len(wrong_direction(made_up(**{module: source}))) == 1


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("data_prep.packing.dense", "from data_prep.pipeline.config import PackConfig"),
        ("data_prep.filters.dropped_log", "from data_prep.tools import dropped"),
        ("pretrain.parallel.context", "def f():\n    from pretrain.parallel.engine import join_process_group"),
        ("pretrain.data.loader", "from pretrain.config.run import PretrainConfig"),
        ("pretrain.step", "def f():\n    import pretrain.train"),
    ],
)
def test_a_sabotaged_import_is_seen(module: str, statement: str, modules: Modules) -> None:
    """An import against the order, planted in the project's own modules."""
    planted = ast.parse(ast.unparse(modules[module]) + "\n" + statement)
    found = backward_imports({**modules, module: planted}, ORDER)
    assert len(found) == 1 and found[0].startswith(f"{module} imports ")


def test_an_entry_out_of_order_and_a_crowded_room_are_seen(modules: Modules) -> None:
    tree = ast.parse('"""One sentence."""')
    assert backward_imports({**modules, "pretrain.model.extra": tree}, ORDER) == ["pretrain.model: extra stands in no order"]
    assert crowded({f"mose.part_{number}": tree for number in range(MOST_ENTRIES + 1)}) == ["mose has 13 entries"]
    assert unordered({**modules, "pretrain.more.__init__": tree}, ORDER) == ["pretrain.more"]
    typing = ast.parse("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pretrain.train import train")
    assert backward_imports({**modules, "pretrain.step": typing}, ORDER) == []


def test_allowed_directions_pass() -> None:
    tree = made_up(pretrain__step="from mose.model import size\nimport torch", cluster__cli="from mose.errors import MoseError")
    assert wrong_direction(tree) == []


def test_a_second_home_of_an_engine_is_seen() -> None:
    tidy = {
        "pretrain__parallel__engine": "import deepspeed",
        "pretrain__parallel__tensor": "from megatron.core import parallel_state",
    }
    assert engine_homes(made_up(**tidy)) == []
    assert len(engine_homes(made_up(**tidy, pretrain__train="def f():\n    import deepspeed"))) == 1
    assert len(engine_homes(made_up(pretrain__parallel__engine="import deepspeed\nimport megatron.core"))) == 1
    assert len(engine_homes(made_up(pretrain__parallel__engine="import deepspeed"))) == 1


def test_a_cycle_is_seen_and_a_late_or_typing_import_is_none() -> None:
    one = "from mose.b import thing"
    assert (
        len(cycles(import_graph(made_up(mose__a=one, mose__b="import mose.c", mose__c="from mose import a", mose__d=one)))) == 3
    )
    assert cycles(import_graph(made_up(mose__a=one, mose__b="def f():\n    import mose.a"))) == []
    typing = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mose.a"
    assert cycles(import_graph(made_up(mose__a=one, mose__b=typing))) == []
    guarded = "try:\n    import mose.a\nexcept ImportError:\n    a = None"
    assert len(cycles(import_graph(made_up(mose__a=one, mose__b=guarded)))) == 2
    assert len(cycles(import_graph(made_up(mose__model__a="from .b import x", mose__model__b="from . import a")))) == 2


@pytest.mark.parametrize(
    ("module", "source", "habit"),
    [
        ("mose.seeding", "x = 1", "does not open with a docstring"),
        ("mose.__init__", '"""One sentence."""\nx = 1', "holds more than its docstring"),
        ("mose.utils", '"""One sentence."""', "is called utils"),
        ("mose.seeding", '"""One."""\ndef f():\n    global x\n    x = 1', "has a global statement"),
        ("mose.seeding", '"""One."""\nfrom os import *', "has a star import"),
        ("mose.seeding", '"""One."""\nfrom .errors import MoseError', "has a relative import"),
        ("mose.seeding", '"""One."""\nimport sys\ndef f():\n    sys.path.insert(0, "x")', "edits sys.path"),
        ("mose.seeding", '"""One."""\nimport sys\nsys.path += ["x"]', "edits sys.path"),
        ("mose.seeding", '"""One."""\nprint("hello")', "does work when it is imported (line 2)"),
        ("mose.seeding", '"""One."""\nwith open("x") as file:\n    x = file.read()', "does work when it is imported (line 2)"),
    ],
)
def test_a_bad_habit_is_seen(module: str, source: str, habit: str) -> None:
    assert list(habits(module, ast.parse(source))) == [habit]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mose.model.modeling_mose", "from .attention_mose import attend"),
        (
            "pretrain.parallel.tensor",
            'with warnings.catch_warnings():\n    warnings.simplefilter("ignore")\n    import megatron.core',
        ),
    ],
)
def test_a_good_habit_passes(module: str, source: str) -> None:
    assert list(habits(module, ast.parse('"""One."""\n' + source))) == []


def test_an_import_that_the_exported_model_cannot_make_is_seen() -> None:
    sibling = {"mose__model__modeling_mose": "import math\nimport torch\nfrom .attention_mose import attend"}
    assert foreign_to_model(made_up(**sibling, mose__model__attention_mose="import torch")) == []
    assert len(foreign_to_model(made_up(**sibling, mose__model__attention_mose="from mose.errors import MoseError"))) == 1
    assert foreign_to_model(made_up(**sibling, mose__model__attention_mose="x = 1", mose__model__size="import mose.errors")) == []
