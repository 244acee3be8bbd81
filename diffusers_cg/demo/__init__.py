"""A page to try a model on, and the same page as a Space of the Hub."""
