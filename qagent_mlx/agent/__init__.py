"""The agent: from a user's memory to the queries that the user is shown.

The path of one recommendation, with where to read on:

1. `recommend.Recommender.recommend` reads each user's profile; its lines end in ``<r0>``,
   ``<r1>``, … (written by `protocol.profile_text.render`), one for each query in it.
2. `recommend.ProfileRecommender.answer` makes a `Task` for each chain, and
   `rollout.RolloutRunner.run` an `episode.Episode` for each task.
3. `decode.Decoder` draws the ids of all chains together (`sampling.sample`) until a turn ends,
   such as ``<search><r3></search>``.
4. `Episode.act` reads it with `protocol.actions.parse_action`; by the rules of `chain.Chain`,
   `expand` puts the query in a reference's place.
5. `tools.SearchProducts` searches for all chains that wait, and `Episode.observe` inserts the
   results, marked for this user; the policy searches again or recommends.
6. `Episode.rollout` is the finished chain, a `types.Rollout` with its recommended query.
7. `slate.aggregate_group` ranks the queries of a user's chains by votes, and
   `slate.SlateFiller.fill` makes the slate that is shown.
"""

from ..utils.blas import load_fast_blas

load_fast_blas()  # before a module of this package imports MLX
