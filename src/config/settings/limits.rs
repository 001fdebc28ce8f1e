//! How much there may be and how long it may take: `[limits]`, `[timers]`, `[health]`, `[udp]`, `[connections]`.

use std::time::Duration;

use super::{
    super::document::{Faults, Value, in_order},
    ConnectionLimits, Health, Limits, Timers, Udp,
    read::{as_usize, at_least_a_second, bytes, networks, set, time},
};

pub(super) const HEALTH: [&str; 5] = ["probes", "silence", "busy_sources", "busy_window", "longest_pause"];
pub(super) const LIMITS: [&str; 14] = [
    "message",
    "header_lines",
    "start_line",
    "pins",
    "calls",
    "flows",
    "moved_flows",
    "unreachable",
    "users",
    "users_per_connection",
    "news",
    "own_requests",
    "departed",
    "series",
];

pub(super) fn limits(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Limits) {
    let Some(table) = faults.table("limits", value) else { return };
    for (key, value) in in_order(table) {
        let name = key.get_ref().as_ref();
        let (place, range) = match name {
            "message" => (&mut out.wire.message, 1 << 10..=1 << 20),
            "header_lines" => (&mut out.wire.header_lines, 8..=10_000),
            "start_line" => (&mut out.wire.start_line, 256..=64 << 10),
            "pins" => (&mut out.pins, 64..=1 << 26),
            "calls" => (&mut out.calls, 64..=1 << 26),
            "flows" => (&mut out.flows, 1..=1 << 28),
            "moved_flows" => (&mut out.moved_flows, 1..=1 << 28),
            "unreachable" => (&mut out.unreachable, 1..=1 << 28),
            "users" => (&mut out.users, 1..=1 << 26),
            "users_per_connection" => (&mut out.users_per_connection, 1..=1 << 16),
            "news" => (&mut out.news, 16..=1 << 20),
            "own_requests" => (&mut out.own_requests, 1..=1 << 20),
            "departed" => (&mut out.departed, 1..=1 << 20),
            "series" => (&mut out.series, 1..=1 << 20),
            _ => {
                faults.unknown_key(key, "[limits]", LIMITS);
                continue;
            }
        };
        let number = match name {
            "message" | "start_line" => bytes(faults, name, value, range),
            _ => faults.integer(name, value, range).map(as_usize),
        };
        set(place, number);
    }
}

pub(super) fn timers(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Timers) {
    let Some(table) = faults.table("timers", value) else { return };
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "grace" => set(&mut out.grace, time(faults, "grace", value, Duration::from_secs(3600))),
            _ => faults.unknown_key(key, "[timers]", ["grace"]),
        }
    }
}

pub(super) fn health(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Health) {
    let Some(table) = faults.table("health", value) else { return };
    let hour = Duration::from_secs(3600);
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "probes" => set(&mut out.probes, faults.integer("probes", value, 1..=10_000).map(as_usize)),
            "silence" => match time(faults, "silence", value, hour) {
                Some(time) if time < Duration::from_millis(100) => {
                    faults.error(value.span(), "silence: less than 100 ms");
                }
                time => set(&mut out.silence, time),
            },
            "busy_sources" => {
                set(&mut out.busy_sources, faults.integer("busy_sources", value, 1..=8).map(as_usize));
            }
            "busy_window" => set(&mut out.busy_window, time(faults, "busy_window", value, hour)),
            "longest_pause" => set(&mut out.longest_pause, time(faults, "longest_pause", value, hour)),
            _ => faults.unknown_key(key, "[health]", HEALTH),
        }
    }
}

pub(super) fn udp(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Udp) {
    let Some(table) = faults.table("udp", value) else { return };
    let range = 4 << 10..=1 << 30;
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "receive_buffer" => {
                set(&mut out.receive_buffer, bytes(faults, "receive_buffer", value, range.clone()))
            }
            "send_buffer" => set(&mut out.send_buffer, bytes(faults, "send_buffer", value, range.clone())),
            _ => faults.unknown_key(key, "[udp]", ["receive_buffer", "send_buffer"]),
        }
    }
}

pub(super) const CONNECTIONS: [&str; 14] = [
    "most",
    "per_address",
    "per_prefix",
    "accepts_per_second",
    "exempt",
    "output",
    "idle",
    "keepalives_per_second",
    "first_message",
    "message_time",
    "output_time",
    "connect_time",
    "handshakes",
    "handshake_time",
];

pub(super) fn connections(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut ConnectionLimits) {
    let Some(table) = faults.table("connections", value) else { return };
    let day = Duration::from_secs(86_400);
    for (key, value) in in_order(table) {
        let name = key.get_ref().as_ref();
        let count = |place: &mut u32, faults: &mut Faults<'_>| {
            let number = faults.integer(name, value, 1..=1 << 24);
            set(place, number.and_then(|number| u32::try_from(number).ok()));
        };
        match name {
            "most" => out.most = faults.integer(name, value, 1..=1 << 24).map(as_usize),
            "per_address" => count(&mut out.per_address, faults),
            "per_prefix" => count(&mut out.per_prefix, faults),
            "accepts_per_second" => count(&mut out.accepts_per_second, faults),
            "exempt" => out.exempt = networks(faults, name, value),
            "output" => set(&mut out.output, bytes(faults, name, value, 64 << 10..=64 << 20)),
            "idle" => set(&mut out.idle, at_least_a_second(faults, name, value, 7 * day)),
            "keepalives_per_second" => count(&mut out.keepalives_per_second, faults),
            "first_message" => set(&mut out.first_message, at_least_a_second(faults, name, value, day)),
            "message_time" => set(&mut out.message_time, at_least_a_second(faults, name, value, day)),
            "output_time" => set(&mut out.output_time, at_least_a_second(faults, name, value, day)),
            "connect_time" => set(&mut out.connect_time, at_least_a_second(faults, name, value, day)),
            "handshakes" => set(&mut out.handshakes, faults.integer(name, value, 1..=1 << 24).map(as_usize)),
            "handshake_time" => set(&mut out.handshake_time, at_least_a_second(faults, name, value, day)),
            _ => faults.unknown_key(key, "[connections]", CONNECTIONS),
        }
    }
}
