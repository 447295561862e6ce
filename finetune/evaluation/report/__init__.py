"""`mose-finetune report`: one page, one table and one picture of a whole run, from data to the scores of every exit."""
