"""Memory in which a query reaches others as soon as one person has searched it.

Most tests are about something else, in shops of few people.
"""

from qagent_mlx.shop.config import MemoryConfig, ShopConfig

OPEN_MEMORY = MemoryConfig(
    least_users=1, least_users_unknown=1, new_user_hours=0.0, trends_by="searches"
)
OPEN_SHOP = ShopConfig(memory=OPEN_MEMORY)
