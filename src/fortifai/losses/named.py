"""The losses of the papers' weights; each is `with_weight` of one on logits or hidden states.

ForTIFAI's TCE and its focal loss (2509.08972), DFT (2508.05629), EAFT (2601.02151), cross entropy.
"""

from fortifai.losses.functional import weighted_cross_entropy
from fortifai.losses.linear import linear_weighted_cross_entropy
from fortifai.losses.options import with_weight
from fortifai.weights import DFT, EAFT, Focal, Keep, Truncate

_on_logits, _on_hidden = weighted_cross_entropy, linear_weighted_cross_entropy
truncated_cross_entropy = with_weight(_on_logits, Truncate, "truncated_cross_entropy")
focal_cross_entropy = with_weight(_on_logits, Focal, "focal_cross_entropy")
dft_cross_entropy = with_weight(_on_logits, DFT, "dft_cross_entropy")
eaft_cross_entropy = with_weight(_on_logits, EAFT, "eaft_cross_entropy")
linear_truncated_cross_entropy = with_weight(_on_hidden, Truncate, "linear_truncated_cross_entropy")
linear_focal_cross_entropy = with_weight(_on_hidden, Focal, "linear_focal_cross_entropy")
linear_dft_cross_entropy = with_weight(_on_hidden, DFT, "linear_dft_cross_entropy")
linear_eaft_cross_entropy = with_weight(_on_hidden, EAFT, "linear_eaft_cross_entropy")
linear_cross_entropy = with_weight(_on_hidden, Keep, "linear_cross_entropy")
