"""Step 8, publication: the only folder that writes to the Hub.

In: a refined folder or relabelled rows. Out: one commit of configurations and a card. Never imports: annotators.
"""
