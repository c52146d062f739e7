"""How an LLM server is asked: contract (no I/O), HTTP or the Hub's client, a pool with limits and breakers, a store.

In: chat requests. Out: completions. Never imports: prompts or the reading of replies.
"""
