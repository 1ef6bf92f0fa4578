"""RecBole's SASRec for `sasrec_peer.py`; runs where RecBole is installed, without this package.

python tests/benchmarks/sasrec_recbole.py given.npz scores.npy [--seed 0]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import SASRec
from recbole.utils import init_seed

EPOCHS, BATCH = 12, 64


class Queries:
    """As much of a RecBole data set as its SASRec asks for: how many items there are."""

    def __init__(self, count: int) -> None:
        self.count = count

    def num(self, field: str) -> int:
        """Items with the one for padding."""
        return self.count


def interaction(model: SASRec, rows: np.ndarray, wanted: np.ndarray | None = None) -> Interaction:
    """Rows of ids, padded behind, as the model reads them."""
    values = {
        model.ITEM_SEQ: torch.tensor(rows),
        model.ITEM_SEQ_LEN: torch.tensor(np.maximum((rows > 0).sum(1), 1)),
    }
    if wanted is not None:
        values[model.POS_ITEM_ID] = torch.tensor(wanted)
    return Interaction(values)


def main() -> None:
    """Train on the pairs, and score all queries for what is asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("given")
    parser.add_argument("scores")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    given = np.load(args.given)
    settings = {
        "MAX_ITEM_LIST_LENGTH": int(given["length"]),
        "n_layers": 2,
        "n_heads": 2,
        "hidden_size": 64,
        "inner_size": 128,
        "train_neg_sample_args": None,  # the loss is a cross-entropy over all items
        "loss_type": "CE",
        "use_gpu": False,
        "seed": args.seed,
        "learning_rate": 1e-3,
    }
    config = Config(model="SASRec", dataset="queries", config_dict=settings)
    torch.set_num_threads(1)  # two wait for each other where cores are shared
    init_seed(args.seed, reproducibility=True)
    model = SASRec(config, Queries(int(given["known"]) + 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])
    histories, wanted = given["histories"], given["wanted"]
    random = np.random.default_rng(args.seed)
    for epoch in range(EPOCHS):
        model.train()
        total = 0.0
        order = random.permutation(len(wanted))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            loss = model.calculate_loss(interaction(model, histories[rows], wanted[rows]))
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        print(f"RecBole epoch {epoch + 1}/{EPOCHS}  loss {total / len(order):.3f}", flush=True)
    model.eval()
    with torch.no_grad():
        scores = [
            model.full_sort_predict(interaction(model, part)).reshape(len(part), -1)[:, 1:]
            for part in np.array_split(given["asked"], max(1, len(given["asked"]) // 256))
        ]
    np.save(args.scores, torch.cat(scores).numpy())


if __name__ == "__main__":
    main()
