"""What a policy learns in and is measured in.

- A *case* is a moment of the log at which a query could have been recommended, together with
  what the user then did: the query and the products engaged with (`cases`). Cases are split by
  time into train, validation and test.
- An *example* is a case and the profile that the agent reads in it; an `Environment` holds
  examples and the search as it was at each of their moments (`environment`).
- An *episode* is one chain of retrieval for an example, from prompt to recommended query; it
  ends as a `Rollout` (`agent.episode`, run by `Environment.rollout_runner`).
- An *outcome* puts a rollout beside what the user then did (`Environment.outcome`).
- A *reward component* scores an outcome in [0, 1]; the reward is a weighted mean of the
  components (`rewards`, with those from users' files in `custom_rewards`).

`evaluate_policy` measures a policy on examples; `ir_metrics` holds NDCG; `files` stores an
environment in a run's folder.
"""
