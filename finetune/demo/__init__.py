"""The embedded default: scenes, corpora, probes and the small base model that the first run trains.

The modules, in the order of the pipeline: `drawing` (vector shapes to pixels), `towers`, `rooms` and `general` (the
scenes), `questions` (what is asked of a scene), `corpus` and `probes` (files), `vocabulary` (the small tokenizer),
`prepare` (all files of one run), `make_base` (the base model) and `settings` (the flags of the default run).
Importing this package loads none of them.
"""
