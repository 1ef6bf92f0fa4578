"""``python -m qagent_mlx.simulator FOLDER``: write the sample shop's files."""

import sys
from pathlib import Path

from .sample_files import write_sample

print(write_sample(Path(sys.argv[1] if len(sys.argv) > 1 else "sample_data")))
