"""HATCH: PaStA, QA SFT, and ActoR's cold start and GRPO (docs/method.md)."""
