"""Who is asked: an LLM behind a server, a model in this process, the lexical baseline, or a cascade of two.

In: requests. Out: replies, each with its status. Never imports: inputs, evidence or rules.
"""
