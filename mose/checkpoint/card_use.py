"""The parts of a model card that depend on the kind of model: how it is used, and what it is not good for."""

from collections.abc import Iterator, Sequence

from mose.checkpoint.card_facts import ScoredTask
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.modeling_mose import ModularStarEncoder, ModularStarEncoderForRetrieval
from mose.model.tasks_mose import ModularStarEncoderForSequenceClassification

_PRETRAINED, _RETRIEVAL = ModularStarEncoder.__name__, ModularStarEncoderForRetrieval.__name__
_CLASSIFIER = ModularStarEncoderForSequenceClassification.__name__
PIPELINES = {_PRETRAINED: "feature-extraction", _RETRIEVAL: "sentence-similarity", _CLASSIFIER: "text-classification"}
"""The Hub's pipeline by the model's class."""
LIBRARY_TAGS = {_PRETRAINED: ["sentence-transformers"], _RETRIEVAL: ["sentence-transformers"], _CLASSIFIER: []}
"""Tags of libraries that also open the folder."""


def use(config: ModularStarEncoderConfig, architecture: str, framed: bool) -> str:
    """How each exit is opened, as a note and Python."""
    exits = config.exit_layers
    which = f"`exit_layer` is one of {', '.join(map(str, exits))}; deeper layers are not loaded. " if len(exits) > 1 else ""
    note = (
        "The tokenizer puts `<sep>` before a text and `<cls>` behind it; do not write them."
        if framed
        else "Write `<sep>` before a text and `<cls>` behind it: the tokenizer of this layout does not."
    )
    lines = [*_transformers_lines(exits, architecture)]
    if architecture != _CLASSIFIER and framed:
        lines += ["", *_sentence_lines(exits, architecture)]
    if architecture == _RETRIEVAL and framed:
        lines += ["", *_encoder_lines(exits)]
    return f"{which}{note}\n\n```python\n" + "\n".join(lines) + "\n```"


def _transformers_lines(exits: Sequence[int], architecture: str) -> Iterator[str]:
    chosen = f", exit_layer={exits[0]}" if len(exits) > 1 else ""
    name = "AutoModelForSequenceClassification" if architecture == _CLASSIFIER else "AutoModel"
    yield f"from transformers import {', '.join(sorted((name, 'AutoTokenizer')))}"
    yield ""
    yield 'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER", trust_remote_code=True)'
    yield f'model = {name}.from_pretrained("THIS_FOLDER", trust_remote_code=True{chosen})'
    if architecture == _CLASSIFIER:
        yield 'rows = tokenizer(["int f() { return 1; }"], ["int g() { return 1; }"], padding=True, return_tensors="pt")'
        yield "logits = model(rows.input_ids, rows.attention_mask).logits  # `exit_logits` holds those of every exit"
        return
    yield 'rows = tokenizer(["def add(a, b): return a + b"], padding=True, truncation=True, return_tensors="pt")'
    if architecture == _RETRIEVAL:
        yield "embeddings = model(rows.input_ids, rows.attention_mask).projected_pooled_normalized  # one [B, D] per exit"
    else:
        yield "states = model(rows.input_ids, rows.attention_mask).last_hidden_state  # the last token, <cls>, stands for the row"


def _sentence_lines(exits: Sequence[int], architecture: str) -> Iterator[str]:
    keyword = f', model_kwargs={{"exit_layer": {exits[0]}}}' if len(exits) > 1 else ""
    yield "from sentence_transformers import SentenceTransformer"
    yield ""
    yield f'encoder = SentenceTransformer("THIS_FOLDER", trust_remote_code=True{keyword})'
    if architecture == _RETRIEVAL:
        yield 'codes = encoder.encode_document(["def add(a, b): return a + b"])'
        yield 'question = encoder.encode_query(["the sum of two numbers"])'
    else:
        yield 'embeddings = encoder.encode(["def add(a, b): return a + b"])'


def _encoder_lines(exits: Sequence[int]) -> Iterator[str]:
    chosen = f", exit={exits[0]}" if len(exits) > 1 else ""
    yield "from finetune.embedding.encoder import Encoder  # of this project: the same embeddings, faster"
    yield ""
    yield f'encoder = Encoder.from_pretrained("THIS_FOLDER"{chosen})'
    yield 'question = encoder.encode(["the sum of two numbers"], kind="query")'


def limits(config: ModularStarEncoderConfig, architecture: str, tasks: Sequence[ScoredTask]) -> Iterator[str]:
    """What a user should know before using the model, one line each."""
    yield f"A row has at most {config.max_position_embeddings:,} tokens; what is longer is truncated."
    yield "An encoder: it writes no text, and a high similarity says nothing about whether code is correct or safe."
    yield "The folder runs its own Python code (`trust_remote_code=True`): read `modeling_mose.py` and its siblings first."
    if architecture == _PRETRAINED:
        yield "Pre-trained only: its embeddings were not trained for search. Fine-tune it before comparing texts."
    else:
        yield "Languages that are not among those of the training data are untested."
    if not tasks:
        yield "No scores are known here."
    for task in tasks:
        yield from _beaten(task)


def _beaten(task: ScoredTask) -> Iterator[str]:
    """References that no exit reaches: a reader should hear of them from the card."""
    measure = next(iter(task.measures))
    best = max((scores[measure].value for scores in task.exits.values() if measure in scores), default=None)
    if best is None:
        return
    better = [name for name, scores in task.references.items() if measure in scores and scores[measure].value > best]
    if better:
        names = " and ".join(better) if len(better) < 3 else f"{', '.join(better[:-1])} and {better[-1]}"
        yield f"{task.title}: {names} {'is' if len(better) == 1 else 'are'} better than every exit ({task.measures[measure]})."
