"""The published benchmarks: their files, their scorers as published, and the paper's tables. No Ray, no torch."""
