"""Load an image: read it from its source, check it, unpack it, and add it to the store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from nsupervisor.config.image_reference import ImageReference
from nsupervisor.images.documents import chain_id
from nsupervisor.images.errors import ImageError
from nsupervisor.images.limits import MAX_BYTES
from nsupervisor.images.sources import Image, Source, fingerprint
from nsupervisor.images.store import ImageRecord, Store
from nsupervisor.images.streams import Budget, Layer
from nsupervisor.images.unpack import Unpacker, describe_left_out

_ATTEMPTS = 3


def find_loaded(reference: ImageReference, store: Store) -> ImageRecord | None:
    """Return what is loaded for a reference; None if it is not, or if its source has changed since.

    An image whose source is gone is still good. Raises ImageError and OSError.
    """
    record = store.find(str(reference))
    if record is None:
        return None
    present = fingerprint(reference)
    return record if present is None or tuple(present) == record.fingerprint else None


def load_image(
    reference: ImageReference,
    store: Store,
    max_bytes: int = MAX_BYTES,
    report: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.time,
) -> ImageRecord:
    """Load an image unless it is loaded; return its record. `report` is called with a text for each layer.

    One image at a time is loaded into a store. Raises ImageError and OSError.
    """
    with store.locked("load.lock"):
        for _ in range(_ATTEMPTS):
            record = find_loaded(reference, store)
            if record is None:
                record = _load(reference, store, max_bytes, report, clock)
            if record is not None:
                return record
    raise ImageError("its files are removed again and again by another process")


def _load(
    reference: ImageReference,
    store: Store,
    max_bytes: int,
    report: Callable[[str], None],
    clock: Callable[[], float],
) -> ImageRecord | None:
    """Load an image; return None if its files were removed meanwhile."""
    before = fingerprint(reference)
    if before is None:
        raise ImageError(f"there is no image at {reference.path}")
    with Source(reference) as source:
        image = source.read_image(os.uname().machine)
        chain = chain_id(image.config.diff_ids)
        if store.has_chain(chain):
            record = _find_of_chain(store, chain)
            size, left_out = (record.size, record.left_out) if record is not None else (0, ())
            return _commit(store, reference, image, before, size, left_out, clock, None)
        with store.new_directory() as (name, root):
            budget = Budget(max_bytes)
            unpacker = Unpacker(root, keeps_owners=os.geteuid() == 0)
            for number, layer in enumerate(image.layers, 1):
                report(f"layer {number} of {len(image.layers)}: {layer.diff_id}")
                fd, blob = source.open_layer(layer)
                try:
                    reader = Layer(blob, budget)
                    unpacker.add_layer(reader)
                    reader.finish(layer.digest, layer.diff_id)
                finally:
                    os.close(fd)
            unpacker.finish()
            left_out = tuple(describe_left_out(unpacker.left_out))
            return _commit(store, reference, image, before, budget.used, left_out, clock, name)


def _find_of_chain(store: Store, chain: str) -> ImageRecord | None:
    return next((record for record in store.list_records() if record.chain == chain), None)


def _commit(
    store: Store,
    reference: ImageReference,
    image: Image,
    before: list[int],
    size: int,
    left_out: tuple[str, ...],
    clock: Callable[[], float],
    unpacked: str | None,
) -> ImageRecord | None:
    record = ImageRecord(
        reference=str(reference),
        id=image.digest,
        chain=chain_id(image.config.diff_ids),
        fingerprint=tuple(before),
        size=size,
        loaded=clock(),
        config=image.config,
        left_out=left_out,
    )
    return record if store.commit(record, unpacked) else None
