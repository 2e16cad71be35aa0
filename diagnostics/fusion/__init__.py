"""Fuses several maps of one picture and tests the result against the best one: ``python -m diagnostics.fusion``.

recipes   how one map is made of many        views    what a model showed of each picture
judging   whether it is better               sheet    the pictures
"""
