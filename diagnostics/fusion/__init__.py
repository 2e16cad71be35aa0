"""Several maps of one picture as one, and is that better than the best of them? ``python -m diagnostics.fusion``.

recipes   how one map is made of many        views    what a model showed of each picture
judging   whether it is better               sheet    the pictures
"""
