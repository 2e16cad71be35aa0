"""The web demo: chat and attention, side by side. ``python -m diagnostics.web``.

    engine → trace → maps → views → the page

``engine`` runs a model and hands out a ``Trace`` with each answer; ``maps`` and ``views`` read it without the model.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = (
    "False"  # before gradio is imported: it would ask the network at once
)
