"""``qagent trust``: the files and addresses that a shop may use."""

from __future__ import annotations

from pathlib import Path

import click

from .console import say
from .options import Output, json_option
from .param_types import PLAIN


@click.command()
@click.argument("target", type=PLAIN, required=False, metavar="[FILE.py | ADDRESS]")
@click.argument("variables", type=PLAIN, nargs=-1, metavar="[VARIABLE]...")
@click.option("--forget", is_flag=True, help="Trust FILE.py or ADDRESS no longer.")
@json_option
def trust(target: str | None, variables: tuple[str, ...], forget: bool) -> Output:
    """Trust a Python file as it is now, or an address and the VARIABLEs that may be sent there.

    A shop or a run that comes from somebody else may name Python files (encoders, rewards), a
    search engine, and environment variables with its password. None is run, reached or read
    before you have named it: by choosing it (--encoder, --reward), or here. What a shop asks
    for is said when it is refused. Without an argument: what is trusted.
    """
    from qagent_mlx.utils import trust as record

    if target is None:
        if forget:
            raise click.UsageError("--forget needs FILE.py or ADDRESS")
    elif forget:
        record.distrust(target)
    elif _is_file(target):
        if variables:
            raise click.UsageError("variables are sent to an address, not to a file")
        record.trust_file(Path(target))
    else:
        record.trust_address(target, variables)
    files, addresses = record.trusted_files(), record.trusted_addresses()
    lines = [f"{path} is run while its SHA-256 is {value}" for path, value in files.items()]
    lines += [
        f"{address} is connected to"
        + (f", and sent the variable {' and '.join(names)}" if names else "")
        for address, names in addresses.items()
    ]

    def draw() -> None:
        if target is not None:
            say(f"{target} is trusted {'no longer' if forget else 'from now on'}")
            return
        for line in lines or ["nothing is trusted beside this program"]:
            say(line)

    return Output({"files": files, "addresses": addresses}, draw)


def _is_file(target: str) -> bool:
    """Whether a target is a Python file.

    Raises:
        click.ClickException: it is written as one, and there is none.
    """
    if not target.endswith(".py"):
        return False
    if not Path(target).is_file():
        raise click.ClickException(f"there is no file {target}; correct the path")
    return True
