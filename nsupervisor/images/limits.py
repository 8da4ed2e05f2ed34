"""The limits of an image. Each limit is far above what real images have."""

MAX_DOCUMENT_BYTES = 4 << 20
"""The most bytes of an index, a manifest or a configuration; as github.com/containers/image has it."""
MAX_LAYERS = 512
MAX_ENTRIES = 2_000_000
"""Files, directories and links in all layers together."""
MAX_DEPTH = 128
"""Directories in directories."""
MAX_PATH_BYTES = 4095
"""PATH_MAX without the final NUL, limits.h."""
MAX_BYTES = 64 << 30
"""The most bytes of all layers, unpacked; the default, which `image load --max-size` changes."""
MAX_RATIO, RATIO_FROM_BYTES = 250, 64 << 20
"""How many bytes one byte of a layer may unpack to, once this many bytes were unpacked."""
