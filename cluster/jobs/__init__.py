"""What a job is: its config, the site that it runs on, and the text of its script."""
