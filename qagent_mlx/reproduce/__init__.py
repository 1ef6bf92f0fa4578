"""From raw data to the full table of results in one go, stage by stage, each done once.

    OUT/manifest.json   settings, versions, seeds, hashes, and what each stage made
    OUT/shop/           the shop with its policies and runs
    OUT/report.json     every metric of every system
    OUT/report.html     the same to look at
    OUT/table.md        the main table
    OUT/abtest.json     the simulated A/B tests, by control (simulated shops only)

A stage that the manifest calls done is not done again; a GRPO run that was interrupted resumes
from its last checkpoint and ends in the same weights. So after a crash, the same call goes on.
"""
