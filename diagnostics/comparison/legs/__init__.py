"""The six pieces of evidence for "corrected", each a number with an interval, a threshold and a sentence."""
