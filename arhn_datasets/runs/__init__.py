"""Step 6, the whole way from an input to a folder: one engine, for a process, a shard and a cluster.

In: an input and configured stages. Out: a refined folder. Never imports: checks or hub.
"""
