"""Classification of single texts and pairs at every exit, such as clone detection."""
