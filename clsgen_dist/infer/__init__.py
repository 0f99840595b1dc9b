"""From an exported model to probabilities and explanations."""
