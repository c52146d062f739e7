"""Step 3, from evidence to new labels and back: pure functions of columns, a file for each rule.

In: rows with evidence. Out: the same passages in other lists, with origins and decision. Never imports: inputs,
annotators, evidence.
"""
