"""An estimate grows with what a run holds, and knows what a chain does not do."""

from dataclasses import replace
from types import SimpleNamespace

from qagent_mlx.protocol.config import AgentConfig
from qagent_mlx.train.grpo_config import GrpoConfig
from qagent_mlx.train.memory_estimate import chain_tokens, grpo_bytes


def test_a_chain_is_as_long_as_what_it_reads_and_writes():
    policy, agent = SimpleNamespace(prompt=[0] * 10), AgentConfig()

    def length(**changes):
        return chain_tokens(policy, replace(agent, **changes))[0]

    assert length() > length(search=False) > length(search=False, memory=False) > 10
    assert length(memory=False) < length()
    results = agent.results_shown * (agent.title_words + 8) * 2
    more = length(max_searches=agent.max_searches + 1) - length()
    assert more == results + 4  # one more list of results, and one more action
    assert length(results_shown=2 * agent.results_shown) - length() == agent.max_searches * results
    written = chain_tokens(policy, agent)[1]
    assert written == 4 * (agent.max_searches + 2) < length()


def test_more_chains_and_longer_groups_take_more(nano_policy):
    config = GrpoConfig(cases_per_step=4, group=4)
    sizes = [grpo_bytes(nano_policy, replace(config, group=group)) for group in (4, 16, 64)]
    assert sizes[0] <= sizes[1] < sizes[2]  # a small group is one of several in a micro-batch
    # Chains that wait are not held: more than are decoded together take no more.
    many = [replace(config, cases_per_step=cases) for cases in (64, 640)]
    assert len({grpo_bytes(nano_policy, c) for c in many}) == 1
