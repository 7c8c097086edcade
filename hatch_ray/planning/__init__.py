"""What a cluster would do with a run, from measured costs of its phases (docs/scaling.md). No Ray, no torch."""
