"""The routes by which merchants and users decide: rules, and what a user wants no more."""

from __future__ import annotations

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..ingest.forgetting import forget_events
from ..live.outcomes import shown_query
from ..live.rules import new_rule, rules_of, withdrawn
from ..live.wishes import new_wish, wishes_of, withdrawn_wish
from ..shop.shop import Shop
from . import schema
from .bodies import json_body, json_reply, path_id, posted_objects, query_parameters, result_of
from .schema import parse, parse_time
from .service import Service


async def list_rules(service: Service, request: Request) -> Response:
    """The rules of the merchant."""
    given = parse(schema.RulesParameters, query_parameters(request))
    worker = service.worker
    rules = await result_of(
        worker.call(lambda: rules_of(worker.responder.shop, everything=given.everything))
    )
    return json_reply(schema.RulesReply([rule.to_dict() for rule in rules]))


async def add_rules(service: Service, request: Request) -> Response:
    """Add rules. The next recommendation follows them."""
    body = await json_body(service, request)
    rules = []
    for where, value in posted_objects(body, "rule", service.config.events_a_post):
        given = msgspec.structs.asdict(parse(schema.RuleBody, value, where))
        for name in ("starts", "ends"):
            given[name] = parse_time(given[name], f"{where}{name}")
        rules.append(new_rule(**given))
    worker = service.worker
    await result_of(worker.call(lambda: worker.responder.change_rules(rules)))
    return json_reply(schema.RulesReply([rule.to_dict() for rule in rules]))


async def withdraw_rule(service: Service, request: Request) -> Response:
    """Withdraw a rule. It stays in the history."""
    author = parse(schema.WithdrawParameters, query_parameters(request)).author
    rule_id = request.path_params["rule_id"]
    worker = service.worker

    def withdraw() -> schema.RulesReply | None:
        shop = worker.responder.shop
        if all(rule.rule_id != rule_id for rule in rules_of(shop)):
            return None
        rules = withdrawn(shop, [rule_id], author)
        worker.responder.change_rules(rules)
        return schema.RulesReply([rule.to_dict() for rule in rules])

    reply = await result_of(worker.call(withdraw))
    if reply is None:
        raise HTTPException(404, f"there is no rule {rule_id}")
    return json_reply(reply)


async def list_wishes(service: Service, request: Request) -> Response:
    """What a user wants no more."""
    user, worker = path_id(request, "user_id"), service.worker
    wishes = await result_of(worker.call(lambda: wishes_of(worker.responder.shop, [user])))
    return json_reply(schema.WishesReply(user, [wish.to_dict() for wish in wishes]))


async def add_wish(service: Service, request: Request) -> Response:
    """Recommend a query or a category to a user no more, and forget it if that is asked for."""
    user, worker = path_id(request, "user_id"), service.worker
    body = parse(schema.WishBody, await json_body(service, request))
    query = body.query
    if body.recommendation_id is not None:
        recommendation, position = body.recommendation_id, body.position or 1
        store = worker.responder.store
        query = await result_of(
            store.call(lambda shop: shown_query(shop, user, recommendation, position))
        )
        if query is None:
            raise HTTPException(404, f"{user} was shown no such recommendation")
    wish = new_wish(user, query, body.category)
    await result_of(worker.call(lambda: worker.responder.change_wishes([wish])))
    events = 0
    if body.forget:

        def forget(shop: Shop) -> int:
            return forget_events(shop, user, query, body.category)

        events = await result_of(worker.responder.store.change(forget))
    return json_reply(schema.WishReply(user, wish.to_dict(), events))


async def withdraw_wish(service: Service, request: Request) -> Response:
    """Recommend it again."""
    user, wish_id = path_id(request, "user_id"), request.path_params["wish_id"]
    worker = service.worker

    def withdraw() -> schema.WishReply | None:
        shop = worker.responder.shop
        if all(wish.wish_id != wish_id for wish in wishes_of(shop, [user])):
            return None
        wish = withdrawn_wish(shop, user, wish_id)
        worker.responder.change_wishes([wish])
        return schema.WishReply(user, wish.to_dict(), 0)

    reply = await result_of(worker.call(withdraw))
    if reply is None:
        raise HTTPException(404, f"{user} has no wish {wish_id}")
    return json_reply(reply)
