"""The Hugging Face model of a converted checkpoint, and the facts about its parameters that stages share."""
