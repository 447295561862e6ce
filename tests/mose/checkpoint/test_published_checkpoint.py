"""Covers the layout of the released checkpoints: names, shapes and byte sizes, both prefixes, exact round trips, bad folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from mose.checkpoint.converted_checkpoint import (
    load_pretrained,
    load_retrieval,
    random_like,
    retrieval_from_pretrained,
    truncate_at,
)
from mose.checkpoint.exit_selection import parameter_shapes, select_exit, write_weights
from mose.checkpoint.published_checkpoint import describe_published, examine_published, import_published, published_selection
from mose.checkpoint.safetensors_file import Entry, SafetensorsReader, WeightFiles, file_size, header_bytes
from mose.errors import MoseError
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval
from tests.commands import command_line, refused, run_well
from tests.mose.byte_tokenizer import make_byte_tokenizer

# Released repositories: bytes of model.safetensors; the pre-trained one was read there, the others follow from their sizes
# as they are shown there and from two linear layers a head.
PRETRAINED_BYTES = 2_208_252_348
FINE_TUNED_BYTES = {4: 327_340_040, 9: 605_421_712, 18: 1_105_968_920, 27: 1_606_516_368, 36: 2_123_859_008}
SMALL = ModularStarEncoderConfig(
    vocab_size=267,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    matryoshka_layers=[1, 2, 4],
)
IDS_BT = torch.arange(5, 25)[None]


def write_published(folder: Path, model: torch.nn.Module, exit_layer: int | None = None) -> Path:
    """A folder in the released layout, as the exporter writes one."""
    folder.mkdir(parents=True)
    whole = select_exit(type(model), model.config, exit_layer)
    selection = published_selection(whole, model.config)
    write_weights([(folder / "model.safetensors", selection)], dict(model.named_parameters()).__getitem__, torch.bfloat16)
    describe_published(folder, selection)
    make_byte_tokenizer(folder)
    return folder


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    return write_published(tmp_path / "published", random_like(SMALL, 1))


@pytest.fixture
def retrieval() -> ModularStarEncoderForRetrieval:
    return retrieval_from_pretrained(random_like(SMALL, 1), 2).eval()


def rename(folder: Path, change: Callable[[str], str | None]) -> None:
    path = folder / "model.safetensors"
    tensors = {change(name): tensor for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name is not None}, path)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def published_entries(model_class: type, exit_layer: int | None) -> list[Entry]:
    config = ModularStarEncoderConfig()
    return published_selection(select_exit(model_class, config, exit_layer), config).entries(torch.bfloat16)


def test_pretrained_model_has_the_released_number_of_tensors_and_bytes() -> None:
    entries = published_entries(ModularStarEncoder, None)
    assert len(entries) == 590
    assert sum(entry.num_bytes for entry in entries) == 2 * 1_104_091_214
    assert file_size(entries) == PRETRAINED_BYTES


@pytest.mark.parametrize("exit_layer", FINE_TUNED_BYTES)
def test_fine_tuned_models_have_the_predicted_bytes(exit_layer: int) -> None:
    chosen = None if exit_layer == 36 else exit_layer
    assert file_size(published_entries(ModularStarEncoderForRetrieval, chosen)) == FINE_TUNED_BYTES[exit_layer]


def test_a_file_of_full_size_is_examined_by_its_header(tmp_path: Path) -> None:
    """Names, shapes and size of the released pre-trained file; its values are a hole on the disk."""
    config = ModularStarEncoderConfig()
    describe_published(tmp_path, select_exit(ModularStarEncoder, config))
    entries = published_entries(ModularStarEncoder, None)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(header_bytes(entries))
        file.truncate(PRETRAINED_BYTES)
    with WeightFiles(tmp_path) as weights:
        found = examine_published(tmp_path, weights)
    assert found.model_class is ModularStarEncoder
    assert (found.config.exit_layers, found.config.vocab_size) == ([4, 9, 18, 27, 36], 49156)
    assert len(found.stored_names) == 590


def test_round_trip_of_the_pretrained_model_is_exact(pretrained: Path, tmp_path: Path) -> None:
    import_published(pretrained, tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == (pretrained / "model.safetensors").read_bytes()
    run_well(command_line("pretrain", "export", tmp_path / "ours", "--layout", "published", "--output", tmp_path / "back"))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (pretrained / name).read_bytes()
    read, written = load_pretrained(tmp_path / "ours"), random_like(SMALL, 1)
    for (name, a), b in zip(read.named_parameters(), written.parameters(), strict=True):
        assert torch.equal(a, b.bfloat16().float()), name


@pytest.mark.parametrize("prefix", ["", "starEncoder2.", "module.", "starEncoder2.module."])
def test_both_prefixes_of_the_heads_are_read(prefix: str, retrieval: ModularStarEncoderForRetrieval, tmp_path: Path) -> None:
    folder = write_published(tmp_path / "published", retrieval)
    rename(folder, lambda name: prefix + name if name.startswith("projection_heads") else name)
    found = import_published(folder, tmp_path / "ours")
    assert found.model_class is ModularStarEncoderForRetrieval
    assert found.stored_names["projection_heads.2.0.bias"] == f"{prefix}projection_heads.2.0.bias"
    read = load_retrieval(tmp_path / "ours")
    expected = {name: value.bfloat16().float() for name, value in retrieval.named_parameters()}
    assert all(torch.equal(value, expected[name]) for name, value in read.named_parameters())


def without_trunk(name: str) -> str:
    return name.removeprefix("starEncoder2.").removeprefix("cls.")


def bias_of_the_decoder(name: str) -> str:
    return name.replace("predictions.bias", "predictions.decoder.bias")


@pytest.mark.parametrize("change", [without_trunk, bias_of_the_decoder, "module.{}".format])
def test_other_prefixes_of_the_trunk_are_read(change: Callable[[str], str], pretrained: Path, tmp_path: Path) -> None:
    whole = load_file(pretrained / "model.safetensors")
    rename(pretrained, change)
    import_published(pretrained, tmp_path / "ours")
    read = load_file(tmp_path / "ours" / "model.safetensors")
    assert read.keys() == whole.keys()
    assert all(torch.equal(read[name], whole[name]) for name in whole)


@pytest.mark.parametrize("exit_layer", [1, 2])
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("head", ["0", "own"])
def test_a_file_of_one_exit_gives_that_exit(
    exit_layer: int, with_norm: bool, head: str, retrieval: ModularStarEncoderForRetrieval, tmp_path: Path
) -> None:
    folder = write_published(tmp_path / "published", retrieval, exit_layer)
    index = SMALL.exit_layers.index(exit_layer) if head == "own" else 0
    rename(folder, lambda name: name.replace("heads.0.", f"heads.{index}.") if with_norm or ".norm." not in name else None)
    # The config of the whole model, as it may stand beside a cut file.
    change_config(folder, num_hidden_layers=4, matryoshka_layers=[1, 2, 4])
    import_published(folder, tmp_path / "ours")
    read = load_retrieval(tmp_path / "ours")
    assert read.config.exit_layers == [exit_layer]
    with torch.no_grad():
        expected = truncate_at(retrieval.bfloat16().float(), exit_layer)(IDS_BT).projected_pooled_normalized[0]
        assert torch.equal(read(IDS_BT).projected_pooled_normalized[0], expected)


@pytest.mark.parametrize("layers", [2, 4])
@pytest.mark.parametrize("exits", [[2], [1, 2], [1, 2, 4]])
def test_an_early_exit_stays_raw_however_the_exits_are_listed(
    layers: int, exits: list[int], retrieval: ModularStarEncoderForRetrieval, tmp_path: Path
) -> None:
    folder = write_published(tmp_path / "published", retrieval, 2)
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), "num_hidden_layers": layers, "matryoshka_layers": exits}
    # A field of ours, which folders of others lack.
    del values["norm_after_last_layer"]
    path.write_text(json.dumps(values))
    import_published(folder, tmp_path / "ours")
    read = load_retrieval(tmp_path / "ours")
    assert read.config.exit_layers == [2]
    with torch.no_grad():
        expected = truncate_at(retrieval.bfloat16().float(), 2)(IDS_BT).projected_pooled_normalized[0]
        assert torch.equal(read(IDS_BT).projected_pooled_normalized[0], expected)


@pytest.mark.parametrize(("name", "shape"), [("temperature", ()), ("module.logit_scale", (1,))])
def test_a_stored_temperature_is_kept_as_a_fact(
    name: str, shape: tuple[int, ...], retrieval: ModularStarEncoderForRetrieval, tmp_path: Path
) -> None:
    folder = write_published(tmp_path / "published", retrieval)
    path = folder / "model.safetensors"
    save_file({**load_file(path), name: torch.full(shape, 9.5, dtype=torch.bfloat16)}, path)
    import_published(folder, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "facts.json").read_text())["temperatures"] == {name: 9.5}
    assert load_retrieval(tmp_path / "ours").config.exit_layers == [1, 2, 4]


def test_both_names_of_the_vocabulary_bias_are_read_where_they_are_equal(pretrained: Path, tmp_path: Path) -> None:
    path = pretrained / "model.safetensors"
    tensors = load_file(path)
    both = {**tensors, "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone()}
    save_file(both, path)
    import_published(pretrained, tmp_path / "ours")
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == tensors.keys()
    both["cls.predictions.decoder.bias"][3] = 1
    save_file(both, path)
    with pytest.raises(MoseError, match=r"cls.predictions.bias and cls.predictions.decoder.bias are both .*, expected one"):
        import_published(pretrained, tmp_path / "again")


def test_imported_folder_opens_in_transformers_with_framed_texts(pretrained: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    import_published(pretrained, tmp_path / "ours")
    ids = AutoTokenizer.from_pretrained(tmp_path / "ours", trust_remote_code=True)("ab")["input_ids"]
    raw = tokenizers.Tokenizer.from_file(str(pretrained / "tokenizer.json"))
    assert ids == [raw.token_to_id("<sep>"), *raw.encode("ab", add_special_tokens=False).ids, raw.token_to_id("<cls>")]


def test_values_in_several_files_are_read(pretrained: Path, tmp_path: Path) -> None:
    tensors = load_file(pretrained / "model.safetensors")
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, pretrained / file)
    (pretrained / "model.safetensors").unlink()
    weight_map = {name: file for file, part in files.items() for name in part}
    (pretrained / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    import_published(pretrained, tmp_path / "ours")
    read = load_file(tmp_path / "ours" / "model.safetensors")
    assert all(torch.equal(read[name], tensors[name]) for name in names)
    (pretrained / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MoseError, match="names model-00002-of-00002.safetensors, which is missing from the folder"):
        import_published(pretrained, tmp_path / "new")


def drop(missing: str) -> Callable[[Path], None]:
    return lambda folder: rename(folder, lambda name: None if name == missing else name)


def put(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({**load_file(path), name: torch.zeros(shape, dtype=torch.bfloat16)}, path)

    return change


def shorten(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def overwrite(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>" + b" " * 100)


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def set_fields(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **changes)


BAD = {
    "wrong magic": (overwrite, r"model\.safetensors: not a whole safetensors file"),
    "truncated": (shorten, r"model\.safetensors: not a whole safetensors file: it has"),
    "pickle": (pickle, r"pytorch_model\.bin: is a pickle, which could run code; expected model\.safetensors"),
    "missing tensor": (drop("pooler.dense.bias"), r"model\.safetensors: tensor pooler\.dense\.bias is missing"),
    "extra tensor": (put("surprise", (1,)), r"model\.safetensors: tensor surprise is not expected"),
    "extra layer tensor": (
        put("starEncoder2.layers.1.self_attn.rotary_emb.inv_freq", (4,)),
        r"tensor starEncoder2\.layers\.1\.self_attn\.rotary_emb\.inv_freq is not expected",
    ),
    "twice": (put("norm.weight", (32,)), "tensors norm.weight and starEncoder2.norm.weight are both starEncoder2.norm.weight"),
    "wrong shape": (
        put("pooler.dense.bias", (31,)),
        r"model\.safetensors: pooler\.dense\.bias is \[31\], config\.json makes it \[32\]",
    ),
    "vocabulary": (
        set_fields(vocab_size=300),
        r"embed_tokens\.weight has 267 rows, .*config\.json: vocab_size is 300",
    ),
    "other exits": (
        set_fields(matryoshka_layers=[2, 4]),
        r"conditional_embeddings\.weight is \[3, 4\], config\.json makes it \[2, 4\]",
    ),
    "other depth": (
        set_fields(matryoshka_layers=[1, 2, 6], num_hidden_layers=6),
        r"model\.safetensors: holds 4 layers; expected 6 layers, or one head and a depth of \[1, 2\]",
    ),
    "no exits": (set_fields(matryoshka_layers=[]), r"config\.json: matryoshka_layers: \[\], expected the layers of the exits"),
    "temperature of a shape": (put("logit_scale", (2,)), r"model\.safetensors: tensor logit_scale is not expected"),
    "other model": (set_fields(model_type="bert"), r"config\.json: model_type is 'bert'"),
    "other activation": (set_fields(hidden_act="relu"), r"config\.json: hidden_act is 'relu', expected 'gelu_pytorch_tanh'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_one_line_and_leave_nothing(case: str, pretrained: Path, tmp_path: Path) -> None:
    damage, message = BAD[case]
    damage(pretrained)
    with pytest.raises(MoseError, match=message) as caught:
        import_published(pretrained, tmp_path / "ours")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    small = ModularStarEncoderConfig(**{**SMALL.to_dict(), "vocab_size": 200})
    folder = write_published(tmp_path / "published", random_like(small, 1))
    with pytest.raises(MoseError, match=r"tokenizer\.json: has 260 tokens, the model's vocab_size is 200"):
        import_published(folder, tmp_path / "ours")


def test_heads_that_fit_no_released_model_are_counted(retrieval: ModularStarEncoderForRetrieval, tmp_path: Path) -> None:
    folder = write_published(tmp_path / "published", retrieval)
    rename(folder, lambda name: None if ".layers.3." in name or ".layers.2." in name else name)
    with pytest.raises(MoseError, match=r"holds 2 layers and 3 projection heads; expected 4 layers, or one head"):
        import_published(folder, tmp_path / "ours")


def test_the_command(pretrained: Path, tmp_path: Path) -> None:
    (pretrained / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(MoseError, match=r"holds neither tokenizer\.model nor tokenizer\.json"):
        import_published(pretrained, tmp_path / "ours")
    line = command_line(
        "pretrain", "import", pretrained, "--output", tmp_path / "ours", "--tokenizer", tmp_path / "tokenizer.json"
    )
    tensors = len(parameter_shapes(ModularStarEncoder, SMALL))
    assert f"ModularStarEncoder, {tensors} tensors, exits 1, 2, 4" in run_well(line)
    with SafetensorsReader(tmp_path / "ours" / "model.safetensors") as reader:
        assert {entry.dtype for entry in reader.entries.values()} == {torch.bfloat16}
    assert "already exists" in refused(line)


def test_nan_in_imported_weights_is_refused(pretrained: Path, tmp_path: Path) -> None:
    path = pretrained / "model.safetensors"
    stored = load_file(path)
    stored["pooler.dense.weight"][0, 0] = float("nan")
    save_file(stored, path)
    with pytest.raises(MoseError, match=r"tensor pooler\.dense\.weight has 1 values that are not finite"):
        import_published(pretrained, tmp_path / "output")
    assert not (tmp_path / "output").exists()
