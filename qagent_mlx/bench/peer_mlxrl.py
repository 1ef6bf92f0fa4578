"""mlxrl's own GRPO functions on prompts that come in on stdin, one step a line.

Runs in an environment of its own and imports nothing of this package but ``peer_steps``, and
``utils/blas.py`` by its path, for the fast BLAS (QAGENT_BLAS; "off" leaves it as it is installed).
The loop is that of `mlxrl train`, but with the faster of its two ways to sample: each prompt is
read once, and all chains are decoded together.
"""

import importlib.util
import json
import sys
import time

from peer_steps import Clock, reward, say, work

spec = importlib.util.spec_from_file_location("blas", work["blas_module"])
blas = importlib.util.module_from_spec(spec)
sys.modules["blas"] = blas
spec.loader.exec_module(blas)
state = blas.load_fast_blas()

import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load
from mlxrl.algo.grpo import DAPOAlgorithm
from mlxrl.rollout.naive import SamplingConfig
from mlxrl.rollout.optimized import generate_prefix_cached_group_rollouts
from mlxrl.train.grpo import batch_from_rollouts, optimizer_step

PAD = 3


class Ids:
    """Stands in for a tokenizer: prompts are ids already, and no token ends a chain."""

    chat_template = None
    pad_token_id = PAD

    def encode(self, ids):
        """The ids of a prompt."""
        return ids

    def decode(self, ids):
        """A text from which a reward can be computed."""
        return " ".join(map(str, ids))


model, _ = load(work["folder"])
model.set_dtype(mx.float32)
model.freeze()
linear_to_lora_layers(model, work["blocks"], {"rank": work["rank"], "dropout": 0.0, "scale": 2.0})
model.eval()
optimizer = optim.AdamW(learning_rate=2e-4)
algorithm = DAPOAlgorithm(clip_low=0.2, clip_high=0.28, dynamic_sampling=False)
sampling = SamplingConfig(max_tokens=work["new_tokens"], temperature=1.0, top_p=1.0)
clock = Clock()
say({"ready": True, "blas": state.name, "problem": state.problem})
for number, line in enumerate(sys.stdin):
    clock.start()
    chains = generate_prefix_cached_group_rollouts(
        model=model,
        tokenizer=Ids(),
        prompts=json.loads(line),
        group_size=work["group"],
        config=sampling,
        seed=number,
        use_chat_template=False,
        batch_groups=True,
    )
    clock.rollout = time.perf_counter() - clock.began
    batch = batch_from_rollouts(
        model=model,
        completions=chains,
        rewards=reward([chain.text for chain in chains]),
        group_size=work["group"],
        pad_token_id=PAD,
        algorithm=algorithm,
        compute_reference=bool(work["beta"]),
    )
    optimizer_step(
        model=model,
        optimizer=optimizer,
        batch=batch,
        beta=work["beta"],
        pad_token_id=PAD,
        algorithm=algorithm,
    )
    clock.report()
