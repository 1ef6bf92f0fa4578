"""Speed, measured: the standard and the agentic workload, alone and beside other trainers."""
