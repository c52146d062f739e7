"""Step 3, from evidence to new labels and back: pure functions of columns.

In: rows with evidence. Out: the same passages in other lists, with origins and decision. Never imports: annotators.
"""
