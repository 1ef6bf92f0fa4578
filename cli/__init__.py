"""The ``qagent`` command line: thin commands over `qagent_mlx`."""
