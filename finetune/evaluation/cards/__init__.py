"""`mose-finetune card`: the model card of a folder with scores, times and a licence."""
