"""Step 2, the stages that ask, a file each: they add the columns of one kind of evidence to canonical rows.

In: canonical rows and an annotator or a model. Out: evidence columns. Never imports: rules.
"""
