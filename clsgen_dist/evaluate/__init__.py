"""How well a model ranks, decides, is calibrated, and explains."""
