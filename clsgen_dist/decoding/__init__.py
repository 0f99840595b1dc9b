"""How an explanation is written: what the model is told, what its text must keep to, its length, how it is drawn.

In: settings, the text, the decision, and logits token by token. Out: the explanation's tokens and text. Nothing here
knows of exports or servers.
"""
