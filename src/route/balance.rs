//! Balance keys (SPEC 5.3): what of a message places it, and the hash that places it. Fixed seeds, pinned by vectors.
