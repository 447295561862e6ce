"""Search with a fine-tuned model: functions of a folder or of held-out pairs, found by a question at any exit."""
