"""Files of products and events, read into a shop; called, it is `api.ingest`."""

from ..utils.callable_module import make_callable

make_callable(__name__, "qagent_mlx.ingest.api:ingest")
