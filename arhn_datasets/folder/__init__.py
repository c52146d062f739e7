"""Step 4, what a run writes and anybody reads: Parquet files, run.json and the card, in one layout.

In: tables of relabelled rows. Out: a refined folder, and the tables in it. Never imports: inputs or runs.
"""
