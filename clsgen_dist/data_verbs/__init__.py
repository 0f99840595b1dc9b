"""The verbs of ``clsgen data``: rows and curricula looked at before anything is trained."""
