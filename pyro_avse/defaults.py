"""What `enhance` uses unless told otherwise; the tables that set them: docs/RESULTS.md, "Default", "Robustness",
"Time to quality".
"""

DEFAULT_MODEL = "min_vae_v2"
DEFAULT_INFERENCE = "guided"
SEPARATION_MODEL = "a_vae"
SAMPLE_RATE = 16000
"""Of every waveform inside the library, in Hz."""
