"""The instructions of retrieval models, which training puts before a text and an exported folder carries with it."""

from collections.abc import Iterable

# Wording of the released model card; the language stands in lower case.
TEXT_INSTRUCTION = "Represent this code description for retrieving supporting snippets of code:"
CODE_INSTRUCTION = "Represent this {language} code snippet for retrieval:"
NO_LANGUAGE_INSTRUCTION = "Represent this code snippet for retrieval:"
# Languages of the released model card, in lower case.
LANGUAGES = ("c", "c++", "go", "java", "javascript", "php", "python", "ruby")
QUERY_PROMPT, DOCUMENT_PROMPT = "query", "document"


def named_prompts(trained: Iterable[str] = ()) -> dict[str, str]:
    """Instruction by prompt name: `query` for English, `document` for code of any language, and one per language.

    Languages are the released card's and those `trained`. A trained one that spells a special token has no prompt: AutoTokenizer
    would read it as one, where training had text.
    """
    names = dict.fromkeys((*LANGUAGES, *sorted(name for name in trained if "<" not in name)))
    languages = {language: CODE_INSTRUCTION.format(language=language) for language in names}
    return {**languages, QUERY_PROMPT: TEXT_INSTRUCTION, DOCUMENT_PROMPT: NO_LANGUAGE_INSTRUCTION}
