"""What "corrected" rests on: six pieces of evidence, each a number with an interval, a threshold and a sentence."""
