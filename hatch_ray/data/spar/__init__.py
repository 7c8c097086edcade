"""SPAR-7M and SPAR-7M-RGBD: the published tree read into samples, and written from our own (docs/spar.md)."""
