"""Pictures with boxes → corrective training data, and probes of other pictures: ``python -m finetune.corrective``.

annotations         the boxes and categories of each picture
box_relations       which relation two boxes are in
category_names      the Chinese and English names of categories
relation_questions, building_questions, general_questions, user_templates
                    pictures → questions, one module for each kind of question
sampling            which pictures are held out, and which questions become samples and probes
writing             the two files, checked before they are put in place
probe_file          the rules of probe files
"""
