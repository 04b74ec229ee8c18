"""Sources of samples: one file each, listed in SOURCES; what they share is in `base`."""

from kdpipe.stages.sources.base import Source
from kdpipe.stages.sources.digits import Digits
from kdpipe.stages.sources.folder import Folder
from kdpipe.stages.sources.idx import Idx
from kdpipe.stages.sources.manifest import Manifest
from kdpipe.stages.sources.masks import Masks
from kdpipe.stages.sources.npz import Npz

SOURCES: tuple[type[Source], ...] = (Digits, Idx, Folder, Npz, Manifest, Masks)
