"""Covers the ablated models: they learn, their operations are counted exactly, and their folders open again in both layouts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mose.checkpoint.converted_checkpoint import load_pretrained, read_model_config, write_checkpoint
from mose.checkpoint.published_checkpoint import import_published
from mose.model import attention_mose
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import initialize
from mose.model.modeling_mose import ModularStarEncoder
from mose.model.sharding import matching_rows
from mose.model.size import encoder_parameters, head_parameters
from mose.tokenizer import Tokenizer
from pretrain.checkpoints.export import ExportRequest, export_run
from pretrain.config.objective import ObjectiveConfig
from pretrain.config.run import BatchConfig, PretrainConfig
from pretrain.model.terms.term import Denominators
from pretrain.model.terms.vocabulary import whole_vocabulary
from pretrain.model.training_model import TrainingModel
from pretrain.monitoring.throughput import step_flops
from pretrain.step import BatchCounts, exit_metrics
from tests.pretrain.cells import loader_of, tiny_config

RAW_SINGLE: dict[str, Any] = {"num_layers": 2, "exit_layers": (2,), "norm_after_last_layer": False}
# Changes of the tiny model's shape and of its objective.
ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "single_exit": (RAW_SINGLE, {}),
    "deepest_exit": ({"exit_layers": (4,)}, {}),
    "no_layer_index": ({"layer_index_width": 0}, {}),
    "nsp": ({}, {"sequence_task": "nsp"}),
    "mlm_only": ({}, {"sequence_task": "none"}),
    "uniform_weights": ({}, {"exit_weights": "uniform"}),
    "distillation": ({}, {"distillation_weight": 1.0, "distillation_temperature": 2.0}),
}


def config_of(dataset: Path, name: str) -> PretrainConfig:
    shape, objective = ABLATIONS[name]
    config = tiny_config(dataset)
    model = dataclasses.replace(config.model, **shape)
    return dataclasses.replace(config, model=model, objective=ObjectiveConfig(**objective), batch=BatchConfig(8, 8))


def model_of(config: PretrainConfig) -> TrainingModel:
    shape = ModularStarEncoderConfig(**config.model.hugging_face(), sequence_task=config.objective.sequence_task)
    encoder = ModularStarEncoder(shape)
    initialize(encoder, config.model.initializer_range, config.seed)
    return TrainingModel(encoder, whole_vocabulary(config.model.vocabulary_size), config.objective)


@pytest.mark.parametrize("name", ABLATIONS)
def test_it_learns_and_its_operations_are_counted(
    name: str, dataset: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_mose, "PADDED_BELOW", 0)  # else the counter sees the padding of short rows, too
    config = config_of(dataset, name)
    model, shape = model_of(config), ModularStarEncoderConfig(**config.model.hugging_face())
    (batch,) = loader_of(config, 0, 1).share(0)
    counts = Denominators(batch.num_masked, batch.num_rows)
    squared = int(torch.diff(batch.cu_seqlens.long()).square().sum())
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):
        model(batch, counts)
    size = BatchCounts(batch.num_tokens, batch.num_tokens + batch.padded_slots, squared)
    assert step_flops(shape, counts, size) == 3 * forward.get_total_flops()
    parameters = encoder_parameters(shape, config.model.num_layers) + head_parameters(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert all(len(matching_rows(parameter)) == 1 for parameter, _ in model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        share, sums = model(batch, counts)
        optimizer.zero_grad()
        share.backward()
        optimizer.step()
        losses.append(share.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < 0.9 * losses[0]
    scalars = exit_metrics(sums, counts, config.model.exit_layers, config.objective)
    rows_term = {value.split("/")[2] for value in scalars} - {"mlm", "distillation"}
    assert rows_term == {config.objective.sequence_task} - {"none"}
    taught = {value for value in scalars if value.endswith("distillation")}
    assert taught == ({"loss/exit_01/distillation", "loss/exit_02/distillation"} if name == "distillation" else set())


def test_without_a_task_the_task_head_has_no_gradient(dataset: Path) -> None:
    config = config_of(dataset, "mlm_only")
    model = model_of(config)
    (batch,) = loader_of(config, 0, 1).share(0)
    share, sums = model(batch, Denominators(batch.num_masked, batch.num_rows))
    share.backward()
    head = [*model.pooler.parameters(), *model.cls.seq_relationship.parameters()]
    assert not any(parameter.grad.any() for parameter in head)
    assert share.item() == pytest.approx(
        sum(weight * row / batch.num_masked for weight, row in zip((0.25, 0.5, 1.0), sums[:, 0].tolist(), strict=True)), rel=1e-5
    )


@pytest.mark.parametrize("name", ["single_exit", "no_layer_index", "nsp"])
@pytest.mark.parametrize("layout", ["ours", "published"])
def test_its_folder_opens_again(name: str, layout: str, dataset: Path, tmp_path: Path) -> None:
    config = config_of(dataset, name)
    shape = ModularStarEncoderConfig(**config.model.hugging_face(), sequence_task=config.objective.sequence_task)
    encoder = ModularStarEncoder(shape)
    initialize(encoder, 0.08, 1)
    encoder.bfloat16().float()
    write_checkpoint(tmp_path / "model", encoder, dataset, {})
    export_run(tmp_path / "model", tmp_path / "copy", ExportRequest(layout=layout))
    if layout == "published":
        import_published(tmp_path / "copy", tmp_path / "back")
    folder = tmp_path / ("back" if layout == "published" else "copy")
    read, ids_BT = load_pretrained(folder), torch.arange(12).view(2, 6)
    with torch.no_grad():
        pairs = zip(read(ids_BT).exit_hidden_states, encoder.eval()(ids_BT).exit_hidden_states, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    found = read_model_config(folder)
    wanted = (config.model.layer_index_width, config.model.norm_after_last_layer, config.objective.sequence_task)
    assert (found.conditional_size, found.norm_after_last_layer, found.sequence_task) == wanted


def test_an_early_exit_in_the_published_layout_comes_back_raw(dataset: Path, tmp_path: Path) -> None:
    encoder = ModularStarEncoder(ModularStarEncoderConfig(**tiny_config(dataset).model.hugging_face()))
    initialize(encoder, 0.08, 1)
    encoder.bfloat16().float()
    torch.nn.init.constant_(encoder.starEncoder2.norm.weight, 3.0)
    write_checkpoint(tmp_path / "model", encoder, dataset, {})
    export_run(tmp_path / "model", tmp_path / "cut", ExportRequest(exits=(2,), layout="published"))
    import_published(tmp_path / "cut", tmp_path / "back")
    ids_BT = torch.arange(12).view(2, 6)
    with torch.no_grad():
        cut, whole = load_pretrained(tmp_path / "back")(ids_BT), encoder.eval()(ids_BT)
    assert torch.equal(cut.last_hidden_state, whole.exit_hidden_states[1])
