"""The demo's config, whole and with two blocks."""

DEMO = "demo/REV_MVIT_DEMO"
# Overrides: quick, where no size matters.
TWO_BLOCKS = {"MVIT.DEPTH": 2, "MVIT.REV.BUFFER_LAYERS": []}
TWO_BLOCKS |= {f"MVIT.{name}": [] for name in ("DIM_MUL", "HEAD_MUL", "POOL_Q_STRIDE")}
