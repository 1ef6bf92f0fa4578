"""Data-parallel training: workers, collectives, their watchdog and stop signals."""
