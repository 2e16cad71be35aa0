"""The web demo: chat with a vision-language model and see its attention. The same as ``python -m diagnostics.web``.

python web_demo_mm.py --visualize-attention
"""

from diagnostics.web.__main__ import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    main()
