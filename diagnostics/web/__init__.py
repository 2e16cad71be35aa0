"""The web demo: chat and attention, side by side. ``python web_demo_mm.py``.

    memory → engine → look → maps → the page

``engine`` runs a model and hands out a ``Look`` with each answer; ``maps`` reads it, and needs no model for that.
"""
