"""From raw class logits to probabilities that can be acted on."""
