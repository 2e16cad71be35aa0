"""The web demo: chat and attention, side by side. ``python -m diagnostics.web``.

    engine → trace → maps → views → the page

``engine`` runs a model and returns a ``Trace`` with each answer; ``maps`` and ``views`` read it without the model.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = (
    "False"  # set before gradio is imported, which otherwise contacts the network
)
