//! Any text as a routing table: nothing panics, and every fault that is told has its place.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings::config::table::parse;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let told = match parse("table.toml", text) {
        Ok((_, warnings)) => warnings,
        Err(faults) => {
            assert!(!faults.is_empty(), "refused without a fault");
            faults
        }
    };
    for fault in told {
        assert!(fault.line >= 1 && fault.column >= 1 && !fault.message.is_empty());
        assert!(fault.line <= text.lines().count().max(1) + 1, "{fault:?}");
    }
});
