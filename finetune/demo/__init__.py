"""The embedded demo: scenes, corpora, probes and the small base model that the first run trains.

The modules, in the order of the pipeline: `shapes` (vector shapes to pixels), `tower_scenes`, `room_scenes` and
`general_scenes`, `questions` (about a scene), `corpus` and `probe_sets` (files), `vocabulary` (the small tokenizer),
`prepare` (all files of one run), `make_base` (the base model) and `settings` (the flags of the default run).
Importing this package loads none of them.
"""
