"""Pictures of the mouth: from arrays, or cut out of a video of a face.

Open `lips` first; `open` reads any file, `watch` finds the mouth in a video, `face` tracks the face.
"""
