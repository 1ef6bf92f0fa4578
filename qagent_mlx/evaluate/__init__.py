"""Offline evaluation: does a system recommend what the user searched and engaged with next?

`suite.evaluation_suite` prepares policies, ablations and baselines on the cases of a split,
`report.evaluate` lets each rank every case and scores the rankings (`metrics`), and `tables`
and `html_report` show the result. `abtest` asks simulated shoppers instead.
"""
