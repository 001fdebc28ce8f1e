//! Every metric, declared once: name, kind, unit, help and labels (SPEC 11.1).
//!
//! `export` emits nothing that is not here, `tests/metrics.rs` holds the two lists equal, and dashboards and docs are
//! checked against this file. Base units only: seconds and bytes.

/// How Prometheus should treat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

impl MetricKind {
    /// As the `# TYPE` line says it.
    pub const fn label(self) -> &'static str {
        match self {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        }
    }
}

/// What the number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Messages, tokens, flows, …
    Count,
    Bytes,
    Seconds,
}

/// One metric; each combination of its labels' values is a series.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    pub unit: Unit,
    pub help: &'static str,
    pub labels: &'static [&'static str],
}

macro_rules! metrics {
    ($($id:ident: $kind:ident $unit:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $id: Metric = Metric {
                name: $name,
                kind: MetricKind::$kind,
                unit: Unit::$unit,
                help: $help,
                labels: &[$($label),*],
            };
        )*

        /// All metrics.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    MESSAGES: Counter Count "tidings_messages_total" ["direction", "kind", "method", "transport"]
        "SIP messages received and sent; of responses the method is that of CSeq.";
    RULE_HITS: Counter Count "tidings_rule_hits_total" ["rule", "tag"]
        "Requests decided by this rule of the table.";
    PACKAGE_REQUESTS: Counter Count "tidings_package_requests_total" ["package", "method"]
        "Requests decided by the table, by event package.";
    BACKEND_REQUESTS: Counter Count "tidings_backend_requests_total" ["pool", "backend"]
        "Requests that left for this backend.";
    BACKEND_RESPONSES: Counter Count "tidings_backend_responses_total" ["backend", "class"]
        "Responses from this backend, by class.";
    BACKEND_STATE: Gauge Count "tidings_backend_state" ["backend", "state"]
        "1 for the state in which the backend is, 0 for the others.";
    BACKEND_TRANSITIONS: Counter Count "tidings_backend_transitions_total" ["backend", "state"]
        "Changes of a backend's state, by the state that it came into.";
    BACKEND_RTT: Gauge Seconds "tidings_backend_rtt_seconds" ["backend"]
        "Round trip of a backend's probes, smoothed.";
    BACKEND_LAST_RTT: Gauge Seconds "tidings_backend_last_rtt_seconds" ["backend"]
        "Round trip of the last probe that a backend answered.";
    BACKEND_PROBES: Counter Count "tidings_backend_probes_total" ["backend", "outcome"]
        "Probes of a backend, by what became of them.";
    BACKEND_NOTICED: Counter Count "tidings_backend_noticed_total" ["backend", "sign"]
        "Signs that something is wrong with a backend, which had it probed at once.";
    BACKEND_UNDELIVERABLE: Counter Count "tidings_backend_undeliverable_total" ["backend"]
        "Messages to a backend for which an ICMP error came back, and connections to it that failed.";
    PROBES_UNDER_WAY: Gauge Count "tidings_probes_under_way" []
        "Probes that wait for their answer.";
    PROBES_LIMIT: Gauge Count "tidings_probes_limit" []
        "Most probes under way at one time.";
    PROBES_DELAYED: Counter Count "tidings_probes_delayed_total" []
        "Probes that were due while there was no room for them.";
    ANSWERS: Counter Count "tidings_answers_total" ["code"]
        "Responses that the router made itself.";
    REFUSED: Counter Count "tidings_refused_total" ["cause"]
        "Messages that were refused or dropped.";
    FORWARD: Histogram Seconds "tidings_forward_seconds" []
        "From the receipt of a batch to the start of its sending, per message.";
    LOOP_LAG: Histogram Seconds "tidings_loop_lag_seconds" []
        "From the kernel's receive timestamp to the worker's read.";
    STRIPPED: Counter Count "tidings_headers_stripped_total" []
        "Header fields removed from requests that were not from a backend.";
    TOKENS_FORGED: Counter Count "tidings_tokens_forged_total" ["type"]
        "Tokens with a bad MAC under a known key.";
    TOKEN_UNKNOWN_KEY: Counter Count "tidings_token_unknown_key_total" []
        "Tokens signed by a key that is not in the ring.";
    TOKEN_KEY_USED: Counter Count "tidings_token_key_used_total" ["key"]
        "Tokens verified, by key id: a key that is no longer used may leave the ring.";
    PINS: Gauge Count "tidings_pins" []
        "Pins held by all workers.";
    PINS_LIMIT: Gauge Count "tidings_pins_limit" []
        "Room for pins in all workers.";
    PIN_HITS: Counter Count "tidings_pin_hits_total" []
        "Requests that went where their pin says.";
    PINS_DROPPED: Counter Count "tidings_pins_dropped_total" []
        "Live pins that had to make room.";
    FLOWS: Gauge Count "tidings_flows" []
        "Contacts with a learnt client flow.";
    FLOWS_LIMIT: Gauge Count "tidings_flows_limit" []
        "Room for contacts with a learnt client flow.";
    FLOWS_NOTED: Counter Count "tidings_flows_noted_total" []
        "Contacts noted from a client's REGISTER.";
    FLOWS_CONFIRMED: Counter Count "tidings_flows_confirmed_total" []
        "Contacts confirmed or ended by the 2xx to REGISTER.";
    FLOW_CONFLICTS: Counter Count "tidings_flow_conflicts_total" []
        "Contacts not noted because a live flow of another user holds them.";
    FLOWS_DROPPED: Counter Count "tidings_flows_dropped_total" []
        "Learnt client flows that had to make room.";
    MOVED_FLOWS: Gauge Count "tidings_moved_flows" []
        "Dialogs whose client has moved to another flow.";
    MOVED_FLOWS_LIMIT: Gauge Count "tidings_moved_flows_limit" []
        "Room for moved flows.";
    FLOWS_MOVED: Counter Count "tidings_flows_moved_total" []
        "Moves of a client to another flow within a dialog.";
    MOVED_FLOWS_DROPPED: Counter Count "tidings_moved_flows_dropped_total" []
        "Moved flows that had to make room.";
    CONNECTION_USERS: Gauge Count "tidings_connection_users" []
        "Users that are remembered of stream connections, each counted once for each connection.";
    CONNECTION_USERS_LIMIT: Gauge Count "tidings_connection_users_limit" []
        "Room for users of stream connections, and half of it for registrations over UDP.";
    CONNECTION_USERS_EACH_LIMIT: Gauge Count "tidings_connection_users_each_limit" []
        "Room for users of one connection.";
    CONNECTION_USERS_DROPPED: Counter Count "tidings_connection_users_dropped_total" []
        "Requests of users for whom there was no room.";
    NEWS_LIMIT: Gauge Count "tidings_news_limit" []
        "Room for ended connections, and for answers to requests of our own, between the workers and control.";
    NEWS_DROPPED: Counter Count "tidings_news_dropped_total" []
        "Ended connections and answers to requests of our own for which there was no room.";
    OWN_REQUESTS: Gauge Count "tidings_own_requests" []
        "Requests of our own, other than probes, that wait for their answer.";
    OWN_REQUESTS_LIMIT: Gauge Count "tidings_own_requests_limit" []
        "Most requests of our own that wait; beyond it: outcome full.";
    OWN_REQUESTS_ENDED: Counter Count "tidings_own_requests_total" ["outcome"]
        "Requests of our own, other than probes, by what became of them.";
    FLOW_EVENTS: Counter Count "tidings_flow_events_total" ["outcome"]
        "Users whose connection ended without a goodbye: told of, or returned before.";
    FLOW_EVENTS_SUPPRESSED: Counter Count "tidings_flow_event_lines_suppressed_total" []
        "Flow events that were left out of the log, beyond ten in a second.";
    WEBHOOKS: Counter Count "tidings_webhook_posts_total" ["outcome"]
        "POSTs of flow events: delivered, refused for good, or failed and to be tried again.";
    WEBHOOK_SPOOL: Gauge Bytes "tidings_webhook_spool_bytes" []
        "Flow events that wait for the webhook's receiver.";
    WEBHOOK_SPOOL_LIMIT: Gauge Bytes "tidings_webhook_spool_limit_bytes" []
        "Room for flow events that wait.";
    WEBHOOK_DROPPED: Counter Count "tidings_webhook_dropped_total" []
        "Flow events for which the spool had no room.";
    FLOW_NOTIFIES: Counter Count "tidings_flow_notifies_total" ["outcome"]
        "NOTIFYs of flow events, by what became of them.";
    DEREGISTRATIONS: Counter Count "tidings_deregistrations_total" ["outcome"]
        "REGISTERs with Expires 0 for users whose connection ended, by what became of them.";
    KEEPALIVES: Counter Count "tidings_keepalives_total" ["method"]
        "Keep-alives sent toward phones over UDP.";
    KEEPALIVE_FLOWS: Gauge Count "tidings_keepalive_flows" []
        "Flows of phones over UDP that are kept alive.";
    KEEPALIVE_RATE_LIMIT: Gauge Count "tidings_keepalive_rate_limit" []
        "Most keep-alives in a second.";
    KEEPALIVES_LATE: Counter Count "tidings_keepalives_late_total" []
        "Keep-alives that came later than their interval, since the rate had no room.";
    KEEPALIVE_DEAD: Counter Count "tidings_keepalive_dead_total" []
        "Flows that did not answer a keep-alive nor said anything else, and are taken for gone.";
    UNREACHABLE_FLOWS: Gauge Count "tidings_unreachable_flows" []
        "Client flows closed by an ICMP error or their silence until they speak again.";
    UNREACHABLE_FLOWS_LIMIT: Gauge Count "tidings_unreachable_flows_limit" []
        "Room for flows closed by an ICMP error or their silence.";
    UNREACHABLE_FLOWS_DROPPED: Counter Count "tidings_unreachable_flows_dropped_total" []
        "Flows closed by an ICMP error or their silence that had to make room.";
    UNDELIVERABLE: Counter Count "tidings_undeliverable_total" []
        "Messages that could not be delivered (ICMP error, too large, connection gone).";
    UNDELIVERABLE_UNPROVEN: Counter Count "tidings_undeliverable_unproven_total" []
        "ICMP errors that quote no request of ours to that address: they may be anybody's, and only make a probe due.";
    RULE_LIMITED: Counter Count "tidings_rule_limited_total" []
        "Requests refused by a rule's limit.";
    DEPARTED: Gauge Count "tidings_departed_addresses" []
        "Addresses of backends that left the table or their name, still believed.";
    DEPARTED_LIMIT: Gauge Count "tidings_departed_addresses_limit" []
        "Room for addresses that left.";
    DEPARTED_DROPPED: Counter Count "tidings_departed_addresses_dropped_total" []
        "Addresses that left and had to make room.";
    DNS_LOOKUPS: Counter Count "tidings_dns_lookups_total" ["outcome"]
        "Resolutions of a backend's host name, with all its records: answered, nothing, failed, refused.";
    DNS_CHANGES: Counter Count "tidings_dns_changes_total" []
        "Answers that were another than before.";
    DNS_ADDRESSES_LIMIT: Gauge Count "tidings_dns_addresses_limit" []
        "Most addresses taken of one host name.";
    DNS_ADDRESSES_DROPPED: Counter Count "tidings_dns_addresses_dropped_total" []
        "Addresses of host names, at each resolution, that were beyond it.";
    DNS_NAMES: Gauge Count "tidings_dns_names" []
        "Host names that are kept resolved.";
    DNS_UNRESOLVED: Gauge Count "tidings_dns_names_unresolved" []
        "Host names without any address.";
    BACKEND_ADDRESSES: Gauge Count "tidings_backend_addresses" ["backend"]
        "Addresses in use of a backend whose URI names a host.";
    BACKEND_NAME_AGE: Gauge Seconds "tidings_backend_name_age_seconds" ["backend"]
        "Since the last good answer about the host that this backend's URI names.";
    ADDRESSES_REFUSING: Gauge Count "tidings_addresses_refusing" []
        "Addresses of backends that refused a request a moment ago.";
    ETAGS_WRAPPED: Counter Count "tidings_etags_wrapped_total" []
        "Entity-tags of backends that were wrapped in a token.";
    PUBLISH_SPARED: Counter Count "tidings_publish_spared_total" ["kind"]
        "Refreshes and removes of Asterisks' publications that are gone, answered 200 instead of 412.";
    PUBLISHER_STOPS: Counter Count "tidings_publisher_stops_total" ["cause"]
        "Answers of backends that stop an Asterisk publisher for good: 401, 407, and 423 without Min-Expires.";
    RESTARTS_BY_TAG: Counter Count "tidings_backend_restarts_by_tag_total" []
        "Restarts of backends that were told by an entity-tag clearly below one already seen.";
    CALLS: Gauge Count "tidings_calls" []
        "Calls on record, ringing ones included.";
    CALLS_LIMIT: Gauge Count "tidings_calls_limit" []
        "Room for calls.";
    CALLS_RECORDED: Counter Count "tidings_calls_recorded_total" []
        "Calls that were answered.";
    CALLS_DROPPED: Counter Count "tidings_calls_dropped_total" []
        "Calls that had to make room and are counted no more.";
    BACKEND_CALLS: Gauge Count "tidings_backend_calls" ["backend"]
        "Calls on record that this backend carries, ringing ones included.";
    CONNECTIONS: Gauge Count "tidings_connections" ["transport", "role"]
        "Open stream connections: accepted from clients and backends, or dialed to backends.";
    CONNECTIONS_LIMIT: Gauge Count "tidings_connections_limit" []
        "Most accepted connections; beyond it: cause all.";
    CONNECTIONS_PER_ADDRESS_LIMIT: Gauge Count "tidings_connections_per_address_limit" []
        "Most accepted connections of one address; beyond it: cause address.";
    CONNECTIONS_PER_PREFIX_LIMIT: Gauge Count "tidings_connections_per_prefix_limit" []
        "Most accepted connections of one /24 or /64; beyond it: cause prefix.";
    ACCEPTS_LIMIT: Gauge Count "tidings_accepts_per_second_limit" []
        "Most connections accepted from one IPv4 address or /64 in a second; beyond it: cause rate.";
    CONNECTION_SOURCES: Gauge Count "tidings_connection_sources" []
        "Addresses and prefixes whose connections are counted.";
    CONNECTION_QUEUED: Gauge Bytes "tidings_connection_queued_bytes" []
        "Bytes that wait for peers to read.";
    CONNECTION_OUTPUT_LIMIT: Gauge Bytes "tidings_connection_output_limit_bytes" []
        "Most bytes that may wait for one peer; beyond it the connection is closed: reason output.";
    CONNECTION_KEEPALIVES_LIMIT: Gauge Count "tidings_connection_keepalives_per_second_limit" []
        "Most keep-alives in a second without a message among them; beyond it the connection is closed: reason keepalives.";
    CONNECTIONS_OPENED: Counter Count "tidings_connections_opened_total" ["role"]
        "Stream connections that were opened.";
    CONNECTIONS_CLOSED: Counter Count "tidings_connections_closed_total" ["reason"]
        "Stream connections that ended, by why.";
    CONNECTIONS_REFUSED: Counter Count "tidings_connections_refused_total" ["cause"]
        "Connections that were not taken.";
    HANDSHAKES: Gauge Count "tidings_tls_handshakes_under_way" []
        "TLS handshakes under way with peers that called.";
    HANDSHAKES_LIMIT: Gauge Count "tidings_tls_handshakes_limit" []
        "Most TLS handshakes under way; beyond it the oldest is closed: reason handshakes.";
    TLS_HANDSHAKES: Counter Count "tidings_tls_handshakes_total" ["role"]
        "TLS handshakes that were completed.";
    TLS_ERRORS: Counter Count "tidings_tls_errors_total" ["cause"]
        "TLS connections that failed, in the handshake or later.";
    WEBSOCKETS: Counter Count "tidings_websocket_upgrades_total" []
        "Connections that became WebSockets.";
    WEBSOCKETS_REFUSED: Counter Count "tidings_websocket_refused_total" ["cause"]
        "Requests for a WebSocket that were refused.";
    PROXIED: Counter Count "tidings_proxy_headers_total" []
        "Connections whose client a proxy named by the PROXY protocol.";
    CERTIFICATE_LOADS: Counter Count "tidings_certificate_loads_total" ["outcome"]
        "Times that certificates and keys were read again: loaded, refused.";
    CERTIFICATE_EXPIRY: Gauge Seconds "tidings_certificate_expiry_timestamp_seconds" []
        "When the first of the certificates in use expires, in seconds since 1970; 0 where there are none.";
    DENIED_PREFIXES: Gauge Count "tidings_denied_prefixes" []
        "Prefixes from which nothing is taken; what came from there: cause denied.";
    BANS: Gauge Count "tidings_bans" []
        "Sources that are banned; what came from them: cause banned.";
    BANS_LIMIT: Gauge Count "tidings_bans_limit" []
        "Most bans in force at one time.";
    BANS_BEGUN: Counter Count "tidings_bans_begun_total" ["cause"]
        "Bans that began or were prolonged, by why.";
    BANS_LIFTED: Counter Count "tidings_bans_lifted_total" []
        "Bans that the operator lifted.";
    BANS_LEFT_OUT: Counter Count "tidings_bans_left_out_total" []
        "Bans for which there was no room.";
    BAN_MIRROR_FAILURES: Counter Count "tidings_ban_mirror_failures_total" []
        "Times that the sets of nftables could not be made to hold the bans.";
    GUARDED_SOURCES: Gauge Count "tidings_guarded_sources" []
        "Sources whose new dialogs and malformed messages are counted, summed over the workers.";
    GUARDED_SOURCES_LIMIT: Gauge Count "tidings_guarded_sources_limit" []
        "Room for such sources in all workers.";
    GUARDED_SOURCES_DROPPED: Counter Count "tidings_guarded_sources_dropped_total" []
        "Such sources that had to make room within a minute of their last message.";
    NEW_DIALOGS_LIMIT: Gauge Count "tidings_new_dialogs_per_second_limit" []
        "Most requests outside of dialogs of one source in a second, on one worker; beyond it: causes source_rate, source_flood.";
    MALFORMED_LIMIT: Gauge Count "tidings_malformed_per_second_limit" []
        "Most malformed messages of one source that are answered in a second; beyond it: cause malformed_rate.";
    OVERLOADED: Gauge Count "tidings_overloaded" ["worker"]
        "1 while a worker is behind and sheds new requests: cause overload.";
    OVERLOADS: Counter Count "tidings_overloads_total" []
        "Times that a worker fell behind.";
    OVERLOAD_BEHIND_LIMIT: Gauge Seconds "tidings_overload_behind_limit_seconds" []
        "For so long a worker may not have emptied its queues before it sheds; 0: it never does.";
    URGENT: Counter Count "tidings_urgent_requests_total" []
        "Requests that were taken in spite of limits or overload: calls for help, Resource-Priority.";
    PONGS: Counter Count "tidings_pongs_total" []
        "Keep-alives on streams that were answered.";
    ADMIN_CONNECTIONS: Gauge Count "tidings_admin_connections" []
        "Open connections to metrics, health and the API.";
    ADMIN_CONNECTIONS_LIMIT: Gauge Count "tidings_admin_connections_limit" []
        "Most open connections to metrics, health and the API; beyond it new ones are closed at once.";
    ADMIN_CONNECTIONS_REFUSED: Counter Count "tidings_admin_connections_refused_total" []
        "Connections to metrics, health and the API for which there was no room.";
    HANDED_OVER: Counter Count "tidings_handed_over_total" []
        "Messages handed to the core that owns their connection.";
    HAND_OVER_FULL: Counter Count "tidings_hand_over_full_total" []
        "Messages that another core had no room for.";
    OPEN_FILES_LIMIT: Gauge Count "tidings_open_files_limit" []
        "Most open files of this process, as the system granted it.";
    KERNEL_DROPS: Counter Count "tidings_udp_kernel_drops_total" []
        "Datagrams that the kernel dropped because a receive buffer was full.";
    SEND_ERRORS: Counter Count "tidings_send_errors_total" []
        "Datagrams whose sending failed.";
    SEND_BLOCKED: Counter Count "tidings_send_blocked_total" []
        "Times that a socket took no more and its tail had to wait.";
    TURN_PANICS: Counter Count "tidings_turn_panics_total" []
        "Turns of a worker that ended in a panic.";
    TASK_PANICS: Counter Count "tidings_task_panics_total" []
        "Panics of control's tasks (health, bans, names and so on), which were begun anew.";
    RECEIVE_BUFFER: Gauge Bytes "tidings_udp_receive_buffer_bytes" ["worker"]
        "Receive buffer of a worker's sockets as the kernel granted it.";
    LIMIT_MESSAGE: Gauge Bytes "tidings_limit_message_bytes" []
        "Largest message taken; beyond it: cause too_large.";
    LIMIT_HEADER_LINES: Gauge Count "tidings_limit_header_lines" []
        "Most header lines taken; beyond it: cause too_many_headers.";
    LIMIT_START_LINE: Gauge Bytes "tidings_limit_start_line_bytes" []
        "Longest start line taken; beyond it: cause start_line_too_long.";
    SERIES_LIMIT: Gauge Count "tidings_series_limit" []
        "Most series each of rules, pools, backends and packages; beyond it they count as other.";
    SERIES: Gauge Count "tidings_series" []
        "Rules, pools, backends and packages that have series, those of the last ten minutes included.";
    SERIES_BEYOND: Gauge Count "tidings_series_beyond_limit" []
        "Rules, pools, backends and packages of the table that count as other, since all series are in use.";
    TABLE_VERSION: Gauge Count "tidings_table_version" []
        "Version of the table that was published last.";
    TABLE_SWAPS: Counter Count "tidings_table_swaps_total" []
        "Tables published, the first one included.";
    TABLE_FAILURES: Counter Count "tidings_table_failures_total" []
        "Tables that were refused.";
    TABLE_LOADED: Gauge Seconds "tidings_table_loaded_timestamp_seconds" []
        "When the table was published, in seconds since 1970.";
    TABLE_INFO: Gauge Count "tidings_table_info" ["source"]
        "Where the table came from; always 1.";
    TABLE_RULES: Gauge Count "tidings_table_rules" []
        "Rules in the table.";
    TABLE_POOLS: Gauge Count "tidings_table_pools" []
        "Pools in the table.";
    TABLE_BACKENDS: Gauge Count "tidings_table_backends" []
        "Backends in the table, each counted once for each pool.";
    WORKER_TABLE_VERSION: Gauge Count "tidings_worker_table_version" ["worker"]
        "Version of the table by which this worker decides.";
    WORKER_TABLE_SWAPS: Counter Count "tidings_worker_table_swaps_total" []
        "Tables taken up by workers, summed over them.";
    WORKERS: Gauge Count "tidings_workers" []
        "Workers, one core each.";
    READY: Gauge Count "tidings_ready" []
        "1 while the router is ready for traffic.";
    BUILD_INFO: Gauge Count "tidings_build_info" ["version"]
        "Version of the program; always 1.";
    START_TIME: Gauge Seconds "tidings_process_start_time_seconds" []
        "When the process started, in seconds since 1970.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_follow_the_conventions() {
        for (at, metric) in ALL.iter().enumerate() {
            assert!(ALL[..at].iter().all(|other| other.name != metric.name), "{} twice", metric.name);
            assert!(metric.name.starts_with("tidings_"), "{}", metric.name);
            assert_eq!(
                metric.kind == MetricKind::Counter,
                metric.name.ends_with("_total"),
                "{}",
                metric.name
            );
            assert_eq!(metric.unit == Unit::Seconds, metric.name.ends_with("_seconds"), "{}", metric.name);
            assert_eq!(metric.unit == Unit::Bytes, metric.name.ends_with("_bytes"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
