"""Seeds to a second language by a model behind an OpenAI-compatible server, with a journal of every answer."""
