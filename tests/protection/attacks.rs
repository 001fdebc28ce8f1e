//! The limits of SPEC 9.7 under attack, while honest phones go on.
