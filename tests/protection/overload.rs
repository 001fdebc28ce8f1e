//! A core that is behind.
