"""``clsgen serve``: an exported model over HTTP.

    app (limits, tokens, errors) ─▶ own_routes, chat_routes, decision_routes ─▶ service ─▶ backend ─▶ events ─▶ answers
                                                                                             │
                                              one decode loop in a thread (local_backend) ───┴─── calls to an engine

In: HTTP requests. Out: answers and events. A request becomes tickets, one a text; their events come back as they
happen: decision, text, redraw, done or error.
"""
