"""Images from wherever they are, as the networks, the metrics and people want them."""
