"""How an LLM server is asked: contract (pure), transports, limits, breakers, the pool that joins them, the store.

In: chat requests. Out: completions. Never imports: prompts or the reading of replies.
"""
