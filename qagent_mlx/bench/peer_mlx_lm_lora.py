"""mlx-lm-lora's own GRPO trainer on prompts that come in on stdin, one step a line.

Runs in an environment of its own and imports nothing of this package but ``peer_steps``, and
``utils/blas.py`` by its path, for the fast BLAS (QAGENT_BLAS; "off" leaves it as it is installed).
"""

import importlib.util
import json
import sys
import tempfile
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
from mlx_lm_lora.trainer.grpo_trainer import GRPOTrainingArgs, train_grpo

clock = Clock()


def batches(dataset, batch_size, max_seq_length, train=False):
    """A step's prompts when they are asked for; the step before has ended by then."""
    first = True
    while True:
        if not first:
            clock.report()
        first = False
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        prompts = json.loads(line)
        clock.start()
        count = len(prompts)
        yield prompts, [[3]] * count, ["prompt"] * count, ["answer"] * count, None


def timed_reward(prompts, completions, answer, types=None):
    """The chains' rewards; called when all have been generated."""
    clock.rollout = time.perf_counter() - clock.began
    return reward(completions)


model, tokenizer = load(work["folder"])
reference, _ = load(work["folder"])
for llama in (model, reference):
    llama.set_dtype(mx.float32)
    llama.freeze()
linear_to_lora_layers(model, work["blocks"], {"rank": work["rank"], "dropout": 0.0, "scale": 2.0})
say({"ready": True, "blas": state.name, "problem": state.problem})
with tempfile.TemporaryDirectory() as folder:
    train_grpo(
        model=model,
        ref_model=reference,
        tokenizer=tokenizer,
        optimizer=optim.AdamW(learning_rate=2e-4),
        train_dataset=[],
        reward_funcs=[timed_reward],
        args=GRPOTrainingArgs(
            batch_size=work["prompts"],
            iters=1_000_000,
            steps_per_report=1_000_000,
            steps_per_save=1_000_000,
            max_seq_length=4096,
            adapter_file=f"{folder}/a.safetensors",
            group_size=work["group"],
            beta=work["beta"],
            epsilon=0.2,
            epsilon_high=0.28,
            max_completion_length=work["new_tokens"],
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
        ),
        iterate_batches=batches,
        end_answer_token="",
    )
