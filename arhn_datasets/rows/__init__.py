"""What a row is: its columns, their types, and how a stage is called on rows.

In: nothing of this package but its errors. Out: the table of sides and kinds, lists as Arrow arrays, the base of every
map callable, the background loop. Never imports: any other folder.
"""
