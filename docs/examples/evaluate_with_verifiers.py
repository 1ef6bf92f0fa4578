"""A model behind an OpenAI-compatible server in a shop, by `verifiers`.

pip install "qagent-mlx[verifiers]"
python evaluate_with_verifiers.py SHOP http://127.0.0.1:8080/v1 MODEL [CASES]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from verifiers.types import ClientConfig

from qagent_mlx.environment.verifiers_adapter import load_environment


def main(shop: str, address: str, model: str, cases: str = "10") -> None:
    """Print the mean of the reward and of each of its components."""
    # A policy of this package that was fused is played as it was trained.
    policy = model if (Path(model) / "policy.json").exists() else ""
    environment = load_environment(shop, limit=int(cases), policy=policy)
    client = ClientConfig(api_base_url=address, api_key_var="NO_KEY")
    results = asyncio.run(
        environment.evaluate(client, model, num_examples=int(cases), rollouts_per_example=1)
    )
    outputs = results["outputs"]
    print(f"reward {sum(o['reward'] for o in outputs) / len(outputs):.3f}, {len(outputs)} cases")
    for name in outputs[0]["metrics"]:
        print(f"  {name} {sum(o['metrics'][name] for o in outputs) / len(outputs):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
