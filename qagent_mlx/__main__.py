"""``python -m qagent_mlx``: the command line."""

from qagent_cli.main import cli

if __name__ == "__main__":
    cli(prog_name="qagent")
