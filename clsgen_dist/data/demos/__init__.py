"""Real datasets that ship with scikit-learn, put into words: for the demo, the tests and the benchmarks."""
