"""What `enhance` uses unless told otherwise; docs/RESULTS.md, "Schemes" and "Models", holds the tables that set them."""

DEFAULT_MODEL = "min_vae_v2"
DEFAULT_INFERENCE = "mcem"
