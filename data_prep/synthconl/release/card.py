"""The data card of a data set: what it holds, how it was made, what to know before it is used. Markdown with YAML on top."""

from typing import Any

import yaml

from data_prep.synthconl.release.rows import FILE_NAME, PROVENANCE, RELEASED

_COLUMNS = {
    "repository_name": "repository of the source function",
    "func_path_in_repository": "its file",
    "language2": "language of the translation",
    "func2": "the translation, by a model",
    "language1_CSN": "language of the source function",
    "func1_CSN": "the source function, without its documentation",
    "func_documentation_string": "first paragraph of its documentation",
    "func_code_url": "where it was found, if CodeSearchNet says so",
    "id": "16 hexadecimal digits of text, code and place",
    "split": "`train` or `held_out`",
    "license": "licences of the source file",
    "server": "address of the server that answered",
    "model": "the model, as the server names it",
    "prompt_version": "the wording of the prompt",
    "seed": "draws the target languages",
}


def data_card(name: str, plain: dict[str, Any]) -> str:
    """The card of a data set with these counts (`ReleaseStatistics.to_plain`)."""
    head = yaml.safe_dump(
        {
            "license": "other",
            "task_categories": ["feature-extraction", "text-retrieval"],
            "tags": ["code", "synthetic"],
            "configs": [{"config_name": "default", "data_files": FILE_NAME}],
        },
        sort_keys=False,
    )
    splits = "\n".join(
        f"| {split} | {number:,} | {plain['repositories'].get(split, 0):,} |" for split, number in plain["split"].items()
    )
    columns = "\n".join(f"| `{column}` | {_COLUMNS[column]} |" for column in (*RELEASED, *PROVENANCE, "seed"))
    groups = plain["in_both_splits"]["near_duplicate_groups"]
    near = (
        "Near-duplicates were not looked for: `mose-data dedup` does that."
        if groups is None
        else f"Near-duplicates were cut; {groups} groups have rows in both splits."
    )
    return f"""---
{head}---
# {name}

{plain["rows"]:,} triplets: a text, a function that it documents, and the same function translated into another language by a
model ({_listed(plain["model"])}). Built as SynthCoNL was (arXiv 2503.03008, section 5), with `mose-data seeds`, `translate`,
`dedup` and `synthconl`.

| split | rows | repositories |
|---|---|---|
{splits}

Repositories are whole in one split. {near} Source languages: {_listed(plain["language1_CSN"])}. Target languages:
{_listed(plain["language2"])}.

## Columns

The first eight are those of the released data set, all text; the others say where a row is from.

| column | what it is |
|---|---|
{columns}

## Before use

- Translations were checked for their syntax (tree-sitter), not compiled and not run: some compute something else.
- Each source function is under the licence in `license`, and its translation is derived from it. Licences:
  {_listed(plain["license"])}.
- Texts are what programmers wrote above functions, not what people ask a search engine.

Of {plain["rows"] + sum(plain["dropped"].values()):,} seeds, {plain["rows"]:,} are here. Left out:
{_listed(plain["dropped"]) or "none"}.
"""


def _listed(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {number:,}" for name, number in ordered)
