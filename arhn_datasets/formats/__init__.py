"""Step 5, what trainers read: a function from rows to the tables of each format, and the files of these.

In: a folder or rows. Out: files that a trainer's own loader takes. Never imports: inputs or runs.
"""
