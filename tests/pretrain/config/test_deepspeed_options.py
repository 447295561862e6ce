"""Raw DeepSpeed options: what passes, what is refused by name, what DeepSpeed is given, and what a resumed run may change."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from mose.config import load_config, save_config
from mose.errors import MoseError
from pretrain.config.deepspeed_options import DECIDED_BY, KNOWN, WITHOUT_EFFECT_ON_NUMBERS, ZERO_OPTIONS, merged
from pretrain.config.identity import changes_between, config_values
from pretrain.config.run import Layout, PretrainConfig
from pretrain.parallel.zero import deepspeed_config

OVERLAP = {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 1000}, "dump_state": False}
ZERO_REFUSED = (
    "offload_optimizer offload_param zenflow compute_grad_norm elastic_checkpoint load_from_fp32_weights round_robin_gradients "
    "parameter_alignment zero_hpz_partition_size zero_quantized_weights zero_quantized_gradients ignore_unused_parameters"
)
# Options that DeepSpeed knows and that would train something else than the config describes.
REFUSED = (
    *[
        "gradient_accumulation_steps",
        "managed_gradient_accumulation",
        "data_types",
        "gradient_allreduce_op",
        "prescale_gradients",
        "gradient_predivide_factor",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "checkpoint",
        "expert_parallel",
        "pipeline",
        "elasticity",
        "data_efficiency",
        "curriculum_learning",
        "dataloader_drop_last",
        "sparse_gradients",
        "sparse_attention",
        "compression_training",
        "weight_quantization",
        "progressive_layer_drop",
        "hybrid_engine",
        "autotuning",
        "tensorboard",
        "wandb",
        "csv_monitor",
        "comet",
    ],
    *(f"zero_optimization.{name}" for name in ZERO_REFUSED.split()),
)


@pytest.mark.parametrize("name", sorted((*DECIDED_BY, *REFUSED)))
def test_contradicting_option_is_refused_by_its_dotted_name(name: str) -> None:
    options: dict[str, Any] = {}
    *outer, last = name.split(".")
    inner = options.setdefault(outer[0], {}) if outer else options
    inner[last] = 1
    with pytest.raises(MoseError) as raised:
        PretrainConfig(deepspeed=options)
    if name in DECIDED_BY:
        assert str(raised.value) == f"deepspeed.{name}: cannot be given here, because the config decides it: {DECIDED_BY[name]}"
    else:
        assert str(raised.value).startswith(f"deepspeed.{name}: no option that can be passed through, expected one of: ")
        assert str(raised.value).endswith(
            "(only options that change no number, or the order of sums at most, are passed through)"
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"zero_optimisation": {}},
            "deepspeed.zero_optimisation: no option that can be passed through, expected one of: zero_opt",
        ),
        ({"zero_optimization": {"overlap_com": True}}, "deepspeed.zero_optimization.overlap_com: no option"),
        ({"zero_optimization": {"overlap_comm": 1}}, "deepspeed.zero_optimization.overlap_comm: 1, expected true or false"),
        ({"zero_optimization": {"reduce_bucket_size": 1.5}}, "reduce_bucket_size: 1.5, expected a whole number"),
        ({"zero_optimization": 2}, "deepspeed.zero_optimization: 2, expected a mapping"),
        ({"steps_per_print": True}, "deepspeed.steps_per_print: True, expected a whole number"),
    ],
)
def test_unknown_name_or_wrong_type_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MoseError) as raised:
        PretrainConfig(deepspeed=options)
    assert message in str(raised.value)


def test_options_lie_on_top_of_ours_and_leave_the_rest() -> None:
    layout = Layout(8, 1, 8, 1)
    ours, both = (deepspeed_config(PretrainConfig(deepspeed=options), layout) for options in ({}, OVERLAP))
    assert both["zero_optimization"] == {**ours["zero_optimization"], "overlap_comm": True, "reduce_bucket_size": 1000}
    assert {name: both[name] for name in ours if name != "zero_optimization"} == {
        name: value for name, value in ours.items() if name != "zero_optimization"
    }
    assert both["dump_state"] is False
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": {"e": 4}}) == {"a": {"b": 3, "c": 2}, "d": {"e": 4}}


def test_names_are_those_that_deepspeed_reads() -> None:
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    known = "\n".join(
        path.read_text("utf-8") for path in folder.rglob("*.py") if "config" in path.name or "constants" in path.name
    )
    assert [name for name in KNOWN if "." not in name and f'"{name}"' not in known] == []
    zero = (folder / "runtime" / "zero" / "config.py").read_text("utf-8")
    assert [name for name in ZERO_OPTIONS if f"\n    {name}:" not in zero and f'alias="{name}"' not in zero] == []


def test_written_config_and_dotted_options_give_the_block_again(tmp_path: Path) -> None:
    config = load_config(PretrainConfig, None, {"deepspeed.zero_optimization.overlap_comm": True})
    assert config.deepspeed == {"zero_optimization": {"overlap_comm": True}}
    save_config(config, tmp_path / "config.yaml")
    assert load_config(PretrainConfig, tmp_path / "config.yaml") == config


def test_resumed_run_may_change_buckets_as_its_layout_and_logging_freely() -> None:
    saved, now = (config_values(PretrainConfig(deepspeed=options), "data", 8) for options in ({}, OVERLAP))
    changes = changes_between(saved, now)
    assert [change.field for change in changes] == [
        f"deepspeed.zero_optimization.{n}" for n in ("overlap_comm", "reduce_bucket_size")
    ]
    assert all(change.is_layout for change in changes)
    assert not any(name in field for field in now for name in WITHOUT_EFFECT_ON_NUMBERS)
