"""`mose-finetune benchmark`: any number of models on any number of tasks, with intervals, tests, one table and the figures."""
