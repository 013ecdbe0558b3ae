"""What a model looked at: attention as it was, and what happens to the loss when something is taken away.

Looking never changes a forecast: what a layer is given is kept as it passes by, and the weights are computed from it
afterwards. Nothing here depends on the kind of model; what does not exist for one says so.
"""
