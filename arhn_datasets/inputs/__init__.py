"""Step 1, what comes in: files, folders and datasets of the Hub, in any known training form, become canonical rows.

In: a name or a dataset. Out: canonical rows and where they came from. Never imports: annotators, evidence or rules.
"""
