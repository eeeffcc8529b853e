"""What `enhance` uses unless told otherwise; docs/RESULTS.md, "Bundled models", holds the table that set both."""

DEFAULT_MODEL = "min_vae_v2"
DEFAULT_INFERENCE = "vem"
