"""Step 7, is it true, and is it right: verification, evaluation beside a truth, and audits by people.

In: a refined or published folder. Out: violations, measures, sheets. Never imports: runs or hub.
"""
