"""Pictures with boxes → corrective training data, and probes of other pictures: ``python -m finetune.corrective``.

annotations   what lies where in each picture          geometry   which relation two boxes are in
names         what things are called, in two languages
relations buildings general own                        pictures → questions, one module a kind of question
choosing      which pictures are held out, and which questions are asked
writing       the two files, checked and whole         probe_file   the rules of probe files
"""
