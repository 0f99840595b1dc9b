"""The dual-head model: a Hugging Face causal LM, and a linear classification head on its final-norm state."""
