"""What is heard and seen: `media` (sound, video), `lips`, `corpora`, the synthetic `talker`, and `noise`.

Open `media/audio.py` first.
"""
