"""What a rank trains: all exits or one, with the losses and dimensions of the config; a model that does not fit is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.batches import balanced_shares
from finetune.config import LOSSES, RetrievalConfig
from finetune.distributed import World
from finetune.retrieval.examples import Examples
from finetune.retrieval.prompts import code_prompt, encode_prompts, text_prompt
from finetune.retrieval.train import train
from finetune.retrieval.trainer import Trainer, build_model
from mose.checkpoint.converted_checkpoint import load_retrieval, random_like, write_checkpoint
from mose.dataset.pairs import write_pairs
from mose.errors import MoseError
from mose.run_directory import RunDirectory
from mose.tokenizer import Tokenizer
from tests.finetune.conftest import make_pairs, tiny_config


@pytest.fixture
def config(checkpoint: Path, pairs_file: Path, tmp_path: Path) -> RetrievalConfig:
    places = {"checkpoint": str(checkpoint), "pairs": str(pairs_file), "output": str(tmp_path / "run")}
    return RetrievalConfig(**places, steps=2, batch_pairs=12, chunk_pairs=6, learning_rate=1e-3, log_every_steps=1, device="cpu")


def test_a_single_exit_is_the_model_cut_there_and_has_weight_1(config: RetrievalConfig):
    config = replace(config, exit_layer=2)
    whole, cut = dict(build_model(replace(config, exit_layer=0)).named_parameters()), build_model(config)
    for name, parameter in cut.starEncoder2.named_parameters(prefix="starEncoder2"):
        assert torch.equal(parameter, whole[name]), name
    assert train(config)
    run = RunDirectory(Path(config.output))
    line = run.read_metrics()[-1]
    assert [name for name in line if name.startswith("loss/exit")] == ["loss/exit_02/clip"]
    assert line["loss/total"] == line["loss/exit_02/clip"]
    assert load_retrieval(run.path / "checkpoint").config.num_hidden_layers == 2


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_with_dimensions_and_its_logit_scale(config: RetrievalConfig, loss: str):
    more = {"dimensions": (8, 16), "logit_scale_learning_rate_factor": 10.0, "batch_pairs": 12, "chunk_pairs": 12}
    trainer = Trainer.build(replace(config, loss=loss, **more), torch.device("cpu"), World(0, 1))  # type: ignore[arg-type]
    trainer.model.eval()
    examples = Examples(make_pairs(12), 12, 0.0, seed=0)
    reports = [trainer.step(examples.at(0), step) for step in range(12)]
    assert reports[-1].loss.total < 0.9 * reports[0].loss.total
    assert (reports[-1].loss.losses_E < reports[0].loss.losses_E).all()
    assert len(reports[0].logit_scales) == 3 and all(scale != 10.0 for scale in reports[0].logit_scales)


def test_a_learned_logit_scale_is_resumed_and_left_out_of_the_folder(config: RetrievalConfig, tmp_path: Path):
    config = replace(config, logit_scale_learning_rate_factor=10.0, dimensions=(8,), checkpoint_every_steps=1)
    ends = []
    for name, steps in (("whole", (3,)), ("resumed", (1, 3))):
        for count in steps:
            assert train(replace(config, output=str(tmp_path / name), steps=count), "auto")
            exported = tmp_path / name / "checkpoint"
            load_retrieval(exported)
            shutil.rmtree(exported)
            shutil.rmtree(tmp_path / name / "best")
        ends.append({k: v for k, v in RunDirectory(tmp_path / name).read_metrics()[-1].items() if "throughput" not in k})
    assert ends[0] == ends[1] and ends[0]["optimizer/exit_04/logit_scale"] != 10.0
    assert 0 < ends[0]["validation/exit_04/mrr_8"] <= 1


def test_the_folder_has_a_prompt_for_every_language_of_the_pairs(config: RetrievalConfig, tmp_path: Path):
    pairs = [replace(pair, lang_b="Kotlin", code_b="fun f() = 1 // " + pair.nl) for pair in make_pairs(24)]
    write_pairs(tmp_path / "pairs.parquet", pairs)
    assert train(replace(config, pairs=str(tmp_path / "pairs.parquet"), steps=1))
    prompts = json.loads((tmp_path / "run" / "checkpoint" / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts["kotlin"] == code_prompt("", "Kotlin").instruction + "<sep>"


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(config: RetrievalConfig, tokenizer_folder: Path, tmp_path: Path):
    shape = tiny_config()
    shape.vocab_size = 300
    write_checkpoint(tmp_path / "model", random_like(shape, seed=3), tokenizer_folder, {})
    with pytest.raises(MoseError, match=r"tokenizer\.model: 400 tokens, but the model has 300; expected the tokenizer that"):
        train(replace(config, checkpoint=str(tmp_path / "model")))


def test_ranks_get_alike_tokens_from_estimated_lengths(tokenizer: Tokenizer):
    """The shares are dealt by bytes; here they are judged by the tokens."""
    draw = np.random.default_rng(0)
    texts = [" ".join(["return", "token", "file"] * int(n)) for n in draw.lognormal(2.5, 1.0, size=512).clip(1, 400)]
    prompts = [text_prompt(text) for text in texts[:256]] + [code_prompt(text, "Python") for text in texts[256:]]
    lengths = np.array([len(row) for row in encode_prompts(tokenizer, prompts, 512)])
    shares = balanced_shares(np.array([prompt.estimated_tokens(512) for prompt in prompts]), 8)
    tokens = np.array([lengths[rows].sum() for rows in shares])
    assert tokens.max() / tokens.mean() < 1.05
    in_order = np.array([lengths[start : start + 64].sum() for start in range(0, 512, 64)])
    assert in_order.max() / in_order.mean() > 1.05
