"""``clsgen serve``: an exported model over HTTP.

    app (FastAPI: limits, tokens, errors) ─▶ requests, openai_chat, decisions ─▶ backend ─▶ answers, events
                                                                                   │
                                          one decode loop in a thread (local) ─────┴──── calls to an engine

In: HTTP requests. Out: answers and events. A request becomes tickets, one a text; their events come back as they
happen: decision, text, redraw, done or error.
"""
