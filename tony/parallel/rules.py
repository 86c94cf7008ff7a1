"""Names of mesh axes, and which of them each logical axis of an array is split over."""

AXES = ("pod", "data", "expert", "model")

# Weights are split over "model" by heads, hidden width or vocabulary (Shoeybi et al. 2019) and over "data" by their
# other axis (fully sharded, Rajbhandari et al. 2020); nothing of them over pods, which exchange gradients alone (PaLM,
# section 4). The batch goes over all but "model"; what blocks hand on is split by width (Xu et al. 2021, section 4.1).
# A mesh axis that an array has already used is passed over: experts' weights are split by expert, others' width by it.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("pod", "data", "expert"),
    "residual": ("model",),
    "vocab": ("model",),
    "vocab_embed": ("data", "expert"),  # width of the embedding
    "heads": ("model",),
    "kv_heads": ("model",),
    "hidden": ("model",),
    "embed": ("data", "expert"),
    "expert": ("expert",),
    "experts": (),  # the router's outputs
    "norm": (),
    "head_dim": (),
    "layers": (),
    "buckets": (),
}
