"""The instructions of retrieval models, which training puts before a text and an exported folder carries with it."""

# Wording of the released model card; the language stands in lower case.
TEXT_INSTRUCTION = "Represent this code description for retrieving supporting snippets of code:"
CODE_INSTRUCTION = "Represent this {language} code snippet for retrieval:"
NO_LANGUAGE_INSTRUCTION = "Represent this code snippet for retrieval:"
# Languages of the released model card, in lower case; a prompt name cannot hold other characters than these do.
LANGUAGES = ("c", "c++", "go", "java", "javascript", "php", "python", "ruby")
QUERY_PROMPT, DOCUMENT_PROMPT = "query", "document"


def named_prompts() -> dict[str, str]:
    """Instruction by prompt name: `query` for English, `document` for code of any language, and one per language."""
    languages = {language: CODE_INSTRUCTION.format(language=language) for language in LANGUAGES}
    return {QUERY_PROMPT: TEXT_INSTRUCTION, DOCUMENT_PROMPT: NO_LANGUAGE_INSTRUCTION, **languages}
