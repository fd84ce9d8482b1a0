"""The names of networks with their hyper-parameters and defaults, and of activations. No torch here: flags are checked
before it is imported.
"""

# Which hyper-parameters each network has beside scale, n_colors and rgb_range, with its defaults, and its kernels'.
# CFGN, KRGN's predecessor, is KRGN with plain kernels in 32 groups.
NETWORKS: dict[str, dict[str, int | float | str]] = {
    "KRGN": {"n_feats": 64, "n_resgroups": 9, "groups": 0, "dilation": 3, "act": "lrelu", "kernels": "recalibrated"},
    "CFGN": {"n_feats": 64, "n_resgroups": 9, "groups": 32, "dilation": 3, "act": "lrelu", "kernels": "plain"},
    "EDSR": {"n_feats": 64, "n_resblocks": 16, "res_scale": 1.0, "kernels": "plain"},
    "RCAN": {"n_feats": 64, "n_resgroups": 10, "n_resblocks": 20, "reduction": 16, "kernels": "plain"},
}
ACTIVATIONS = ("lrelu", "relu", "prelu")  # of KRGN's taps
