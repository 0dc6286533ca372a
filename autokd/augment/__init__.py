"""Views of the training data, on batched tensors: base crops and flips, joint data augmentation (JDA), cosine
confidence (CCD).

Every random number is a hash of (seed, epoch, index, view, purpose), so a view is a pure function of those and can be
replayed. `views.make_batch` is the door.
"""

from __future__ import annotations

from autokd.augment.jda import CHAINS, p_for_changed_share

__all__ = ["CHAINS", "p_for_changed_share"]
